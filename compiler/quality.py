"""Words for how near a package is to the fp32 model, the best first. What deserves which, each kind of model says."""

from __future__ import annotations

QUALITIES = ("near-lossless", "good", "degraded", "unusable")
UNUSABLE = QUALITIES[-1]
# What is asked of a package where nothing is said.
LEAST = "degraded"


def is_at_least(quality: str, asked: str) -> bool:
    """Whether a word is the asked one or a better one."""
    return QUALITIES.index(quality) <= QUALITIES.index(asked)
