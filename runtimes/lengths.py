"""Graphs that take inputs of a few lengths: an encoder's input is padded to the next of them, and the result is cut; a
language model's text is taken in chunks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput

Arrays = dict[str, NDArray[Any]]
# Outputs (batch, tokens); others with a value for each token have three axes.
_BY_TOKEN = ("start_logits", "end_logits")


def run_padded(run: Callable[[Arrays, int], Mapping[str, Any]], inputs: Arrays, lengths: Sequence[int]) -> Arrays:
    """The outputs of `run` without the places that padding took.

    Args:
        run: takes inputs (batch, length) and that length.
        inputs: integers (batch, tokens).
        lengths: what `run` takes, in rising order.

    Raises:
        UnusableInput: the input is longer than any of them.
    """
    tokens = next(iter(inputs.values())).shape[1]
    length = next((each for each in lengths if each >= tokens), None)
    if length is None:
        taken = ", ".join(map(str, lengths))
        raise UnusableInput(f"An input of {tokens} tokens is longer than any that the package takes: {taken}.")
    padded = {name: np.pad(value, ((0, 0), (0, length - tokens))) for name, value in inputs.items()}
    outputs = {name: np.asarray(value, np.float32) for name, value in run(padded, length).items()}
    return {
        name: value[:, :tokens] if value.ndim == 3 or name in _BY_TOKEN else value for name, value in outputs.items()
    }


def chunk_length(left: int, position: int, lengths: Collection[int], context: int) -> int:
    """How many tokens a language model's next graph takes, where `left` of a text are left.

    The fewest that hold them all, else the most that there are.
    What fills a chunk up must not go beyond the cache: it would be written over tokens before it.
    """
    fitting = [length for length in sorted(lengths) if position + length <= context] or [min(lengths)]
    return next((length for length in fitting if length >= left), fitting[-1])


def require_room(tokens: int, context: int) -> None:
    """Raise UnusableInput where so many tokens do not fit a cache of `context` positions."""
    if tokens > context:
        raise UnusableInput(f"{tokens} tokens do not fit the package's context of {context}.")
