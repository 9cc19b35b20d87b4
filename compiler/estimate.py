"""What a model takes before anything is built: bytes at each scheme, cache, inference and training memory."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.model import Model
from compiler.scheme import SCHEMES, estimate_weight_bytes, find_scheme

_ADAM_BYTES_PER_PARAMETER = 16  # fp32 weights, gradients and two moments
_CACHE_TOKENS = 1024


@dataclass(frozen=True)
class SchemeEstimate:
    """Weight bytes at a scheme, and inference memory with 1024 tokens of 16-bit cache (decoders)."""

    scheme: str
    weight_bytes: int
    inference_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Attributes as named. `training_bytes` is for fp32 with Adam, activations aside."""

    schemes: tuple[SchemeEstimate, ...]
    kv_cache_bytes_per_1k_tokens: int | None
    training_bytes: int
    memory: tuple[SchemeEstimate, ...]


def estimate(model: Model) -> Estimate:
    """Estimate from tensor shapes alone."""
    cache = model.geometry.kv_cache_bytes(_CACHE_TOKENS) if model.is_decoder else 0
    other = model.parameters - model.matrix_weights

    def at(name: str) -> SchemeEstimate:
        scheme = find_scheme(name)
        assert scheme is not None
        weights = estimate_weight_bytes(scheme, model.matrix_weights, other)
        return SchemeEstimate(name, weights, weights + cache)

    return Estimate(
        schemes=tuple(
            at(scheme.name) for scheme in SCHEMES if scheme.method not in ("gptq", "lut") and scheme.symmetric
        ),
        kv_cache_bytes_per_1k_tokens=cache or None,
        training_bytes=model.parameters * _ADAM_BYTES_PER_PARAMETER,
        memory=tuple(at(name) for name in ("fp32", "fp16", "int8", "int4-rtn-g32")),
    )
