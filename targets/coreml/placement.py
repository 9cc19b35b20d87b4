"""Which operators of a Core ML package stay on Apple's Neural Engine, told from the saved package.

Apple publishes no list, and what the engine takes differs by chip and system. The table below says for each rule where it
comes from: documents and code of Apple's, or measurements that somebody published. An operator that a rule names `leaves` the
engine; where sources contradict each other it is only `unsure`, and counts as staying. On macOS the system itself is asked
(targets/coreml/compute_plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.package import Placement, UnsupportedOperator
from targets.coreml.package import read_spec

ENGINE = "ane"
# Sizes of axes in the compiler's own error message, "N[1-65536] D[1-16384] C[1-65536] H[1-16384] W[1-16384]" (A15).
_LARGEST = {"N": 65536, "C": 65536, "D": 16384, "H": 16384, "W": 16384}
# The names of the axes by rank.
_AXES = ("", "W", "NW", "NCW", "NCHW", "NDCHW")
# The longest last axis, which is also where a projection is cut: its outputs end up there.
LARGEST_EXTENT = _LARGEST["W"]
# "The last axis of an ANE buffer is not packed; it must be contiguous and aligned to 64 bytes": Apple, Deploying Transformers
# on the Apple Neural Engine, 2022. An axis of 1 takes 32 times its bytes in float16.
_ALIGNMENT_BYTES = 64
_LARGEST_RANK = 5  # coremltools, converters/mil/mil/program.py
_STATE_STEP = 32  # coremltools issue 2631: a state of width 270 fails to load on the engine, 256 works
_MOST_STATES = 2  # CoreML-LLM, docs/LFM2_CONVERSION_FINDINGS.md: three fail
_WIDEST_KERNEL = 13  # ANEForge, docs/op-catalog.md: the narrowest limit that was measured

_FP16, _FP32, _INT32 = 10, 11, 23
_WIDTHS = {_FP16: 2, _FP32: 4, _INT32: 4}
_FREE = ("const", "read_state", "write_state")


@dataclass(frozen=True)
class Rule:
    """What is known of some operators.

    Attributes:
        kinds: MIL's names.
        leaves: True when they leave the engine; False when sources contradict each other.
        reason: in words.
        source: who says so.
    """

    kinds: tuple[str, ...]
    leaves: bool
    reason: str
    source: str


RULES: tuple[Rule, ...] = (
    Rule(("gather",), True, "a look-up in a table", "ml-ane-transformers, README: the 4 of 606 operators on the CPU"),
    Rule(("gather_along_axis", "gather_nd"), True, "a look-up", "roboflow/rf-detr pull request 1495, M3 Pro"),
    Rule(
        ("scatter", "scatter_nd", "scatter_along_axis"), True, "a scatter",
        "coremltools, converters/mil/frontend/torch/ops.py",
    ),
    Rule(("lstm", "gru", "rnn"), True, "recurrence", "coremltools issue 1780"),
    Rule(("while_loop", "cond"), True, "control flow", "ANEForge, docs/op-catalog.md"),
    Rule(("custom_layer",), True, "code of the app's own", "coremltools issue 1278"),
    Rule(("classify",), True, "labels are strings", "coremltools, MIL.proto"),
    Rule(("topk",), True, "sorting", "roboflow/rf-detr pull request 1495, M3 Pro"),
    Rule(("reduce_argmax", "reduce_argmin"), True, "an index as result", "CoreML-LLM, docs/EXPERIMENTS.md, iPhone 17 Pro"),
    Rule(("cumsum",), True, "a running sum", "CoreML-LLM, docs/QWEN35_ROADMAP.md"),
    Rule(
        (
            "non_zero", "one_hot", "shape", "band_part", "reverse_sequence", "sliding_windows", "reduce_prod", "mod",
            "logical_and", "logical_or", "logical_xor", "random_normal", "random_uniform", "random_bernoulli",
            "random_categorical", "acos", "asin", "sinh", "cosh", "tan", "non_maximum_suppression", "range_1d",
        ),
        True, "no operator of the engine's", "ANEForge, docs/op-catalog.md",
    ),
    Rule(
        ("slice_update",), False, "an update at a place that is known late",
        "CoreML-LLM, docs/MLSTATE_PATTERN.md (stays, iPhone 17 Pro) against coreai-torch issue 6",
    ),
    Rule(
        ("slice_by_size",), False, "a slice at a place that is known late", "ANEForge, docs/op-catalog.md",
    ),
    Rule(
        ("quantize", "dequantize"), False, "activations in 8 bits",
        "onnxsim pull request 1406 (stay, M4) against CoreML-LLM, docs/EXPERIMENTS.md (do not compile, iPhone 17 Pro)",
    ),
    Rule(("scaled_dot_product_attention",), False, "fused attention", "coreai-models, neural_engine_rules.md"),
)  # fmt: skip
_BY_KIND: Mapping[str, Rule] = {kind: rule for rule in RULES for kind in rule.kinds}
_BLOCKWISE = Rule(
    ("constexpr_blockwise_shift_scale",),
    False,
    "its weights have a scale for each block of a row, which Apple recommends for the GPU of a Mac",
    "coremltools, docs-guides/source/opt-quantization-perf.md and issue 2510",
)


def predict_placement(folder: Path) -> Placement:
    """The placement of a saved .mlpackage by the table."""
    total = result_bytes = padded_bytes = 0
    unsupported: list[UnsupportedOperator] = []
    unsure: list[UnsupportedOperator] = []
    # A protobuf map has another order in every process.
    for name, function in sorted(read_spec(folder).mlProgram.functions.items()):
        block = function.block_specializations[function.opset]
        unsupported += _of_states(name, function)
        values = _values(function, block)
        for operation in block.operations:
            if operation.type in _FREE or operation.type.startswith("constexpr_"):
                continue
            total += 1
            title = f"{name}/{operation.outputs[0].name if operation.outputs else operation.type}"
            found = next(_against(operation, values), None)
            if found is not None:
                leaves, reason = found
                (unsupported if leaves else unsure).append(UnsupportedOperator(operation.type, title, reason))
            for result in (values[output.name] for output in operation.outputs):
                own, stored = _bytes(result)
                result_bytes, padded_bytes = result_bytes + own, padded_bytes + stored
    return Placement(ENGINE, "predicted", total, tuple(unsupported), tuple(unsure), result_bytes, padded_bytes)


@dataclass(frozen=True)
class _Value:
    """What is known of a result: MIL.proto's data type, sizes (-1 where free), and what made it."""

    dtype: int
    shape: tuple[int, ...]
    maker: str
    blocks: bool = False


def _values(function: Any, block: Any) -> dict[str, _Value]:
    found = {each.name: _value(each.type, "input") for each in function.inputs}
    for operation in block.operations:
        blocks = operation.type == "constexpr_blockwise_shift_scale" and _has_blocks(operation)
        for output in operation.outputs:
            found[output.name] = _value(output.type, operation.type, blocks)
    return found


def _value(value: Any, maker: str, blocks: bool = False) -> _Value:
    if value.WhichOneof("type") == "stateType":
        return _value(value.stateType.wrappedType, "state", blocks)
    tensor = value.tensorType
    sizes = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions)
    return _Value(tensor.dataType, sizes, maker, blocks)


def _bytes(value: _Value) -> tuple[int, int]:
    """Bytes of a value, and with its last axis padded; (0, 0) where a size is free or it has no axis."""
    if not value.shape or min(value.shape) < 1:
        return 0, 0
    row = value.shape[-1] * _WIDTHS.get(value.dtype, 1)
    rows = math.prod(value.shape[:-1])
    return rows * row, rows * -(-row // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _has_blocks(operation: Any) -> bool:
    scale = operation.inputs["scale"].arguments[0].value.type.tensorType
    sizes = [int(d.constant.size) for d in scale.dimensions]
    return any(size > 1 for size in sizes[1:])


def _against(operation: Any, values: Mapping[str, _Value]) -> Iterator[tuple[bool, str]]:
    """(leaves, reason) for each rule against an operator, those that leave first."""
    bound = [each.name for _, argument in sorted(operation.inputs.items()) for each in argument.arguments if each.name]
    taken = [values[name] for name in bound if name in values]
    given = [values[output.name] for output in operation.outputs]
    rule = _BY_KIND.get(operation.type)
    if rule is not None and rule.leaves:
        yield True, f"{rule.reason} ({rule.source})"
    moving = [each for each in taken if each.maker != "const"]
    if any(each.dtype == _FP32 for each in (*moving, *given)):
        yield True, "32-bit floats (coremltools, docs-guides/source/typed-execution.md)"
    if any(each.dtype == _INT32 for each in given) or (moving and all(each.dtype == _INT32 for each in moving)):
        yield True, "32-bit integers (ANEForge, docs/op-catalog.md)"
    for each in given:
        if len(each.shape) > _LARGEST_RANK:
            yield True, f"{len(each.shape)} axes, at most {_LARGEST_RANK} (coremltools, mil/program.py)"
        for axis, size in zip(
            _AXES[len(each.shape)] if len(each.shape) <= _LARGEST_RANK else "", each.shape, strict=False
        ):
            if size > _LARGEST[axis]:
                yield True, f"an axis of {size}, at most {_LARGEST[axis]} (the compiler's own message, A15)"
    if operation.type == "conv":
        yield from _of_conv(operation, values)
    if any(each.blocks for each in taken):
        yield False, f"{_BLOCKWISE.reason} ({_BLOCKWISE.source})"
    if rule is not None and not rule.leaves and any(each.maker not in ("const", "input") for each in taken[1:]):
        yield False, f"{rule.reason} ({rule.source})"


def _of_conv(operation: Any, values: Mapping[str, _Value]) -> Iterator[tuple[bool, str]]:
    weight = values.get(operation.inputs["weight"].arguments[0].name)
    if weight is None or weight.maker not in ("const", *(f"constexpr_{kind}" for kind in _COMPRESSIONS)):
        yield False, "a kernel that is known late (ANEForge, docs/op-catalog.md)"
    elif len(weight.shape) > 2 and weight.shape[-1] > _WIDEST_KERNEL:
        yield False, f"a kernel of width {weight.shape[-1]} (ANEForge, docs/op-catalog.md)"


_COMPRESSIONS = ("blockwise_shift_scale", "affine_dequantize", "lut_to_dense", "sparse_to_dense", "cast")


def _of_states(name: str, function: Any) -> Iterator[UnsupportedOperator]:
    states = [each for each in function.inputs if each.type.WhichOneof("type") == "stateType"]
    for each in states:
        shape = _value(each.type, "state").shape
        if shape and shape[-1] % _STATE_STEP:
            reason = f"a state whose last axis, {shape[-1]}, is no multiple of {_STATE_STEP} (coremltools issue 2631)"
            yield UnsupportedOperator("state", f"{name}/{each.name}", reason)
    if len(states) > _MOST_STATES:
        reason = f"{len(states)} states, at most {_MOST_STATES} (CoreML-LLM, docs/LFM2_CONVERSION_FINDINGS.md)"
        yield UnsupportedOperator("state", name, reason)
