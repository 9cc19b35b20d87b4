"""Measurement: one Workload on one Package on one Device, with all samples. One JSON object a line in a result file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.agent.environment import Environment
from benchmarks.validity import Disturbance, Validity
from compiler.errors import UnusableInput
from compiler.formats.json_file import LIMIT_BYTES, parse_json, read_regular
from compiler.output_file import write_output
from compiler.recipe import title_of
from compiler.records import from_json
from runtimes.devices.registry import is_emulated
from runtimes.kinds import kind_of_task
from runtimes.verify.verification import Verification
from runtimes.workload import Workload

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Predicted:
    """What was to be expected; None where too little is known (benchmarks/prediction.py).

    Attributes:
        package_bytes: told from shapes; None where the package was there.
        memory_bytes: the largest resident set.
        tok_per_s: of decode.
        ttft_s: seconds to the first token.
        latency_s: seconds of an encoder's input.
    """

    package_bytes: int | None
    memory_bytes: float | None
    tok_per_s: float | None
    ttft_s: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One line of a result file.

    Attributes:
        package: the package's folder name.
        digest: its digest.
        recipe: its recipe's short form.
        model: the model's name.
        task: the model's task, whose kind says what the samples and figures mean.
        device: where it ran; `local` is this machine.
        workload: what ran.
        samples: seconds by round, by the name of what was timed; and `load_s`.
        summary: the figures, each with its unit in its name; null where there is none, with the reason in `absent`.
        quality: what verify found of the package; null when it was not verified.
        environment: the machine.
        measured: when the first round began, UTC, as `2026-11-28 16:30`.
        edgec: the version that measured.
        verdict: whether the figures can be believed.
        disturbance: what else happened meanwhile.
        absent: reasons for the nulls of `summary`.
        predicted: what was to be expected; None where nothing is known of the model, as of a server's.
    """

    package: str
    digest: str
    recipe: str
    model: str
    task: str
    device: str
    workload: Workload
    samples: dict[str, tuple[tuple[float, ...], ...]]
    summary: dict[str, float | int | str | None]
    quality: Verification | None
    environment: Environment
    verdict: Validity
    disturbance: Disturbance
    absent: dict[str, str]
    measured: str
    edgec: str
    schema_version: int = SCHEMA_VERSION
    predicted: Predicted | None = None

    @property
    def title(self) -> str:
        """What its package is called in tables and sentences."""
        return title_of(self.recipe, self.package)

    @property
    def is_emulated(self) -> bool:
        """Whether its processor was emulated: how fast it was says nothing."""
        return is_emulated(self.device)

    def figure(self, name: str) -> float | None:
        """A figure of the summary; None where there is none."""
        value = self.summary.get(name)
        return value if isinstance(value, int | float) else None

    def distance(self, name: str) -> float | None:
        """A figure that verify found; None where it found none."""
        value = self.quality.figures.get(name) if self.quality else None
        return value if isinstance(value, int | float) else None


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write a result file, whole or not at all."""
    lines = [json.dumps(asdict(measurement), ensure_ascii=False) for measurement in measurements]
    write_output(path, "\n".join(lines) + "\n")


def read_measurements(path: Path) -> list[Measurement]:
    """Read a result file.

    Raises:
        UnusableInput: it cannot be read, is empty, or a line is of another schema version or form.
    """
    try:
        lines = read_regular(path, f"The result file {path}", LIMIT_BYTES).decode("utf-8").splitlines()
    except OSError as error:
        raise UnusableInput(f"The result file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UnusableInput(f"The result file {path} is no text in UTF-8.") from error
    measurements = [_parse(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    for number, each in enumerate(measurements):
        if any(_same_work(each, other) for other in measurements[:number]):
            raise UnusableInput(
                f"The result file {path.name} has two measurements of {each.package} of {each.model} with the same "
                "workload, as files that were joined have. Which one counts nobody can tell; keep one run a file."
            )
    if not measurements:
        raise UnusableInput(f"The result file {path} has no measurement. `edgec bench -o {path.name}` writes one.")
    return measurements


def _same_work(one: Measurement, other: Measurement) -> bool:
    first, second = ((m.model, m.package, m.recipe, m.device, m.workload) for m in (one, other))
    return first == second


def _require_times(found: Measurement) -> None:
    lacking = [name for _, name in kind_of_task(found.task).timed if name not in found.samples]
    if lacking:
        raise ValueError(f"samples has no {lacking[0]}, which is what a measurement of {found.task} is made of")
    for name, rounds in found.samples.items():
        every = [value for samples in rounds for value in samples]
        if not every or not all(math.isfinite(value) and value > 0 for value in every):
            raise ValueError(f"samples.{name} are no times: each has to be a number above 0, and there has to be one")


def _parse(line: str, number: int, path: Path) -> Measurement:
    again = "Measure again with `edgec bench`."
    document = parse_json(line, f"The result file {path.name}, line {number},")
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UnusableInput(
            f"{path.name}, line {number}, has result schema {version!r}; this edgec reads {SCHEMA_VERSION}. {again}"
        )
    try:
        found = from_json(Measurement, document)
        _require_times(found)
        return found
    except ValueError as error:
        raise UnusableInput(f"{path.name}, line {number}: {error}. {again}") from error
