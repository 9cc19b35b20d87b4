"""What a package will take and do on a device, told before it is built: from shapes, the device's figures, and what was seen.

The factors were taken on one x86-64 machine of two cores with SmolLM2-135M and MiniLM: largest resident set without imports,
over the bytes of weights that are read, keys and values aside; and the operations a second of a prompt or an input, and of a
token beside reading its weights, over those of numpy's products of float32 matrices there. Measurements of the user's own
(benchmarks/history.py) take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.history import Seen
from compiler.model import Model
from compiler.operations import operations
from compiler.recipe import Recipe
from compiler.size import is_tied, matrices_of, vector_weights
from runtimes.devices.profile import DeviceProfile

# Of the theoretical bandwidth of memory, what decoding reaches on a processor (Pi 5: 0.62 and 0.65; OnePlus 12: 0.57 to 0.74).
_OF_PEAK = 0.6
_UNSURE_MEMORY, _UNSURE_SPEED, _UNSURE_PEAK = 0.2, 0.3, 0.45
# Operations of float32 over those of float64.
_OF_DOUBLE = 2.0
_FEWEST = 3
_TABLE_BITS = 8.5


@dataclass(frozen=True)
class Range:
    """A figure, and between what it is likely to lie."""

    low: float
    middle: float
    high: float


# Bits of a weight up to which a class of schemes goes: 4-bit codes, those up to 6, 8 bits, float16, and float32 beyond.
_CLASSES = (4.9, 7.0, 9.0, 16.0)


@dataclass(frozen=True)
class RuntimeCost:
    """What a runtime takes.

    Attributes:
        imports_bytes: resident before a package is opened.
        base_bytes: whatever the package.
        factors: of the bytes of weights that are read, in memory, by class of bits.
        cache_element_bytes: of a key or value.
        products: operations a second over those of numpy's float32 products, of many tokens at once, by class of bits; None
            where nothing was measured.
        shares: of the bandwidth of memory while decoding, by class of bits, where its products are not known; None for what
            does not decode, or as above.
        decode: operations a second over those of numpy's products, of one token, beside the time that reading takes.
        holds_all: the factors are of the package's bytes: tables that are only looked up lie in its memory too, on every core.
        reads_cache: a token reads the whole cache, however many tokens are in it: its graph is of one shape.
    """

    imports_bytes: int
    base_bytes: int
    factors: tuple[float, float, float, float, float]
    cache_element_bytes: int
    products: tuple[float, float, float, float, float] | None
    shares: tuple[float, float, float, float, float] | None = None
    decode: tuple[float, float, float, float, float] | None = None
    holds_all: bool = False
    reads_cache: bool = False


COSTS: dict[str, RuntimeCost] = {
    "llamacpp": RuntimeCost(
        54_000_000,
        33_000_000,
        (1.7, 1.2, 1.0, 1.0, 1.0),
        2,
        (1.05, 0.6, 0.75, 0.75, 0.75),
        (0.48, 0.40, 0.55, 0.60, 0.65),
        (0.32, 0.25, 0.285, 0.43, 0.43),
    ),
    "ortgenai": RuntimeCost(
        68_000_000,
        0,
        (2.55, 2.4, 1.9, 1.35, 1.3),
        4,
        (1.2, 1.2, 1.2, 1.2, 1.2),
        (0.45, 0.45, 0.62, 0.62, 0.85),
        (0.43, 0.4, 0.4, 0.4, 2.0),
    ),
    "onnxruntime": RuntimeCost(74_000_000, 0, (1.6, 1.6, 1.6, 2.2, 1.5), 4, (1.25, 1.25, 2.2, 1.2, 1.3)),
    "litertlm": RuntimeCost(
        69_000_000,
        0,
        (2.95, 2.9, 2.7, 5.35, 2.4),
        4,
        (1.95, 1.95, 2.1, 1.2, 1.2),
        (0.53, 0.55, 0.60, 0.60, 0.87),
        (0.4, 0.4, 0.485, 0.21, 2.0),
    ),
    # Weights and cache in the accelerator's memory; no chip was measured.
    "neuron": RuntimeCost(0, 0, (1.0, 1.0, 1.0, 1.0, 1.0), 2, None, holds_all=True, reads_cache=True),
    "litert": RuntimeCost(55_000_000, 0, (0.95, 0.95, 1.15, 3.5, 1.0), 4, (2.1, 2.1, 2.2, 1.5, 1.5)),
}


def _class_of(bits: float) -> int:
    return next((place for place, most in enumerate(_CLASSES) if bits <= most), len(_CLASSES))


def bits_of(recipe: Recipe, stored: float | None = None) -> float:
    """Bits of a weight in the blocks of a model.

    `stored` are those of all weights, where the container forces many into other types than the scheme's.
    """
    return stored or recipe.quantization.target_bpw or recipe.scheme.bits_per_weight


def runtime_for(target: str, model: Model) -> str | None:
    """What runs a target's packages of a model; None where edgec has no figures of it."""
    named = {"gguf": ("llamacpp", "llamacpp"), "onnx": ("ortgenai", "onnxruntime"), "tflite": ("litertlm", "litert")}
    named["neuron"] = ("neuron", "neuron")
    return named[target][0 if model.is_decoder else 1] if target in named else None


def cache_bytes(model: Model, recipe: Recipe, runtime: str | None, tokens: int, cores: int = 1) -> int:
    """Bytes of keys and values on all cores; one with fewer heads than cores has some on several."""
    if runtime is None or not model.is_decoder:
        return 0
    element = COSTS[runtime].cache_element_bytes
    if COSTS[runtime].holds_all and recipe.scheme.name == "fp32":
        element = 4
    heads = max(model.geometry.kv_heads, 1)
    return model.geometry.kv_cache_bytes(tokens, element) * max(cores, heads) // heads


def predict_memory(
    model: Model,
    digest: str,
    recipe: Recipe,
    weights: tuple[int, int],
    runtime: str | None,
    context: int,
    history: Sequence[Seen],
    stored_bits: float | None = None,
    cores: int = 1,
) -> Range | None:
    """The largest resident set in bytes, imports and caches of `context` tokens within; None where nothing is known.

    `digest` is the model's: how large another model's cache was is not known, so of decoders only its own memory tells.
    `weights` are the bytes of those that are read for a token, and of the package.
    """
    if runtime is None:
        return None
    cost = COSTS[runtime]
    read_bytes = weights[1] if cost.holds_all else weights[0]
    cache = cache_bytes(model, recipe, runtime, context, cores)
    beside = cost.imports_bytes + cost.base_bytes + cache
    factor = cost.factors[_class_of(bits_of(recipe, stored_bits))]

    def seen(each: Seen) -> float | None:
        if each.memory_bytes is None or each.read_bytes <= 0 or (model.is_decoder and each.model != digest):
            return None
        own = (
            model.geometry.kv_cache_bytes(each.context_length or 0, cost.cache_element_bytes) if model.is_decoder else 0
        )
        found = (each.memory_bytes - cost.base_bytes - own) / each.read_bytes
        return found if found > 0 else None

    learned = _learned(history, runtime, str(recipe), seen)
    around = _around(factor, learned, _UNSURE_MEMORY)
    return Range(*(beside + read_bytes * each for each in (around.low, around.middle, around.high)))


def read_bytes_of(model: Model, recipe: Recipe, package_bytes: int) -> int:
    """Bytes of weights that are read for a token: all but an embedding that is only looked up. Of encoders, all bytes.

    Heads of edgec's own schemes have 8 bits, and so have llama.cpp's of 4.
    """
    matrices = matrices_of(model)
    if not model.is_decoder or not any(each.place == "embedding" for each in matrices):
        return package_bytes
    bits, tied = bits_of(recipe), is_tied(model)
    total = 4 * vector_weights(model)
    for each in matrices:
        if each.place == "embedding" and not tied:
            continue
        table = each.place in ("embedding", "head") and recipe.scheme.family != "float"
        total += int(each.elements * (max(bits, _TABLE_BITS) if table else bits) / 8)
    return min(total, package_bytes)


def bound_tok_per_s(
    profile: DeviceProfile, model: Model, read_bytes: int, batch: int = 1, cached: int = 0
) -> float | None:
    """Tokens a second that no runtime can exceed, of so many texts together; None where the memory's limit is not known.

    Weights are read once for all texts, and `cached` bytes of all their keys and values; several texts may be held by what
    the device can compute.
    """
    if profile.bandwidth_peak is None:
        return None
    found = batch * profile.bandwidth_peak.amount / (read_bytes + cached)
    # What was measured of one program is no bound of another.
    told = [
        each for each in (profile.fp16, profile.fp32, profile.int8) if each is not None and each.kind == "datasheet"
    ]
    fastest = max((each.amount for each in told), default=None)
    return found if fastest is None or batch == 1 else min(found, fastest / operations(model, 1))


def predict_tok_per_s(
    profile: DeviceProfile,
    model: Model,
    recipe: Recipe,
    read_bytes: int,
    runtime: str | None,
    history: Sequence[Seen],
    stored_bits: float | None = None,
) -> Range | None:
    """Tokens a second of decode with little in the cache; None where bandwidth or runtime are unknown.

    Weights are read and computed with; which of the two takes longer differs from device to device.
    """
    if runtime is None or (shares := COSTS[runtime].shares) is None:
        return None
    place, decode = _class_of(bits_of(recipe, stored_bits)), COSTS[runtime].decode
    if profile.bandwidth is not None:
        learned = _learned(history, runtime, str(recipe), lambda each: each.bandwidth_share)
        # On one machine a recipe reads as fast as it did before, however memory is disturbed just now.
        own = [each.read_bytes_per_s for each in history if each.recipe == str(recipe)]
        if rates := [each / profile.bandwidth.amount for each in own if each is not None]:
            learned = rates
        share = shares[place]
        if profile.fp32 is not None and decode is not None:
            computing_s = operations(model, 1) / (decode[place] * profile.fp32.amount)
            reading_s = read_bytes / profile.bandwidth.amount
            share = reading_s / (reading_s + computing_s)
        bandwidth, around = profile.bandwidth.amount, _around(share, learned, _UNSURE_SPEED)
    elif profile.decode_bandwidth is not None:
        bandwidth, around = profile.decode_bandwidth.amount, _around(1.0, (), _UNSURE_SPEED)
    elif profile.bandwidth_peak is not None:
        bandwidth, around = profile.bandwidth_peak.amount * _OF_PEAK, _around(1.0, (), _UNSURE_PEAK)
    else:
        return None
    return Range(*(bandwidth * each / read_bytes for each in (around.low, around.middle, around.high)))


def predict_seconds(
    profile: DeviceProfile,
    model: Model,
    recipe: Recipe,
    tokens: int,
    runtime: str | None,
    history: Sequence[Seen],
    stored_bits: float | None = None,
) -> Range | None:
    """Seconds of that many tokens at once: a prompt up to the first token, or an input; None where too little is known."""
    if runtime is None or model.takes != "text" or (products := COSTS[runtime].products) is None:
        return None
    share = products[_class_of(bits_of(recipe, stored_bits))]
    if profile.fp32 is not None:
        learned = _learned(history, runtime, str(recipe), lambda each: each.products_share)
        rate, around = profile.fp32.amount, _around(share, learned, _UNSURE_SPEED)
    elif profile.fp64 is not None:
        rate, around = profile.fp64.amount * _OF_DOUBLE, _around(share, (), _UNSURE_PEAK)
    else:
        return None
    work = operations(model, tokens)
    return Range(*(work / (rate * each) for each in (around.high, around.middle, around.low)))


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
