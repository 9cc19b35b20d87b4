"""Measurement: one Workload on one Package on one Device, with all samples. One JSON object a line in a result file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.stages.cache import write_atomically

SCHEMA_VERSION = 1

Rounds = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Measurement:
    """One line of a result file.

    Attributes:
        package: the package's folder name.
        recipe: its recipe's short form.
        model: the model's name.
        task: the model's task.
        device: where it ran; `local` is this machine.
        workload: the Workload as JSON.
        samples: seconds by round, of `ttft_s` and `tpot_s`, or of `latency_s`; and `load_s`.
        summary: the figures, each with its unit in its name; null where there is none, with the reason in `absent`.
        quality: what verify recorded in the package; null when it was not verified.
        environment: the Environment as JSON.
        verdict: `word` and `reasons`.
        absent: reasons for the nulls of `summary`.
    """

    package: str
    recipe: str
    model: str
    task: str
    device: str
    workload: dict[str, Any]
    samples: dict[str, list[list[float]]]
    summary: dict[str, float | int | None]
    quality: dict[str, Any] | None
    environment: dict[str, Any]
    verdict: dict[str, Any]
    absent: dict[str, str]
    schema_version: int = SCHEMA_VERSION


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write a result file, whole or not at all."""
    lines = [json.dumps(asdict(measurement), ensure_ascii=False) for measurement in measurements]
    write_atomically(path, "\n".join(lines) + "\n")


def read_measurements(path: Path) -> list[Measurement]:
    """Read a result file.

    Raises:
        UnusableInput: it cannot be read, is empty, or a line is of another schema version or form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInput(f"The result file {path} cannot be read: {error}.") from error
    measurements = [_parse(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    if not measurements:
        raise UnusableInput(f"The result file {path} has no measurement. `edgec bench -o {path.name}` writes one.")
    return measurements


def _parse(line: str, number: int, path: Path) -> Measurement:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise UnusableInput(f"{path.name}, line {number}, is not JSON: {error}.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UnusableInput(
            f"{path.name}, line {number}, has result schema {version!r}; this edgec reads {SCHEMA_VERSION}. Measure again "
            "with `edgec bench`."
        )
    names = {field.name for field in fields(Measurement)}
    if missing := names - set(document):
        raise UnusableInput(
            f"{path.name}, line {number}, lacks {sorted(missing)[0]!r}. Measure again with `edgec bench`."
        )
    for name in ("samples", "summary", "verdict"):
        if not isinstance(document[name], dict):
            raise UnusableInput(f"{path.name}, line {number}, has no {name}. Measure again with `edgec bench`.")
    return Measurement(**{name: document[name] for name in names})
