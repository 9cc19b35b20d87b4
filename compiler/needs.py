"""What a build takes of the machine: memory, disk and time of its stages, told from the model's shapes before any work.

The figures of `needs.toml` were taken on one x86-64 machine of two cores with models of 23 million, 135 million and 1.1
billion parameters (`python -m benchmarks.peers.needs`). A stage that is not in it tells nothing.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from compiler.model import Model
from compiler.operations import operations
from compiler.quantization import Calibration
from compiler.quantize.calibrate.lengths import sample_tokens_of
from compiler.records import from_json
from compiler.scheme import Scheme, find_scheme
from compiler.size import matrices_of, needed_tensors
from compiler.stages.stage import Stage, each_stage

_COSTS = Path(__file__).with_name("needs.toml")
# Beyond this share of what is predicted the prediction may be wrong.
SURE = 0.8


@dataclass(frozen=True)
class Cost:
    """What a function takes: bytes of memory and disk, and seconds.

    Attributes:
        memory: whatever the model; libraries for the most part.
        memory_of_weights, memory_of_largest: for a byte of the model's weights, and of its largest matrix, as float32.
        memory_of_result: for a byte of the weights in the bits that the stage stores them in.
        memory_of_samples: for a byte of a vector, as float32, for each token of the calibration.
        disk_of_weights: for a byte of the weights as float32.
        seconds: whatever the model.
        seconds_of_weights: for a billion bytes of weights as float32.
        seconds_of_work: for a million million additions and multiplications of one pass of the calibration.
    """

    memory: float
    memory_of_weights: float = 0.0
    memory_of_largest: float = 0.0
    memory_of_result: float = 0.0
    memory_of_samples: float = 0.0
    disk_of_weights: float = 0.0
    seconds: float = 0.0
    seconds_of_weights: float = 0.0
    seconds_of_work: float = 0.0


@dataclass(frozen=True)
class Need:
    """What a stage or a build takes.

    Attributes:
        memory_bytes: the largest resident set of a stage's process.
        disk_bytes: what stays in the cache.
        seconds: on the machine that the figures come from.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float


@cache
def costs() -> dict[str, Cost]:
    """The figures by function and method."""
    document = tomllib.loads(_COSTS.read_text(encoding="utf-8"))
    return {name: from_json(Cost, {**_ABSENT, **told}, name) for name, told in document.items()}


_ABSENT = {field.name: 0.0 for field in fields(Cost)}


def stage_need(stage: Stage, model: Model) -> Need | None:
    """What a stage takes; None where nothing is known of it."""
    scheme = find_scheme(str(stage.arguments.get("scheme", "")))
    # Figures of one scheme come before those of all.
    cost = costs().get(f"{stage.work} {scheme.name}" if scheme else "", costs().get(stage.work))
    if cost is None:
        return None
    weights = 4 * sum(tensor.elements for tensor in needed_tensors(model))
    largest = 4 * max((each.elements for each in matrices_of(model)), default=0)
    tokens, passes = 0, 0.0
    if (samples := _calibration(stage)) is not None and model.takes == "text":
        length = sample_tokens_of(model, samples)
        tokens = samples.samples * length
        passes = samples.samples * operations(model, length) / 1e12
    memory = cost.memory + cost.memory_of_weights * weights + cost.memory_of_largest * largest
    memory += cost.memory_of_result * weights * _bits(stage, scheme) / 32
    memory += cost.memory_of_samples * tokens * 4 * model.geometry.hidden_size
    seconds = cost.seconds + cost.seconds_of_weights * weights / 1e9 + cost.seconds_of_work * passes
    return Need(int(memory), int(cost.disk_of_weights * weights), seconds)


def _bits(stage: Stage, scheme: Scheme | None) -> float:
    """Bits of a weight in what the stage makes."""
    told = stage.arguments.get("bits")
    if scheme is not None:
        return scheme.bits_per_weight or 32
    return float(told) if isinstance(told, int | float) and told else 32


def _calibration(stage: Stage) -> Calibration | None:
    """The samples that a stage reads, or writes."""
    for each in (stage, *stage.inputs.values()):
        told = each.arguments.get("calibration")
        if isinstance(told, dict):
            return from_json(Calibration, told, "calibration")
    return None


def build_need(stage: Stage, model: Model) -> Need | None:
    """What a package takes whose last stage that is, one stage after the other; None where one of them is not known."""
    stages = {(each.function, str(each.arguments)): each for each in each_stage(stage)}
    needs = [stage_need(each, model) for each in stages.values()]
    known = [each for each in needs if each is not None]
    if len(known) < len(needs) or not known:
        return None
    return Need(
        max(each.memory_bytes for each in known),
        sum(each.disk_bytes for each in known),
        sum(each.seconds for each in known),
    )


def with_needs(stage: Stage, model: Model) -> Stage:
    """The stage, and those before it, with the memory and disk that each surely needs."""
    need = stage_need(stage, model)
    inputs = {name: with_needs(each, model) for name, each in stage.inputs.items()}
    if need is None:
        return replace(stage, inputs=inputs)
    memory, disk = (int(SURE * each) for each in (need.memory_bytes, need.disk_bytes))
    return replace(stage, inputs=inputs, memory_bytes=memory, disk_bytes=disk)
