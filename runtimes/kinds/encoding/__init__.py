"""encoding: encoders of texts and pictures, functions from tensors to tensors."""

from __future__ import annotations

from runtimes.kinds.encoding.measure import prepare, summarize
from runtimes.kinds.encoding.reference import expect, probe
from runtimes.kinds.encoding.use import check, use
from runtimes.kinds.encoding.whole_batches import in_whole_batches
from runtimes.kinds.kind import Chart, Column, Compared, Grade, Kind, StoredCheck

# What a package is off by, over what texts differ by among themselves: at 0.05 the order of likenesses stays to the last
# digit that people look at, at 0.3 they follow the model's with a correlation of 0.95, at 0.7 of 0.8, and beyond that a
# search finds other texts. The relative error holds the length and scale of outputs too.
GRADES = (
    Grade("near-lossless", {"max_spread_error": 0.05, "max_relative_error": 0.05}),
    Grade("good", {"max_spread_error": 0.3, "max_relative_error": 0.3}),
    Grade("degraded", {"max_spread_error": 0.7, "max_relative_error": 0.7}),
)

KIND = Kind(
    name="encoding",
    title="Encoders",
    expect=expect,
    probe=probe,
    grades=GRADES,
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
    compared=(
        Compared("mean_cosine", 1e-5, from_one=True),
        Compared("min_cosine", 1e-5, from_one=True),
        Compared("spread_error", 1e-3),
        Compared("max_abs_difference", 1e-3),
    ),
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
    stored=StoredCheck(
        "runtimes.kinds.encoding.stored:write_stored", "relative error", factor=2, floor=1e-3, floor_float16=5e-3
    ),
)
