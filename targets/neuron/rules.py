"""What Neuron's compiler takes, for Inferentia2 and Trainium 1 (NeuronCore-v2) and Trainium 2, and where that is said.

Sources: AWS's documents at SDK 2.32.0 (aws-neuron/aws-neuron-sdk 81ce03ae, 2026-08-17: compiler/error-codes, release notes,
architecture pages); operators that AWS's own builder of modules emits (aws-neuron/nkipy b91c9800, 2026-08-04), or that the
documents list (clamp, reverse, rsqrt); limits that its documents do not give, from logs of neuronx-cc 2.23 and 2.26 for inf2.
The list of operators that the documents print is of 2023 and leaves out much that compiles, so a module is not held to it.
"""

from __future__ import annotations

from dataclasses import dataclass

# What AWS's own builder emits for NeuronCore-v2 and later, or its documents list.
KNOWN_OPERATORS = frozenset(
    ("abs", "add", "all-gather", "all-reduce", "all-to-all", "and", "broadcast", "ceil", "clamp", "compare",
     "concatenate", "constant", "convert", "convolution", "copy", "cosine", "divide", "dot", "dynamic-update-slice",
     "exponential", "floor", "gather", "get-tuple-element", "iota", "log", "maximum", "minimum", "multiply", "negate", "not",
     "or", "pad", "parameter", "power", "reduce", "reduce-scatter", "reshape", "reverse", "rsqrt", "scatter", "select", "sign",
     "sine", "slice", "sqrt", "subtract", "tanh", "transpose", "tuple", "xor")
)  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """An operator that the compiler does not take.

    Attributes:
        code: the compiler's own, such as NCC_EVRF001; empty where it has none.
        reason: a sentence.
        devices: for which; empty for all.
    """

    code: str
    reason: str
    devices: tuple[str, ...] = ()


_NO_OPERATOR = "NCC_EVRF001"
REFUSED_OPERATORS: dict[str, Refused] = {
    "topk": Refused(_NO_OPERATOR, "take the largest value k times, or leave the choice of tokens to the host"),
    "triangular-solve": Refused(_NO_OPERATOR, "the compiler has no such operator"),
    "cholesky": Refused("", "the compiler has no such operator"),
    "fft": Refused("", "the compiler has no such operator"),
    "conditional": Refused("", "compute both ways and select"),
    "while": Refused("", "only loops of a known number of turns compile; unroll it"),
    "set-dimension-size": Refused(
        "NCC_EMOD025", "sizes that change at run time do not compile; every size must be fixed"
    ),
    "infeed": Refused("", "a module can only take parameters"),
    "outfeed": Refused("", "a module can only give results"),
    "sort": Refused("NCC_EVRF029", "Trainium 2 does not sort", ("trn2",)),
    "erf": Refused("", "no list of Neuron's has it; write it with the exponential function"),
    "logistic": Refused("", "no list of Neuron's has it; write it with the hyperbolic tangent"),
}
# What is computed inexactly or not at all of integers of 32 bits and more.
WIDE_INTEGERS = ("s32", "u32", "s64", "u64")
NO_INTEGERS: dict[str, Refused] = {
    "dot": Refused("NCC_EVRF035", "products of integers are not computed; use floats"),
    "scatter": Refused("NCC_EVRF060", "integers are scattered as float32, exact up to 2^24"),
    "all-reduce": Refused("NCC_EVRF061", "integers are added up as float32, exact up to 2^24"),
    "reduce-scatter": Refused("NCC_EVRF063", "integers are added up as float32, exact up to 2^24"),
}
# Custom calls that the compiler knows (aws-neuron/nkipy, neuronx-distributed); others end with NCC_EVRF015.
CUSTOM_CALLS = frozenset(("AwsNeuronTopK", "AwsNeuronRmsNorm", "AwsNeuronGelu", "AwsNeuronSilu", "AwsNeuronErf"))

# Element types: what stands for each that the compiler refuses.
REFUSED_TYPES: dict[str, tuple[str, str]] = {
    "f64": ("NCC_ESPP004", "float64 does not exist there; use float32"),
    "c64": ("NCC_EVRF004", "complex numbers are taken by a few operators alone, none of edgec's"),
    "c128": ("NCC_EVRF004", "complex numbers of 128 bits do not exist there"),
    "f8e4m3fn": ("NCC_EVRF051", "this float of 8 bits does not exist there; use f8e4m3"),
    "f8e4m3fnuz": ("NCC_EVRF005", "this float of 8 bits does not exist there"),
    "f8e5m2fnuz": ("NCC_EVRF005", "this float of 8 bits does not exist there"),
    "f8e4m3b11fnuz": ("NCC_EVRF005", "this float of 8 bits does not exist there"),
    "s64": ("", "integers of 64 bits are cut to 32; use int32"),
    "u64": ("", "integers of 64 bits are cut to 32; use uint32"),
    "s4": ("NCC_ESPP004", "integers of 4 bits do not exist there"),
    "u4": ("NCC_ESPP004", "integers of 4 bits do not exist there"),
    "f4e2m1fn": ("NCC_ESPP004", "floats of 4 bits do not exist there"),
}
KNOWN_TYPES = frozenset(
    ("pred", "s8", "s16", "s32", "u8", "u16", "u32", "f16", "f32", "bf16", "f8e4m3", "f8e5m2", "tuple", "token")
)

# A graph's parameters and results on one core: half of the 32 GiB of a chip of two (logs: "DRAM size: 17179869184"), and a
# core of Trainium 2 that stands for two (logs: 25769803776).
CORE_BYTES = {"inf2": 16 << 30, "trn1": 16 << 30, "trn2": 24 << 30}
# Of one tensor (NCC_EVRF023, NCC_EVRF024 in compilers of 2025).
TENSOR_BYTES = 4 << 30
