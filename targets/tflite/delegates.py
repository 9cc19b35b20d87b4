"""Which operators of a TFLite model the GPU and NNAPI take, told from the file: neither can be asked where a model is built.

The tables are read from LiteRT's source at commit f674577 (release 2.2). `gpu` stands for two delegates: the one that the
interpreter has (tflite/delegates/gpu/common/model_builder.cc, tools/versioning/gpu_compatibility.cc), and the newer ML Drift
that CompiledModel uses (ml_drift_delegate/tflite/operation_parser.cc). An operator that both refuse leaves; one on which they
differ is unsure, and counts as staying. `nnapi` is tflite/delegates/nnapi/nnapi_delegate.cc, `Validate` and `AddTensor`, at
its newest feature level; what a driver then takes of it differs by phone. Neither was run here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from compiler.formats.tflite import name_of, operator_of
from compiler.package import Placement, UnsupportedOperator

GPU, NNAPI = "gpu", "nnapi"
_TYPE = schema.TensorType
_NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
_FLOATS = (_TYPE.FLOAT32, _TYPE.FLOAT16)
_BYTES = (_TYPE.INT8, _TYPE.UINT8)
_MOST_AXES = 4
_ANY = 2**31


@dataclass(frozen=True)
class _Operator:
    """An operator, its version, and the tensors that it takes and gives; a tensor that is left out is None."""

    name: str
    version: int
    options: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    constant: tuple[bool, ...]

    @property
    def moving(self) -> list[Any]:
        """The tensors that are no constants."""
        return [
            *(each for each, fixed in zip(self.inputs, self.constant, strict=True) if each and not fixed),
            *self.outputs,
        ]


# (leaves, reason); an operator that only one of two delegates takes does not leave.
Finding = tuple[bool, str]


def _versions(listed: str) -> dict[str, int]:
    """The highest version that is taken of each operator: `ADD MUL:3`; 2 where none is told, `:` alone for any."""
    found = {}
    for each in listed.split():
        name, colon, version = each.partition(":")
        found[name] = int(version) if version else _ANY if colon else 2
    return found


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_GPU = _versions(
    "ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL: CAST: CONCATENATION CONV_2D:6 COS CUMSUM:1 DENSIFY:1 DEPTHWISE_CONV_2D:6 "
    "DEPTH_TO_SPACE: DEQUANTIZE:3 DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED:9 GATHER:1 GELU GREATER "
    "GREATER_EQUAL HARD_SWISH: LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGISTIC LSTM:4 MAXIMUM MAX_POOL_2D MEAN: MINIMUM "
    "MIRROR_PAD MUL:3 NEG NOT_EQUAL ONE_HOT:1 PACK: PAD PADV2 POW PRELU:1 QUANTIZE REDUCE_MAX: REDUCE_MIN: REDUCE_PROD: RELU "
    "RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE:1 RESIZE_BILINEAR:3 RESIZE_NEAREST_NEIGHBOR:3 RSQRT SELECT:1 SELECT_V2:1 SIGN SIN "
    "SLICE SOFTMAX SPACE_TO_DEPTH SPLIT: SPLIT_V: SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE:4 SUB SUM: TANH TILE: "
    "TRANSPOSE:4 TRANSPOSE_CONV:3 UNPACK:"
)
# What ML Drift takes beside them, or in newer versions.
_ML_DRIFT = _versions(
    "ADD:6 ARG_MAX: CEIL: CONCATENATION:6 CONV_2D:6 DYNAMIC_UPDATE_SLICE: EMBEDDING_LOOKUP: FULLY_CONNECTED:14 LOGICAL_NOT: "
    "LOGICAL_OR: MAXIMUM:4 MINIMUM:4 MUL:8 PAD:5 REDUCE_ALL: REDUCE_ANY: REVERSE_V2: ROUND: SLICE:8 SOFTMAX:4 TOPK_V2: "
    "TRANSPOSE:9"
)
_NNAPI = _versions(
    "ABS:1 ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND CAST:1 CONCATENATION CONV_2D:5 COS:1 DENSIFY: "
    "DEPTHWISE_CONV_2D:3 DEPTH_TO_SPACE: DEQUANTIZE DIV:1 ELU:1 EMBEDDING_LOOKUP:1 EQUAL EXP:1 EXPAND_DIMS:1 FILL:1 FLOOR:1 "
    "FULLY_CONNECTED:5 GATHER GREATER GREATER_EQUAL HARD_SWISH: HASHTABLE_LOOKUP:1 L2_NORMALIZATION L2_POOL_2D:1 LEAKY_RELU:1 "
    "LESS LESS_EQUAL LOCAL_RESPONSE_NORMALIZATION:1 LOG:1 LOGICAL_AND:1 LOGICAL_NOT:1 LOGICAL_OR:1 LOGISTIC LOG_SOFTMAX:1 "
    "LSTM:3 MAXIMUM:3 MAX_POOL_2D MEAN MINIMUM:3 MIRROR_PAD MUL:3 NEG NOT_EQUAL PACK PAD PADV2 POW:1 PRELU:1 QUANTIZE "
    "REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD:1 RELU RELU6 RELU_N1_TO_1 RESHAPE:1 RESIZE_BILINEAR:3 "
    "RESIZE_NEAREST_NEIGHBOR:3 REVERSE_V2:3 RSQRT SELECT SIN:1 SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT:3 SPLIT_V "
    "SQRT:1 SQUARED_DIFFERENCE SQUEEZE:1 STRIDED_SLICE SUB:3 SUM:1 SVDF TANH TILE:1 TOPK_V2 TRANSPOSE TRANSPOSE_CONV:4 UNPACK"
)
# Operators of NNAPI's by the types of their first input; those not named here are not asked for it.
_OF_FLOAT = _names("DIV POW ABS EXP LOG SQRT SIN COS ELU SUM REDUCE_PROD L2_POOL_2D LOG_SOFTMAX")
_OF_NUMBERS = _names(
    "ADD MUL SUB MAXIMUM MINIMUM SQUARED_DIFFERENCE SLICE SPLIT_V GATHER EXPAND_DIMS TILE TOPK_V2 BATCH_MATMUL PACK "
    "RESHAPE SELECT"
)
_OF_BYTES = _names(
    "RELU RELU6 RELU_N1_TO_1 LOGISTIC TANH HARD_SWISH LEAKY_RELU PRELU SOFTMAX AVERAGE_POOL_2D MAX_POOL_2D STRIDED_SLICE "
    "CONCATENATION UNPACK PAD PADV2 SPACE_TO_DEPTH DEPTH_TO_SPACE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR MEAN REDUCE_MAX "
    "REDUCE_MIN"
)
_NNAPI_TYPES = (
    (_OF_FLOAT, (_TYPE.FLOAT32,)),
    (_OF_BYTES, (_TYPE.FLOAT32, *_BYTES)),
    (_OF_NUMBERS, (_TYPE.FLOAT32, _TYPE.INT32, *_BYTES)),
)
_NOT_OF_NNAPI = (_TYPE.INT64, _TYPE.INT4, _TYPE.STRING)
_FREE_SIZES = "a size of the graph is free, and only graphs of fixed sizes are taken"
# What fails when the graph is made, after which none of it is taken (`AddTensor`).
_NO_TYPE = "a type that NNAPI has not, for which all of the graph stays on the CPU"
_ROW_SCALES = "8-bit weights with a scale for each row, for which all of the graph stays on the CPU"
_UNDOING = (_NO_TYPE, _ROW_SCALES)
# Operators of the GPU's that take or give other types than floats and bytes.
_GPU_OTHERS = _names(
    "CAST GATHER ONE_HOT SELECT SELECT_V2 EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL LOGICAL_AND"
)


def predict_placement(model: Any, engine: str) -> Placement:
    """The placement of all signatures by the tables.

    Args:
        model: the schema's object.
        engine: `gpu` or `nnapi`.
    """
    against = {GPU: _against_gpu, NNAPI: _against_nnapi}[engine]
    total = 0
    unsupported: list[UnsupportedOperator] = []
    unsure: list[UnsupportedOperator] = []
    for subgraph in model.subgraphs:
        operators = list(_operators(model, subgraph))
        every = [sorted(against(operator), reverse=True) for operator in operators]
        total += len(operators)
        undone = next((each[0] for each in every if each and each[0][1] in _UNDOING), None)
        if _has_free_sizes(subgraph) or undone is not None:
            every = [[undone or (True, _FREE_SIZES)]] * len(operators)
        for operator, found in zip(operators, every, strict=True):
            if found:
                leaves, reason = found[0]
                place = name_of(operator.outputs[0]) if operator.outputs else ""
                listed = unsupported if leaves else unsure
                listed.append(UnsupportedOperator(operator.name.lower(), place, reason))
    return Placement(engine, "predicted", total, tuple(unsupported), tuple(unsure))


def _has_free_sizes(subgraph: Any) -> bool:
    signatures = (each.shapeSignature for each in subgraph.tensors)
    return any(sizes is not None and len(sizes) and min(sizes) < 0 for sizes in signatures)


def _operators(model: Any, subgraph: Any) -> Iterator[_Operator]:
    for operator in subgraph.operators:
        given = [subgraph.tensors[index] if index >= 0 else None for index in operator.inputs]
        yield _Operator(
            _NAMES[operator_of(model, operator)],
            int(model.operatorCodes[operator.opcodeIndex].version),
            operator.builtinOptions,
            tuple(given),
            tuple(subgraph.tensors[index] for index in operator.outputs),
            tuple(each is not None and model.buffers[each.buffer].data is not None for each in given),
        )


def _rank(tensor: Any) -> int:
    return 0 if tensor.shape is None else len(tensor.shape)


def _too_many_axes(operator: _Operator) -> bool:
    return any(_rank(each) > _MOST_AXES for each in (*operator.inputs, *operator.outputs) if each is not None)


def _against_gpu(operator: _Operator) -> Iterator[Finding]:
    name, version = operator.name, operator.version
    old, new = version <= _GPU.get(name, 0), version <= max(_ML_DRIFT.get(name, 0), _GPU.get(name, 0))
    if not new:
        yield True, f"no operator of the GPU's in version {version}" if name in _GPU else "no operator of the GPU's"
    elif not old:
        yield False, "ML Drift has it, the interpreter's delegate has not"
    if _too_many_axes(operator):
        yield True, f"more than {_MOST_AXES} axes"
    if name not in _GPU_OTHERS and any(each.type not in (*_FLOATS, *_BYTES) for each in operator.moving):
        yield False, "whole numbers, which only ML Drift takes"
    yield from _CHECKS_GPU.get(name, _no_check)(operator)


def _against_nnapi(operator: _Operator) -> list[Finding]:
    """An operator that is refused by itself does no harm to the others; one that is taken and then fails does."""
    refused = list(_refused_by_nnapi(operator))
    every = [*operator.inputs, *operator.outputs]
    if not refused and any(each.type in _NOT_OF_NNAPI for each in every if each is not None):
        return [(True, _NO_TYPE)]
    harmless = [each for each in refused if each[1] not in _UNDOING]
    return harmless or refused


def _refused_by_nnapi(operator: _Operator) -> Iterator[Finding]:
    name, version = operator.name, operator.version
    if name not in _NNAPI:
        yield True, "no operator of NNAPI's"
        return
    if version > _NNAPI[name]:
        yield True, f"version {version}, at most {_NNAPI[name]}"
    if _too_many_axes(operator):
        yield True, f"more than {_MOST_AXES} axes"
    types = next((types for names, types in _NNAPI_TYPES if name in names), None)
    if types is not None and operator.inputs[0].type not in types:
        yield True, "the type of its input"
    yield from _CHECKS_NNAPI.get(name, _no_check)(operator)


def _no_check(operator: _Operator) -> Iterator[Finding]:
    yield from ()


def _gpu_product(operator: _Operator) -> Iterator[Finding]:
    weight = operator.inputs[1]
    details = weight.quantization.details if weight.quantization is not None else None
    if weight.type == _TYPE.INT4 or isinstance(details, schema.BlockwiseQuantizationT):
        yield False, "4-bit weights, for which the interpreter's delegate fails as a whole; ML Drift takes them"


def _gpu_matmul(operator: _Operator) -> Iterator[Finding]:
    if operator.options is not None and (operator.options.adjX or operator.options.adjY):
        yield (
            False,
            "a transposed factor: the interpreter's delegate ignores that, and its numbers are wrong; ML Drift's are not",
        )


def _gpu_mean(operator: _Operator) -> Iterator[Finding]:
    if operator.options is None or not operator.options.keepDims:
        yield False, "a mean that drops its axis, which the interpreter's delegate does not"


def _gpu_slice(operator: _Operator) -> Iterator[Finding]:
    if _rank(operator.inputs[0]) < 3:
        yield False, "a slice of fewer than three axes, which only ML Drift takes"


def _gpu_gather(operator: _Operator) -> Iterator[Finding]:
    if operator.constant[0]:
        yield True, "a look-up in a constant"


def _fixed_shape(operator: _Operator) -> Iterator[Finding]:
    if len(operator.inputs) > 1 and not operator.constant[1]:
        yield True, "a shape that is computed"


def _nnapi_product(operator: _Operator) -> Iterator[Finding]:
    given, weight = operator.inputs[0], operator.inputs[1]
    scales = weight.quantization.scale if weight.quantization is not None else None
    if weight.type == _TYPE.INT8 and scales is not None and len(scales) > 1:
        yield True, _ROW_SCALES
    if given.type in _BYTES and weight.type in _FLOATS:
        yield True, "8-bit inputs with float weights"


def _nnapi_matmul(operator: _Operator) -> Iterator[Finding]:
    x, y = operator.inputs[:2]
    if x.type != y.type:
        yield True, "factors of two types"
    if list(x.shape)[:-2] != list(y.shape)[:-2]:
        yield True, "factors that are repeated to fit"


def _nnapi_look_up(operator: _Operator) -> Iterator[Finding]:
    if operator.inputs[1].type != _TYPE.FLOAT32:
        yield True, "a table that is not float32"


def _nnapi_cast(operator: _Operator) -> Iterator[Finding]:
    for each in (operator.inputs[0], operator.outputs[0]):
        if each.type not in (_TYPE.FLOAT32, _TYPE.INT32, _TYPE.UINT8):
            yield True, "a type that it does not cast"


def _nnapi_transpose(operator: _Operator) -> Iterator[Finding]:
    if not operator.constant[1]:
        yield True, "an order that is computed"


Check = Callable[[_Operator], Iterator[Finding]]
_CHECKS_GPU: Mapping[str, Check] = {
    "FULLY_CONNECTED": _gpu_product,
    "BATCH_MATMUL": _gpu_matmul,
    "MEAN": _gpu_mean,
    "SLICE": _gpu_slice,
    "GATHER": _gpu_gather,
    "RESHAPE": _fixed_shape,
}
_CHECKS_NNAPI: Mapping[str, Check] = {
    "FULLY_CONNECTED": _nnapi_product,
    "BATCH_MATMUL": _nnapi_matmul,
    "EMBEDDING_LOOKUP": _nnapi_look_up,
    "CAST": _nnapi_cast,
    "RESHAPE": _fixed_shape,
    "TRANSPOSE": _nnapi_transpose,
}
