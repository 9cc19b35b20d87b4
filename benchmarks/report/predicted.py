"""What the report says of each package beside what was to be expected of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.measurement import Measurement, Predicted

# A figure of the summary, its title, its factor and digits, and what was predicted of it.
_FIGURES: tuple[tuple[str, str, float, int, Callable[[Predicted], float | None]], ...] = (
    ("package_bytes", "package MB", 1e-6, 1, lambda told: told.package_bytes),
    ("peak_rss_bytes", "peak resident MB", 1e-6, 0, lambda told: told.memory_bytes),
    ("decode_tok_per_s", "decode tok/s", 1.0, 1, lambda told: told.tok_per_s),
    ("ttft_s", "first token ms", 1e3, 0, lambda told: told.ttft_s),
    ("latency_ms_p50", "latency ms p50", 1.0, 2, lambda told: told.latency_s and told.latency_s * 1e3),
)


def predicted_rows(group: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Titles, and for each measurement `measured / predicted (ratio)`; none where nothing was predicted of any."""
    told = [each for each in _FIGURES if any(_pair(measured, each[0], each[4]) is not None for measured in group)]
    rows = []
    for measured in group:
        cells = []
        for key, _, factor, digits, predicted in told:
            pair = _pair(measured, key, predicted)
            if pair is None:
                cells.append("-")
                continue
            seen, expected = (value * factor for value in pair)
            cells.append(f"{seen:,.{digits}f} / {expected:,.{digits}f} ({pair[0] / pair[1]:.2f})")
        rows.append(cells)
    return [title for _, title, _, _, _ in told], rows


def _pair(
    measured: Measurement, key: str, predicted: Callable[[Predicted], float | None]
) -> tuple[float, float] | None:
    seen = measured.figure(key)
    expected = predicted(measured.predicted) if measured.predicted is not None else None
    # How fast an emulated processor is says nothing.
    timed = key not in ("package_bytes", "peak_rss_bytes")
    return None if seen is None or not expected or (timed and measured.is_emulated) else (seen, expected)
