"""Percentiles and bootstrap intervals; seeded, so that the same samples give the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval (percentile method, Efron 1979)."""

    value: float
    low: float
    high: float


def ratio_interval(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Interval:
    """median(other) / median(base) with a 95 % interval.

    Args:
        base: samples by round. Rounds are resampled whole, then samples within them: samples of one round resemble each
            other, and to treat them as independent would give intervals far too narrow.
        other: the same of the other run.
    """
    value = _median(other) / _median(base)
    generator = np.random.default_rng(0)
    ratios = _resampled_medians(other, generator) / _resampled_medians(base, generator)
    tail = (1 - _CONFIDENCE) / 2
    return Interval(value, float(np.quantile(ratios, tail)), float(np.quantile(ratios, 1 - tail)))


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return float(np.median(np.concatenate([np.asarray(samples, np.float64) for samples in rounds])))


def _resampled_medians(rounds: Sequence[Sequence[float]], generator: np.random.Generator) -> NDArray[np.float64]:
    arrays = [np.asarray(samples, np.float64) for samples in rounds]
    medians = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        chosen = [arrays[pick] for pick in generator.integers(0, len(arrays), len(arrays))]
        drawn = [samples[generator.integers(0, len(samples), len(samples))] for samples in chosen]
        medians[index] = np.median(np.concatenate(drawn))
    return medians
