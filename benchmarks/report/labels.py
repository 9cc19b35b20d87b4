"""Where the numbers of points go, so that they lie beside one another at any width of the page, while there is room."""

from __future__ import annotations

from collections.abc import Sequence

# Of the plot itself: its width on a phone and on a desk, and its height.
_WIDTHS_PX = (225, 1100)
_HEIGHT_PX = 300
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
        rooms = [min((_room(point, offset, *other) for other in others), default=1.0) for offset in _OFFSETS_PX]
        # The first that is free; where none is, the one with the most room.
        free = next((at for at, room in enumerate(rooms) if room >= 1), max(range(len(rooms)), key=rooms.__getitem__))
        placed.append(_OFFSETS_PX[free])
    return placed


def _room(
    point: tuple[float, float], offset: tuple[int, int], other: tuple[float, float], its: tuple[int, int]
) -> float:
    """How far apart two numbers are at the worst width, 1 being just enough to read both."""
    narrow, wide = ((point[0] - other[0]) * width + offset[0] - its[0] for width in _WIDTHS_PX)
    across = 0.0 if narrow * wide <= 0 else min(abs(narrow), abs(wide))
    down = abs((other[1] - point[1]) * _HEIGHT_PX + offset[1] - its[1])
    return max(across / _APART_PX[0], down / _APART_PX[1])
