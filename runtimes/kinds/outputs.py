"""What kinds share whose models are functions from tensors to tensors: how near outputs are, the words for it, latency."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.kinds.kind import (
    Chart,
    Column,
    Compared,
    Figures,
    Grade,
    Outputs,
    Prepared,
    Round,
    Samples,
    percentile_ms,
)
from runtimes.session import EncodingSession
from runtimes.verify.metrics import relative_error, row_cosines, spread_error
from runtimes.workload import Workload

Pairs = list[tuple[NDArray[np.float32], NDArray[np.float32]]]

# What a package is off by, over what inputs differ by among themselves: at 0.05 the order of likenesses stays to the last
# digit that people look at, at 0.3 they follow the model's with a correlation of 0.95, at 0.7 of 0.8, and beyond that a
# search finds other texts. The relative error holds the length and scale of outputs too.
GRADES = (
    Grade("near-lossless", {"max_spread_error": 0.05, "max_relative_error": 0.05}),
    Grade("good", {"max_spread_error": 0.3, "max_relative_error": 0.3}),
    Grade("degraded", {"max_spread_error": 0.7, "max_relative_error": 0.7}),
)
LIMITED = {
    "max_relative_error": "relative_error",
    "max_spread_error": "spread_error",
    "max_abs_difference": "max_abs_difference",
    "min_cosine": "min_cosine",
    "min_mean_cosine": "mean_cosine",
}
FIGURES = (
    Column("min_cosine", "min cosine", 6),
    Column("mean_cosine", "mean cosine", 6),
    Column("relative_error", "relative error", 5),
    Column("spread_error", "of the spread", 5),
    Column("max_abs_difference", "max abs difference", 5),
)
COMPARED = (
    Compared("mean_cosine", 1e-5, from_one=True),
    Compared("min_cosine", 1e-5, from_one=True),
    Compared("spread_error", 1e-3),
    Compared("max_abs_difference", 1e-3),
)
SPEED = (
    Column("latency_ms_p50", "latency ms p50", 2),
    Column("latency_ms_p90", "p90", 2),
    Column("latency_ms_p99", "p99", 2),
)


TIMED = (("latency", "latency_s"),)


def apart(own: Outputs, other: Outputs) -> float:
    """The relative error of what is named in both."""
    return relative_error([(own[name], other[name]) for name in own])


def chart_of(models: str) -> Chart:
    """The axes of the report's charts; `models` is what these packages are called."""
    return Chart(
        models=models,
        time=("latency_ms_p50", "ms per run (median)"),
        distance=("mean_cosine", "1 - mean cosine to the fp32 model"),
        samples=("latency_s", "Time per run"),
        from_one=True,
    )


def distances(pairs: Mapping[str, Pairs]) -> Figures:
    """The figures of outputs, by their names, beside the Reference's: each a list of (reference, observed)."""
    largest, worst = 0.0, ""
    for name, each in pairs.items():
        for reference, observed in each:
            difference = float(np.abs(reference - observed).max())
            if not np.isfinite(difference) or difference >= largest:
                largest, worst = difference, name
    cosine = np.concatenate([row for each in pairs.values() for row in row_cosines(each)])
    return {
        "rows": len(cosine),
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "relative_error": max(relative_error(each) for each in pairs.values()),
        "spread_error": max(spread_error(each) for each in pairs.values()),
        "max_abs_difference": largest,
        "worst_output": worst,
    }


def repeated(
    session: EncodingSession, inputs: Mapping[str, NDArray[Any]], workload: Workload, length: int | None
) -> Prepared:
    """One input of `length` tokens, run as often as the workload says."""
    repetitions, warmup = workload.repetitions, workload.warmup_repetitions
    if repetitions is None or warmup is None:
        raise UnusableInput("It is measured with repetitions and warmup_repetitions; the workload lacks one.")
    ran = replace(workload, prompt_tokens=None, generated_tokens=None, context_length=None, sequence_length=length)

    def run(count: int) -> Round:
        latencies = []
        for _ in range(count):
            started = time.perf_counter()
            session.run(inputs)
            latencies.append(time.perf_counter() - started)
        return {"latency_s": latencies}

    return Prepared(lambda: run(repetitions), lambda: run(warmup), ran, lambda: session.run(inputs))


def summarize(samples: Samples, workload: Workload, package: Package, bandwidth: float | None) -> Figures:
    """The latency of a run."""
    every = [value for part in samples["latency_s"] for value in part]
    return {f"latency_ms_p{share}": percentile_ms(every, share / 100) for share in (50, 90, 99)}
