"""The figures that tell how far a package is from the Reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 32  # rows at a time, so that large vocabularies need no second copy of all logits


@dataclass(frozen=True)
class Distances:
    """Per position: `kl` in nats, whether the most probable token is `same`, and `loss` of the token that follows."""

    kl: NDArray[np.float64]
    same: NDArray[np.bool_]
    loss: NDArray[np.float64]
    reference_loss: NDArray[np.float64]


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def measure_logits(
    reference: NDArray[np.float32], observed: NDArray[np.float32], following: NDArray[np.int64]
) -> Distances:
    """KL(reference || observed) and its companions.

    Args:
        reference: (positions, vocabulary) logits of the Reference.
        observed: the same of the package. A wider vocabulary (padding of the container) is cut.
        following: (positions,) the token that came next, -1 where there is none.
    """
    kl, same, loss, reference_loss = [], [], [], []
    width = reference.shape[1]
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        p, q = log_softmax(reference[rows]), log_softmax(observed[rows, :width])
        kl.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        known = following[rows]
        picked = np.arange(len(known)), np.maximum(known, 0)
        loss.append(np.where(known >= 0, -q[picked], np.nan))
        reference_loss.append(np.where(known >= 0, -p[picked], np.nan))
    return Distances(*(np.concatenate(parts) for parts in (kl, same, loss, reference_loss)))


def join_distances(parts: list[Distances]) -> Distances:
    """All positions of several texts."""
    return Distances(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.same for part in parts]),
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.reference_loss for part in parts]),
    )


def perplexity(loss: NDArray[np.float64]) -> float:
    """exp of the mean loss over the positions that have one."""
    return float(np.exp(np.nanmean(loss)))


def cosines(reference: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each pair of rows (last axis), in float64."""
    a, b = reference.astype(np.float64), observed.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / np.maximum(norms, 1e-30)


def row_cosines(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> list[NDArray[np.float64]]:
    """Cosines of all rows of (reference, observed) pairs, flat. Rows of one value have no direction: all make one row."""
    if pairs[0][0].shape[-1] == 1:
        whole = [np.concatenate([values.reshape(-1) for values in side]) for side in zip(*pairs, strict=True)]
        return [cosines(*whole).reshape(1)]
    return [cosines(reference, observed).reshape(-1) for reference, observed in pairs]


def relative_error(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    """Norm of the difference over the norm of the reference, of all values of (reference, observed) pairs together."""
    differences = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
    return float(np.sqrt(differences / max(sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs), 1e-30)))


# Where outputs hardly differ from one input to the next, rounding alone is as large as what they differ by.
_LEAST_SPREAD = 1e-2


def spread_error(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    """Norm of the difference over what the reference's rows differ by among themselves, of all pairs together.

    Where one direction dominates all outputs, a cosine is near 1 whatever the text. Here their mean is taken out first: at
    1 the package tells inputs no better apart than by chance. A spread of less than a hundredth of the outputs counts as
    that much.
    """
    rows = [np.asarray(reference, np.float64) for reference, _ in pairs]
    widths = {each.shape[-1] for each in rows}
    flat = np.concatenate([each.reshape(-1, each.shape[-1] if len(widths) == 1 else 1) for each in rows])
    differences = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
    spread = float(np.square(flat - flat.mean(0)).sum())
    return float(np.sqrt(differences / max(spread, _LEAST_SPREAD**2 * float(np.square(flat).sum()), 1e-30)))


# A lead of the first token that rounding to float16 can turn round.
_TIE_NATS = 1e-3


@dataclass(frozen=True)
class Step:
    """One step of a greedy continuation: the most probable token, the next, and by how many nats the first leads."""

    token: int
    runner_up: int
    lead_nats: float


def greedy_agreement(steps: Sequence[Step], observed: Sequence[int]) -> tuple[int, int]:
    """(leading tokens that two continuations share, tokens that count).

    What follows a tie that fell the other way does not count, since neither way is wrong.
    """
    for place, (step, token) in enumerate(zip(steps, observed, strict=True)):
        if token == step.token:
            continue
        tie = token == step.runner_up and step.lead_nats < _TIE_NATS
        return place, place if tie else len(steps)
    return len(steps), len(steps)
