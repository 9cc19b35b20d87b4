"""How many operations a second a machine makes in a product of matrices of 8-bit integers."""

from __future__ import annotations

import time

import numpy as np

_ROWS = 1024
_SECONDS = 0.5
# An ONNX model of one operator, MatMulInteger(uint8 (m, k), int8 (k, n)) -> int32 (m, n): boards have no writer of ONNX files.
PRODUCT = (
    b'\x08\x08:b\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12\x01m'
    b"\n\x03\x12\x01kZ\x15\n\x01b\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01k\n\x03\x12\x01nb\x15\n\x01c\x12\x10\n\x0e\x08\x06"
    b"\x12\n\n\x03\x12\x01m\n\x03\x12\x01nB\x04\n\x00\x10\n"
)


def measure_int8(threads: int) -> float | None:
    """Operations a second of ONNX Runtime's product of 1024 rows: the best of half a second. None where it is not installed.

    The second matrix is put in order at each call, which a runtime does once with weights: a processor with instructions for
    such products has up to a seventh more.
    """
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except ModuleNotFoundError:
        return None
    options = SessionOptions()
    options.intra_op_num_threads = threads
    session = InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    given = {
        "a": generator.integers(0, 256, (_ROWS, _ROWS), np.uint8),
        "b": generator.integers(-128, 128, (_ROWS, _ROWS), np.int8),
    }
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS or not best:
        started = time.perf_counter()
        session.run(None, given)
        best = max(best, 2 * _ROWS**3 / (time.perf_counter() - started))
    return best
