"""Texts as an encoder takes them: the package's tokenizer, the arrays, and their padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.package import Package
from runtimes.session import EncodingSession

_TOKENIZER_CONFIG = "tokenizer_config.json"

TOKENIZER = "tokenizer.json"


def packaged_tokenizer(package: Package) -> Any | None:
    """The tokenizer in the package, which neither pads nor cuts; None where it has none."""
    from tokenizers import Tokenizer

    file = package.folder / TOKENIZER
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def require_tokenizer(package: Package) -> Any:
    """The tokenizer in the package.

    Raises:
        UnusableInput: it has none.
    """
    tokenizer = packaged_tokenizer(package)
    if tokenizer is None:
        raise UnusableInput(f"{package.title} has no {TOKENIZER}, so it takes no text. Build it again.")
    return tokenizer


def text_to_inputs(
    package: Package,
    session: EncodingSession,
    text: str,
    note: Callable[[str], None],
    passage: str | None = None,
) -> dict[str, NDArray[Any]]:
    """A text as the session's inputs: by the runtime's own tokenizer or the one in the package, cut to what it takes.

    Args:
        package: the package.
        session: its session.
        text: the text.
        note: is told when not all of it fits.
        passage: a second text beside it, where the model takes pairs.
    """
    sentence, settings = package.sentence, _settings(package)
    left = settings.get("truncation_side") == "left"
    text = text.lower() if sentence is not None and sentence.lower_case else text
    limits = [session.longest_sequence, None if sentence is None else sentence.max_tokens]
    longest = min((limit for limit in limits if limit is not None), default=None)
    own = session.tokenize(text) if passage is None else None
    if own is not None:
        ids, types = own, None
        count = len(ids)
        if longest is not None and count > longest:
            ids = [ids[0], *ids[1 - longest :]] if left else [*ids[: longest - 1], ids[-1]]
    else:
        tokenizer = require_tokenizer(package)
        encoded = tokenizer.encode(text, passage)
        count = len(encoded.ids)
        if longest is not None and count > longest:
            tokenizer.enable_truncation(longest, direction="left" if left else "right")
            encoded = tokenizer.encode(text, passage)
        ids, types = encoded.ids, encoded.type_ids if _has_segments(settings) else None
    if len(ids) < count:
        part = "last" if left else "first"
        note(
            f"The text has {count} tokens and the package takes {longest}: it is cut, and only the {part} part counts."
        )
    return padded(text_arrays(ids, types), session.fixed_sequence_length)


def _settings(package: Package) -> dict[str, Any]:
    """What the tokenizer's configuration in the package says."""
    file = package.folder / _TOKENIZER_CONFIG
    return read_object(file) if file.is_file() else {}


def _has_segments(settings: dict[str, Any]) -> bool:
    """Whether the tokenizer tells the model which of two texts a token is of."""
    names = settings.get("model_input_names")
    return not isinstance(names, list) or "token_type_ids" in names


def text_arrays(ids: Sequence[int], segments: Sequence[int] | None = None) -> dict[str, NDArray[np.int64]]:
    """One text as int64 (1, tokens) arrays: ids, a mask of ones, and segments, which are 0 where none are given."""
    row = np.asarray([list(ids)], np.int64)
    types = np.zeros_like(row) if segments is None else np.asarray([list(segments)], np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": types}


def padded(inputs: dict[str, NDArray[Any]], length: int | None) -> dict[str, NDArray[Any]]:
    """Padded with zeros to a length; as they are without one, and for pictures."""
    if length is None or "input_ids" not in inputs:
        return inputs
    return {name: np.pad(value, ((0, 0), (0, length - value.shape[1]))) for name, value in inputs.items()}
