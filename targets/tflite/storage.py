"""The forms in which a TFLite file stores weights: signed codes, their scales, and float16.

A scale for each row is float32 in the tensor's own quantization; blocks along a row have a tensor of float16 scales, and no
zero points (`BlockwiseQuantization` of the schema). XNNPACK multiplies by them as bfloat16, so only scales that bfloat16
holds are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.errors import CheckFailed

CODE_TYPES = {4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
_LARGEST_FLOAT16 = 65504.0


def packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes of codes from 0 on as signed ones about the middle, in row order, the first of two in the low half."""
    # In bytes that wrap around, which are those of two's complement.
    flat = np.subtract(codes, np.uint8(2 ** (bits - 1)), dtype=np.uint8).ravel()
    if bits == 8:
        return flat
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray((flat[0::2] & 15) | (flat[1::2] << 4), np.uint8)


def by_row(scales: NDArray[np.floating[Any]]) -> Any:
    """The quantization of a matrix with a scale for each row, or of a vector with one for each value."""
    made = schema.QuantizationParametersT()
    made.quantizedDimension = 0
    made.scale = scales.astype(np.float32).ravel()
    made.zeroPoint = np.zeros(scales.size, np.int64)
    return made


def span_of(low: float, high: float) -> tuple[float, int]:
    """Step and zero point of signed 8-bit numbers over a range around zero: -128 stands for its low end."""
    step = max(high - low, 1e-12) / 255
    return step, round(-128 - low / step)


def in_steps(step: float, zero_point: int) -> Any:
    """The quantization of a tensor of whole numbers that stand for floats."""
    made = schema.QuantizationParametersT()
    made.scale = np.asarray([step], np.float32)
    made.zeroPoint = np.asarray([zero_point], np.int64)
    return made


def in_blocks(scales: int, group_size: int) -> Any:
    """The quantization of a matrix in blocks along a row; `scales` is the index of the tensor that holds theirs."""
    details = schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = scales, -1, group_size
    made = schema.QuantizationParametersT()
    made.quantizedDimension = 0
    made.detailsType, made.details = schema.QuantizationDetails.BlockwiseQuantization, details
    return made


def halved(values: NDArray[np.float32], tensor: str) -> NDArray[np.float16]:
    """The values in float16.

    Raises:
        CheckFailed: one of them is beyond what float16 holds.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST_FLOAT16:
        raise CheckFailed(
            "float16",
            f"Tensor {tensor} has a value of {largest:g}, and float16 ends at {_LARGEST_FLOAT16:g}. Use tflite:fp32.",
        )
    return values.astype(np.float16)
