"""What a package will take and do on a device, told before it is built: from shapes, the device's figures, and what was seen.

The factors were taken on one x86-64 machine of two cores with SmolLM2-135M and MiniLM (docs/peers.md, the demo's table):
largest resident set without imports, over the bytes of the package, keys and values aside; and the share of a plain read's
bandwidth that decoding reached. Measurements of the user's own (benchmarks/history.py) take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.history import Seen
from compiler.model import Model
from compiler.recipe import Recipe
from runtimes.devices.profile import DeviceProfile

_MEBIBYTE = 1 << 20
# Of the theoretical bandwidth of memory, what decoding reaches on a processor (Pi 5: 0.62 and 0.65; OnePlus 12: 0.57 to 0.74).
_OF_PEAK = 0.6
_UNSURE_MEMORY, _UNSURE_SPEED, _UNSURE_PEAK = 0.2, 0.3, 0.45
_FEWEST = 3


@dataclass(frozen=True)
class Range:
    """A figure, and between what it is likely to lie."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class RuntimeCost:
    """What a runtime takes.

    Attributes:
        imports_bytes: resident before a package is opened.
        base_bytes: whatever the package.
        factors: of a package's bytes in memory, by bits of a weight up to 4, up to 8, and more.
        cache_element_bytes: of a key or value.
        share: of the bandwidth of memory while decoding; None for what does not decode.
    """

    imports_bytes: int
    base_bytes: int
    factors: tuple[float, float, float]
    cache_element_bytes: int
    share: float | None = None


COSTS: dict[str, RuntimeCost] = {
    "llamacpp": RuntimeCost(54_000_000, 33_000_000, (1.65, 1.0, 1.0), 2, 0.50),
    "ortgenai": RuntimeCost(68_000_000, 0, (2.45, 2.4, 1.35), 4, 0.50),
    "onnxruntime": RuntimeCost(74_000_000, 0, (2.2, 2.2, 1.58), 4),
    "litertlm": RuntimeCost(69_000_000, 0, (2.6, 2.6, 1.3), 4, 0.58),
    "litert": RuntimeCost(55_000_000, 0, (1.6, 1.6, 1.08), 4),
}


def runtime_for(target: str, model: Model) -> str | None:
    """What runs a target's packages of a model; None where edgec has no figures of it."""
    named = {"gguf": ("llamacpp", "llamacpp"), "onnx": ("ortgenai", "onnxruntime"), "tflite": ("litertlm", "litert")}
    return named[target][0 if model.is_decoder else 1] if target in named else None


def predict_memory(
    model: Model,
    digest: str,
    recipe: Recipe,
    package_bytes: int,
    runtime: str | None,
    context: int,
    history: Sequence[Seen],
) -> Range | None:
    """The largest resident set in bytes, imports and a cache of `context` tokens within; None where nothing is known.

    `digest` is the model's: how large another model's cache was is not known, so of decoders only its own memory tells.
    """
    if runtime is None:
        return None
    cost = COSTS[runtime]
    cache = model.geometry.kv_cache_bytes(context, cost.cache_element_bytes) if model.is_decoder else 0
    beside = cost.imports_bytes + cost.base_bytes + cache
    bits = recipe.scheme.bits_per_weight
    factor = cost.factors[0 if bits < 6 else 1 if bits <= 9 else 2]

    def seen(each: Seen) -> float | None:
        if each.memory_bytes is None or each.package_bytes <= 0 or (model.is_decoder and each.model != digest):
            return None
        own = (
            model.geometry.kv_cache_bytes(each.context_length or 0, cost.cache_element_bytes) if model.is_decoder else 0
        )
        found = (each.memory_bytes - cost.base_bytes - own) / each.package_bytes
        return found if found > 0 else None

    learned = _learned(history, runtime, str(recipe), seen)
    around = _around(factor, learned, _UNSURE_MEMORY)
    return Range(*(beside + package_bytes * each for each in (around.low, around.middle, around.high)))


def decode_read_bytes(model: Model, package_bytes: int, embedding_bytes: int) -> int:
    """Bytes of weights that a token reads: all but an embedding that is not the head."""
    return max(1, package_bytes - embedding_bytes)


def bound_tok_per_s(profile: DeviceProfile, read_bytes: int) -> float | None:
    """Tokens a second that no runtime can exceed; None where it is not known what the memory's rate and width allow."""
    return None if profile.bandwidth_peak is None else profile.bandwidth_peak.amount / read_bytes


def predict_tok_per_s(
    profile: DeviceProfile, recipe: Recipe, read_bytes: int, runtime: str | None, history: Sequence[Seen]
) -> Range | None:
    """Tokens a second of decode with little in the cache; None where bandwidth or runtime are unknown."""
    if runtime is None or (share := COSTS[runtime].share) is None:
        return None
    if profile.bandwidth is not None:
        learned = _learned(history, runtime, str(recipe), lambda each: each.bandwidth_share)
        bandwidth, around = profile.bandwidth.amount, _around(share, learned, _UNSURE_SPEED)
    elif profile.decode_bandwidth is not None:
        bandwidth, around = profile.decode_bandwidth.amount, _around(1.0, (), _UNSURE_SPEED)
    elif profile.bandwidth_peak is not None:
        bandwidth, around = profile.bandwidth_peak.amount * _OF_PEAK, _around(1.0, (), _UNSURE_PEAK)
    else:
        return None
    return Range(*(bandwidth * each / read_bytes for each in (around.low, around.middle, around.high)))


def _learned(history: Sequence[Seen], runtime: str, recipe: str, figure: Callable[[Seen], float | None]) -> list[float]:
    """What was seen of a recipe; of its runtime where the recipe was seen too seldom."""
    of_runtime = [(each.recipe, value) for each in history if each.runtime == runtime and (value := figure(each))]
    of_recipe = [value for name, value in of_runtime if name == recipe]
    return of_recipe or ([value for _, value in of_runtime] if len(of_runtime) >= _FEWEST else [])


def _around(given: float, learned: Sequence[float], unsure: float) -> Range:
    """The median of what was learned, or what is given, and an interval that narrows with what is known."""
    if not learned:
        return Range(given * (1 - unsure), given, given * (1 + unsure))
    middle = float(np.median(learned))
    if len(learned) < _FEWEST:
        return Range(middle * (1 - unsure / 2), middle, middle * (1 + unsure / 2))
    low, high = np.quantile(learned, [0.1, 0.9])
    return Range(min(float(low), middle * 0.95), middle, max(float(high), middle * 1.05))
