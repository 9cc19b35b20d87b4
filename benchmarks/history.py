"""What this machine measured before: a local file of a few figures of each measurement, from which plans learn.

It is `~/.local/share/edgec/history.jsonl`. It holds no text, no path and no name of a host, and is never sent anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measurement import Measurement
from compiler.digest import digest_json
from compiler.errors import EdgecError
from compiler.inputs.identity import find_identified
from compiler.operations import operations
from compiler.package import Package
from compiler.records import from_json
from runtimes.verify.verify import OWN_PASSAGES

_MOST_LINES = 5000


@dataclass(frozen=True)
class Seen:
    """A package as it was measured; None for what was not.

    Attributes:
        machine: the processor that ran it; plans learn for that one alone.
        runtime: what ran it.
        recipe: its recipe's short form.
        model: the model's digest.
        settings: of the recipe in full, but for shapes.
        package_bytes: of all its files.
        read_bytes: of weights that a token reads; of encoders the same as `package_bytes`.
        memory_bytes: the largest resident set, without what the imports took.
        context_length: tokens that the cache held; None for encoders.
        bandwidth_share: bytes of weights read a second over what memory gives.
        read_bytes_per_s: bytes of weights read a second while it decoded; None for encoders.
        figures: what verify found of it.
        products_share: additions and multiplications a second of a prompt or an input, over those of numpy's float32 products.
    """

    machine: str
    runtime: str
    recipe: str
    model: str
    settings: str
    package_bytes: int
    read_bytes: int
    memory_bytes: int | None
    context_length: int | None
    bandwidth_share: float | None
    figures: dict[str, float]
    products_share: float | None = None
    read_bytes_per_s: float | None = None


def history_file() -> Path:
    """Where it is."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "edgec" / "history.jsonl"


def remember(measured: Sequence[tuple[Package, Measurement]]) -> None:
    """Add measurements that are not invalid; where the file cannot be written nothing is remembered."""
    lines = [json.dumps(asdict(_seen(*each))) for each in measured if each[1].verdict.word != "invalid"]
    with suppress(OSError):
        file = history_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))


def _seen(package: Package, measurement: Measurement) -> Seen:
    peak, imports = measurement.figure("peak_rss_bytes"), measurement.figure("import_rss_bytes")
    quality = measurement.quality
    # On a text of the user's own a package has other figures, which tell nothing of its word.
    told = quality.figures if quality is not None and quality.text == OWN_PASSAGES else {}
    return Seen(
        machine=measurement.environment.cpu,
        runtime=package.lowered.runtime,
        recipe=package.recipe,
        model=package.model.digest,
        settings=settings_of(package.recipe_full),
        package_bytes=package.nbytes,
        read_bytes=package.lowered.weights.decode_read_bytes or package.nbytes,
        memory_bytes=None if peak is None or imports is None else int(peak - imports),
        context_length=measurement.workload.context_length,
        bandwidth_share=measurement.figure("decode_bandwidth_fraction"),
        figures={name: float(value) for name, value in told.items() if isinstance(value, int | float)},
        products_share=_products_share(package, measurement),
        read_bytes_per_s=_read_bytes_per_s(package, measurement),
    )


def _read_bytes_per_s(package: Package, measurement: Measurement) -> float | None:
    read, speed = package.lowered.weights.decode_read_bytes, measurement.figure("decode_tok_per_s")
    return read * speed if read is not None and speed is not None else None


def _products_share(package: Package, measurement: Measurement) -> float | None:
    """Operations a second of a prompt or an input over those of float32 products; None where the model is gone."""
    work, first_s = measurement.workload, measurement.figure("ttft_s")
    latency_ms = measurement.figure("latency_ms_p50")
    tokens = work.prompt_tokens if first_s is not None else work.sequence_length
    seconds = first_s if first_s is not None else latency_ms / 1e3 if latency_ms else None
    rate = measurement.environment.fp32_ops_per_s
    if not tokens or not seconds or not rate:
        return None
    try:
        model = find_identified(package.model)
        return operations(model, tokens) / seconds / rate if model.takes == "text" else None
    except (EdgecError, OSError, ValueError, TypeError):
        return None


def settings_of(full: Mapping[str, object]) -> str:
    """The digest of a recipe in full, its shapes and limits aside."""
    return digest_json(
        {
            name: value
            for name, value in full.items()
            if name in ("target", "scheme", "variant", "options", "quantization")
        }
    )


def read_history() -> list[Seen]:
    """What is remembered, the latest last. Lines of another form are passed over: a plan can do without."""
    try:
        lines = history_file().read_text(encoding="utf-8").splitlines()[-_MOST_LINES:]
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            found.append(from_json(Seen, json.loads(line)))
    return found
