"""What the inputs and results of an encoder's products range over: a stage that writes `ranges.json`.

The re-authored network runs in fp32 on calibration samples, each whole and cut short, since a text's length moves the range.
A few channels of a result may be hundreds of times larger than the others (Dettmers et al. 2022, LLM.int8(), section 4), and
one scale for all would leave the others no steps. Each channel's result is therefore divided by a power of two first, which
moves into the scale of its row of weights and costs no precision; a product of floats behind it multiplies by it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compiler.formats.json_file import read_object
from compiler.model import read_model
from compiler.networks.filled import filled_encoder, run_encoder, spread_samples
from compiler.networks.parts import Projection
from targets.tflite.target import RANGES

_SAMPLES = 64
_SHORT = 24
# Of the channels' largest results: what lies so many times above it is divided.
_COMMON, _FAR = 0.9, 4.0


@dataclass(frozen=True)
class ProductRange:
    """The ranges of a product, fixed before it runs.

    Attributes:
        low, high: of its inputs.
        result_low, result_high: of its results, each divided by its channel's `divisors`.
        divisors: powers of two, one for each channel of the result.
    """

    low: float
    high: float
    result_low: float
    result_high: float
    divisors: Sequence[float]


def read_ranges(folder: Path) -> Mapping[str, ProductRange]:
    """The ranges by the name of the projection."""
    return {name: ProductRange(**each) for name, each in read_object(folder / RANGES).items()}


@torch.inference_mode()
def measure_ranges(model: str, samples: str, out: str, task: str) -> dict[str, Any]:
    """Write the ranges of every projection; `samples` is the folder with `samples.npy`."""
    network, config = filled_encoder(read_model(Path(model), task=task))
    found: dict[str, _Seen] = {}
    for name, module in network.named_modules():
        if isinstance(module, Projection):
            module.register_forward_hook(_watch(found.setdefault(name, _Seen())))
    for sample in spread_samples(Path(samples), _SAMPLES):
        for each in (sample,) if config.image else _whole_and_short(sample):
            run_encoder(network, config, each)
    ranges = {name: asdict(_range_of(seen)) for name, seen in sorted(found.items())}
    (Path(out) / RANGES).write_text(json.dumps(ranges) + "\n", encoding="utf-8")
    return {"projections": len(ranges)}


@dataclass
class _Seen:
    """The least and the largest so far: of the inputs, and of each channel of the results."""

    inputs: Tensor | None = None
    results: Tensor | None = None


def _watch(seen: _Seen) -> Any:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        seen.inputs = _wider(seen.inputs, arguments[0].reshape(-1, 1))
        seen.results = _wider(seen.results, result.reshape(-1, result.shape[-1]))

    return hook


def _wider(before: Tensor | None, values: Tensor) -> Tensor:
    """Least and largest of each column, (2, columns)."""
    found = torch.stack([values.amin(0), values.amax(0)])
    if before is None:
        return found
    return torch.stack([torch.minimum(found[0], before[0]), torch.maximum(found[1], before[1])])


def _whole_and_short(ids: Tensor) -> Iterator[Tensor]:
    """The text, and its beginning with the token that ends it."""
    yield ids
    if len(ids) > _SHORT:
        yield torch.cat([ids[: _SHORT - 1], ids[-1:]])


def _range_of(seen: _Seen) -> ProductRange:
    assert seen.inputs is not None and seen.results is not None
    low, high = (float(each) for each in seen.inputs[:, 0])
    largest = seen.results.abs().amax(0).clamp(min=1e-6)
    beyond = largest / torch.quantile(largest, _COMMON)
    divisors = torch.where(beyond < _FAR, 1.0, 2.0 ** beyond.log2().floor())
    divided = seen.results / divisors
    ends = float(divided[0].min().clamp(max=0)), float(divided[1].max().clamp(min=0))
    return ProductRange(min(low, 0.0), max(high, 0.0), *ends, divisors.tolist())
