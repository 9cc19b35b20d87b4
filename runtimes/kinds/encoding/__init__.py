"""encoding: encoders of texts and pictures, functions from tensors to tensors."""

from __future__ import annotations

import math

from compiler.scheme import Scheme
from runtimes.kinds.encoding.measure import prepare, summarize
from runtimes.kinds.encoding.reference import expect, probe
from runtimes.kinds.encoding.use import check, use
from runtimes.kinds.encoding.whole_batches import in_whole_batches
from runtimes.kinds.kind import Chart, Column, Kind

# Smallest cosine of an output row to the Reference's. Set above what good packages of these schemes show.
_COSINES: dict[str, float] = {
    "fp32": 0.9999, "F32": 0.9999, "fp16": 0.999, "F16": 0.999, "bf16": 0.99, "BF16": 0.99, "int8": 0.85, "w8a8": 0.85,
    "Q8_0": 0.99, "Q6_K": 0.97, "Q5_K_M": 0.95, "Q5_K_S": 0.95, "Q5_1": 0.95, "Q5_0": 0.95, "Q4_K_M": 0.90, "Q4_K_S": 0.90,
    "Q4_1": 0.85, "Q4_0": 0.85, "Q3_K_L": 0.80, "Q3_K_M": 0.80, "Q3_K_S": 0.80, "Q2_K": 0.60, "Q2_K_S": 0.60,
}  # fmt: skip


# What a package may be off by, of what texts differ by. At 0.7 likenesses still follow the model's with a correlation of 0.8.
_LEAST_SPREAD_ERROR, _MOST_SPREAD_ERROR = 0.1, 0.7


def limits(scheme: Scheme) -> dict[str, float]:
    """The relative error is held to what the cosine allows a vector of the same length: a wrong scale is wrong."""
    if not scheme.method:
        cosine = _COSINES[scheme.name]
    elif scheme.method == "lut":
        cosine = 0.95 if scheme.code_bits == 6 else 0.6
    else:
        cosine = {8: 0.97, 4: 0.85, 3: 0.6, 2: 0.0}[scheme.code_bits or 4]
    error = math.sqrt(2 - 2 * cosine)
    spread = max(error, min(_MOST_SPREAD_ERROR, max(_LEAST_SPREAD_ERROR, 3 * error)))
    return {"max_relative_error": error, "max_spread_error": spread, "min_cosine": cosine}


KIND = Kind(
    name="encoding",
    title="Encoders",
    expect=expect,
    probe=probe,
    limits=limits,
    limited={
        "max_relative_error": "relative_error",
        "max_spread_error": "spread_error",
        "max_abs_difference": "max_abs_difference",
        "min_cosine": "min_cosine",
        "min_mean_cosine": "mean_cosine",
    },
    figures=(
        Column("min_cosine", "min cosine", 6),
        Column("mean_cosine", "mean cosine", 6),
        Column("relative_error", "relative error", 5),
        Column("spread_error", "of the spread", 5),
        Column("max_abs_difference", "max abs difference", 5),
    ),
    prepare=prepare,
    timed=(("latency", "latency_s"),),
    summarize=summarize,
    speed=(
        Column("latency_ms_p50", "latency ms p50", 2),
        Column("latency_ms_p90", "p90", 2),
        Column("latency_ms_p99", "p99", 2),
    ),
    compared=(("max_abs_difference", 1e-3),),
    chart=Chart(
        models="encoders",
        time=("latency_ms_p50", "ms per run (median)"),
        distance=("mean_cosine", "1 - mean cosine to the fp32 model"),
        samples=("latency_s", "Time per run"),
        from_one=True,
    ),
    check=check,
    use=use,
    wrap=in_whole_batches,
)
