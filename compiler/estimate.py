"""What a model takes before anything is built: cache, inference and training memory."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.model import Model
from compiler.scheme import estimate_weight_bytes, find_scheme

# Weights, gradients and Adam's two moments: all in fp32, or 16-bit weights and gradients beside fp32 weights and moments.
_ADAM_BYTES_PER_PARAMETER = 16
_LORA_RANK = 16
_CACHE_TOKENS = 1024


@dataclass(frozen=True)
class SchemeEstimate:
    """Weight bytes at a scheme, and inference memory with 1024 tokens of 16-bit cache (decoders)."""

    scheme: str
    weight_bytes: int
    inference_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Attributes as named. `training` has what is trained and its bytes, activations aside."""

    kv_cache_bytes_per_1k_tokens: int | None
    training: tuple[tuple[str, int], ...]
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

    # An adapter of rank r has r rows and r columns for each matrix (LoRA, arXiv 2106.09685).
    adapters = sum(_LORA_RANK * sum(t.shape) for t in model.tensors if len(t.shape) == 2) * _ADAM_BYTES_PER_PARAMETER
    whole = model.parameters * _ADAM_BYTES_PER_PARAMETER
    return Estimate(
        kv_cache_bytes_per_1k_tokens=cache or None,
        training=(
            ("fp32 with Adam", whole),
            ("fp16 with fp32 master weights and Adam", whole),
            (f"LoRA of rank {_LORA_RANK} on int8", at("int8").weight_bytes + adapters),
            (f"LoRA of rank {_LORA_RANK} on int4", at("int4-rtn-g32").weight_bytes + adapters),
        ),
        memory=tuple(at(name) for name in ("fp32", "fp16", "int8", "int4-rtn-g32")),
    )
