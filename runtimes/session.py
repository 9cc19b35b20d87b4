"""The contract between a runtime and whoever uses it.

A runtime is a module in `runtimes/` with one function `open_session(package, threads) -> Session`. What a session can do is
told by the kind of the package's task: one small protocol each. A container with fixed shapes, states or several graphs hides
them behind the same calls, and a remote device runs the same session in a process over there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Message = Mapping[str, str]


class Session(Protocol):
    """An open package."""

    def close(self) -> None:
        """Give back memory."""
        ...


class TextCodec(Protocol):
    """The text side of a language model, by the runtime's own means.

    Attributes:
        begin: the token ids with which the runtime begins a text by itself; `encode` leaves them out.
        ends: the token ids at which the runtime ends a text by itself.
    """

    @property
    def begin(self) -> tuple[int, ...]: ...

    @property
    def ends(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised, none added."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        """The prompt for a conversation by the package's own template, with the generation prompt; None without one."""
        ...


class GenerationSession(Session, Protocol):
    """A decoder with its cache of keys and values, batch 1.

    Attributes:
        context_length: tokens that the cache holds.
        vocabulary: width of the logits.
        text: tokenizer and chat template.
    """

    @property
    def context_length(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def text(self) -> TextCodec: ...

    def reset(self) -> None:
        """Forget all tokens."""
        ...

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Take tokens after those that are there; the logits after the last one: (vocabulary,)."""
        ...

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Forget all tokens, take these, and return the logits after every one: (tokens, vocabulary)."""
        ...


class EncodingSession(Session, Protocol):
    """A function from tensors to tensors.

    Attributes:
        input_names: names of the inputs, in the artifact's order.
        fixed_sequence_length: tokens that an input must have, None when any number will do.
        longest_sequence: tokens that an input may have at most, None when the package does not tell.
    """

    @property
    def input_names(self) -> tuple[str, ...]: ...

    @property
    def fixed_sequence_length(self) -> int | None: ...

    @property
    def longest_sequence(self) -> int | None: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run one batch; inputs that the artifact has not are left aside.

        Text: int64 (batch, sequence), `attention_mask` always among them; images: float32 (batch, channels, height, width).
        """
        ...

    def tokenize(self, text: str) -> list[int] | None:
        """Ids by a tokenizer of the runtime's own, special tokens added; None when it uses Hugging Face's file."""
        ...
