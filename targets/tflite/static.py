"""Products in whole numbers: inputs and results in 8 bits over ranges fixed beforehand (LiteRT 8-bit quantization spec).

Between products the network stays in floats: norms, softmax and GELU in 8 bits would lose it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.codes import read_quantized
from compiler.networks import parts
from targets.tflite import ops
from targets.tflite.graph import Shared, Value
from targets.tflite.lowering import Lowering
from targets.tflite.ranges import ProductRange
from targets.tflite.storage import CODE_TYPES, by_row, in_steps, packed, span_of

_LARGEST_BIAS = 2.0**31 - 1
# Behind the name of a matrix: what the results of its rows are multiplied by.
TIMES = " times"


def _once(lowering: Lowering, key: str, scales: NDArray[Any]) -> Shared:
    """The scales of rows, which all functions of the file share."""
    kept = lowering.weights.scales
    if key not in kept:
        kept[key] = Shared(by_row(scales))
    return kept[key]


def project_static(lowering: Lowering, module: parts.Projection, x: Value, ranges: ProductRange) -> Value:
    """W x + b of floats by way of whole numbers; the weights are codes with a scale for each row."""
    function, weights = lowering.function, lowering.weights
    source = weights.sources[f"{lowering.prefix}.weight"]
    codes = read_quantized(weights.codes[source.tensor])
    first, last = source.rows or (0, codes.rows)
    rows, columns = last - first, codes.columns
    divisors = np.asarray(ranges.divisors, np.float32)
    scales = codes.scales[first:last, 0].astype(np.float32) / divisors
    name = source.tensor if source.rows is None else f"{source.tensor}[{first}:{last},]"
    given = span_of(ranges.low, ranges.high)
    steps = function.once(f"{x.index} in {given}", lambda: ops.quantize(function, x, in_steps(*given)))
    matrix = function.stored(
        name, (rows, columns), CODE_TYPES[8], lambda: packed(codes.codes[first:last], 8), _once(lowering, name, scales)
    )
    added = None
    if module.bias is not None:
        values = lowering.values("bias", (rows,))()
        # Of a row of next to nothing the scale is so small that its bias would not fit 32 bits.
        of_bias = scales.astype(np.float64) * given[0]
        if (np.abs(values / divisors) >= of_bias * _LARGEST_BIAS).any():
            raise UnusableInput(
                f"A row of {source.tensor} holds next to nothing beside its bias, which 32 bits cannot say in its steps. Use "
                "tflite:int8."
            )
        added = function.stored(
            f"{name} bias",
            (rows,),
            schema.TensorType.INT32,
            lambda: np.round(values / divisors / of_bias).astype(np.int32).view(np.uint8),
            _once(lowering, f"{name} bias", of_bias),
        )
    result = in_steps(*span_of(ranges.result_low, ranges.result_high))
    made = ops.dequantize(function, ops.project_in_steps(function, steps, matrix, added, result), version=2)
    if (divisors == 1).all():
        return made
    return ops.multiply(function, made, function.constant(name + TIMES, lambda: divisors))
