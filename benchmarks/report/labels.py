"""Where the numbers of points go, so that no two lie over one another at any width of the page."""

from __future__ import annotations

from collections.abc import Sequence

# Width and height of the plot itself on a phone, a tablet and a desk.
_PLOTS_PX = ((225, 300), (640, 300), (1100, 300))
# Two numbers with so many pixels between their middles can be read apart.
_APART_PX = (24, 18)
# Beside the middle of the point; y points down, as plotly has it.
_OFFSETS_PX = (
    (0, 0), (30, -20), (-30, -20), (30, 20), (-30, 20), (0, -40), (0, 40), (54, 0), (-54, 0), (56, -36), (-56, -36),
    (56, 36), (-56, 36), (84, -16), (-84, -16), (84, 16), (-84, 16), (0, -62), (0, 62),
)  # fmt: skip


def place_labels(points: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """The offset in pixels of each point's number from the point.

    Args:
        points: where each is, as shares of the plot's width, and of its height from below.
    """
    placed: list[tuple[int, int]] = []
    for number, point in enumerate(points):
        others = list(zip(points[:number], placed, strict=True))
        free = (offset for offset in _OFFSETS_PX if all(_apart(point, offset, *other) for other in others))
        placed.append(next(free, _OFFSETS_PX[-1]))
    return placed


def _apart(
    point: tuple[float, float], offset: tuple[int, int], other: tuple[float, float], its: tuple[int, int]
) -> bool:
    """Whether two numbers can be read at every width."""
    for width, height in _PLOTS_PX:
        x = abs((point[0] - other[0]) * width + offset[0] - its[0])
        y = abs((other[1] - point[1]) * height + offset[1] - its[1])
        if x < _APART_PX[0] and y < _APART_PX[1]:
            return False
    return True
