"""What the inputs of an encoder's projections range over, for activations in 8 bits: a stage that writes `ranges.json`.

The re-authored network runs in fp32 on calibration samples. Each projection gets the scale with the least squared error
of rounding what it is given to 256 steps around zero. Where a few channels are so much larger than the others that this error
is large all the same (Dettmers et al. 2022, LLM.int8(), section 4), the input stays a float, and the package says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.model import read_model
from compiler.networks.filled import filled_encoder, run_encoder, spread_samples
from compiler.networks.parts import Projection
from targets.coreml.target import RANGES

_LARGEST_CODE = 127
# Of the mean square of the values. MiniLM: 0.001 for attention, 0.005 to 0.03 for the feed-forward layers with such channels.
_MOST_ERROR = 2e-3
# Of up to 512 tokens, which must be in memory together.
_SAMPLES = 16
_SHRINKS = [1.0 - 0.04 * step for step in range(20)]


@torch.inference_mode()
def measure_ranges(model: str, samples: str, out: str, task: str) -> dict[str, Any]:
    """Write the scale of each projection's input by the projection's name, and the error of each that stays a float.

    `samples` is the folder with `samples.npy`.
    """
    network, config = filled_encoder(read_model(Path(model), task=task))
    given: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def keep(module: Any, arguments: tuple[Tensor, ...]) -> None:
            given.setdefault(name, []).append(arguments[0].reshape(-1, arguments[0].shape[-1]))

        return keep

    for name, module in network.named_modules():
        if isinstance(module, Projection):
            module.register_forward_pre_hook(watch(name))
    for sample in spread_samples(Path(samples), _SAMPLES):
        run_encoder(network, config, sample)
    fitted = {name: fit_scale(torch.cat(parts)) for name, parts in sorted(given.items())}
    ranges = {
        "scales": {name: scale for name, (scale, error) in fitted.items() if error <= _MOST_ERROR},
        "float_errors": {name: error for name, (scale, error) in fitted.items() if error > _MOST_ERROR},
    }
    (Path(out) / RANGES).write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")
    return {"projections": len(fitted)}


def fit_scale(values: Tensor) -> tuple[float, float]:
    """The step between codes -128 to 127, a number that float16 holds, with the least squared error over the values, and that
    error as a share of the values' mean square."""
    largest = float(values.abs().max())
    best, least = 1.0, float("inf")
    for shrink in _SHRINKS:
        scale = float(torch.tensor(max(largest * shrink / _LARGEST_CODE, 1e-6)).half())
        rounded = (values / scale).round().clamp(-_LARGEST_CODE - 1, _LARGEST_CODE) * scale
        error = float((rounded - values).square().mean())
        if error < least:
            best, least = scale, error
    return best, least / max(float(values.square().mean()), 1e-30)
