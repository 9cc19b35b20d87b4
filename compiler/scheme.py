"""Scheme: how weights are stored. One table of names that mean the same in every target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["float", "integer", "gguf"]


@dataclass(frozen=True)
class Scheme:
    """A way to store weights.

    Attributes:
        name: as it stands in a recipe, e.g. `int4-rtn-g32` or `Q4_K_M`.
        family: `float`, `integer` (ours) or `gguf` (llama.cpp's own quantizer).
        bits_per_weight: stored bits per weight of a matrix, scales included, as the format defines it.
        block: weights that share a scale along the input dimension; 0 when there are no blocks. Rows must divide by it.
        method: how codes are found where edgec finds them: `rtn` (round to nearest), `gptq`, or `lut` (places in palettes,
            found by k-means, and by GPTQ on them where a calibration text is given); else empty.
        code_bits: bits of a code there; 0 elsewhere, and where each layer has its own.
        symmetric: whether codes have one zero point, the middle.
        rounds_activations: whether inputs of layers are rounded too, to ranges measured on calibration samples.
    """

    name: str
    family: Family
    bits_per_weight: float
    block: int = 0
    method: Literal["", "rtn", "gptq", "lut"] = ""
    code_bits: int = 0
    symmetric: bool = True
    rounds_activations: bool = False

    @property
    def mixed(self) -> bool:
        """Whether each layer gets bits of its own, under a budget."""
        return bool(self.method) and self.code_bits == 0


def _float(name: str, bits: float) -> Scheme:
    return Scheme(name, "float", bits)


def _codes(method: Literal["rtn", "gptq"], bits: int, block: int, symmetric: bool) -> Scheme:
    """A float16 scale for each group, and a zero point of the code's bits where it is not the middle."""
    name = f"int{bits}-{method}-{f'g{block}' if block else 'pc'}{'' if symmetric else '-asym'}"
    extra = (16 + (0 if symmetric else bits)) / block if block else 0.0
    return Scheme(name, "integer", bits + extra, block, method, bits, symmetric)


_METHODS: tuple[Literal["rtn", "gptq"], ...] = ("rtn", "gptq")
CODE_SCHEMES: tuple[Scheme, ...] = tuple(
    _codes(method, bits, block, symmetric)
    for method in _METHODS
    for bits in (2, 3, 4, 8)
    for block in (32, 64, 128, 0)
    for symmetric in (True, False)
)

# The budget decides its bits per weight; the fewest are named here.
MIXED = Scheme("mixed-gptq-g32", "integer", 4.5, 32, "gptq")
PALETTES = (Scheme("lut4", "integer", 4, 0, "lut", 4, False), Scheme("lut6", "integer", 6, 0, "lut", 6, False))

# Bits per weight of GGUF types follow the block structures in ggml-common.h; of the K mixtures, the base type's.
SCHEMES: tuple[Scheme, ...] = (
    _float("fp32", 32),
    _float("fp16", 16),
    _float("bf16", 16),
    Scheme("int8", "integer", 8),
    *CODE_SCHEMES,
    MIXED,
    *PALETTES,
    Scheme("w8a8", "integer", 8, rounds_activations=True),
    Scheme("int8-static", "integer", 8, rounds_activations=True),
    Scheme("F32", "gguf", 32),
    Scheme("F16", "gguf", 16),
    Scheme("BF16", "gguf", 16),
    Scheme("Q8_0", "gguf", 8.5, 32),
    Scheme("Q4_0", "gguf", 4.5, 32),
    Scheme("Q4_1", "gguf", 5.0, 32),
    Scheme("Q5_0", "gguf", 5.5, 32),
    Scheme("Q5_1", "gguf", 6.0, 32),
    Scheme("Q2_K", "gguf", 2.625, 256),
    Scheme("Q2_K_S", "gguf", 2.625, 256),
    Scheme("Q3_K_S", "gguf", 3.4375, 256),
    Scheme("Q3_K_M", "gguf", 3.4375, 256),
    Scheme("Q3_K_L", "gguf", 3.4375, 256),
    Scheme("Q4_K_S", "gguf", 4.5, 256),
    Scheme("Q4_K_M", "gguf", 4.5, 256),
    Scheme("Q5_K_S", "gguf", 5.5, 256),
    Scheme("Q5_K_M", "gguf", 5.5, 256),
    Scheme("Q6_K", "gguf", 6.5625, 256),
)

# llama-quantize takes these short names too.
ALIASES: tuple[tuple[str, str], ...] = (("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M"))


def find_scheme(name: str) -> Scheme | None:
    """The scheme of that name, or of that alias; None when there is none."""
    name = dict(ALIASES).get(name, name)
    return next((scheme for scheme in SCHEMES if scheme.name == name), None)


def estimate_weight_bytes(scheme: Scheme, matrix_weights: int, other_weights: int) -> int:
    """Bytes of a model in `scheme`: matrices at the scheme's bits, everything else (norms, biases) in fp32."""
    other_bits = 32 if scheme.family != "float" else scheme.bits_per_weight
    return int((matrix_weights * scheme.bits_per_weight + other_weights * other_bits) / 8)
