"""The contract between a runtime and whoever uses it.

A runtime is a module in `runtimes/` with one function `open_session(package, threads) -> Session`. Two kinds of session
exist, one small protocol each; a container with fixed shapes, states or several signatures hides them behind the same
calls, and a remote device runs the same session in a process over there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Message = Mapping[str, str]


@runtime_checkable
class LanguageSession(Protocol):
    """A decoder with its cache of keys and values, batch 1."""

    @property
    def context_length(self) -> int:
        """Tokens that the cache holds."""
        ...

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        ...

    def prefill(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Forget the past, take the whole prompt, return the logits after its last token: (vocabulary,)."""
        ...

    def decode(self, token_id: int) -> NDArray[np.float32]:
        """Take one more token, return the logits after it: (vocabulary,)."""
        ...

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Forget the past, return the logits after every token: (tokens, vocabulary)."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """The runtime's own token ids of `text`, special tokens recognised, none added."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The runtime's own text of token ids."""
        ...

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        """The prompt for a conversation by the package's own template, with the generation prompt; None without one."""
        ...

    def start_of_text_ids(self) -> tuple[int, ...]:
        """The token ids with which the runtime begins a text by itself; `tokenize` leaves them out."""
        ...

    def end_of_text_ids(self) -> frozenset[int]:
        """The token ids at which the runtime ends a text by itself."""
        ...

    def close(self) -> None:
        """Give back memory."""
        ...


@runtime_checkable
class EncoderSession(Protocol):
    """A function from tensors to tensors."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the artifact's order."""
        ...

    @property
    def fixed_sequence_length(self) -> int | None:
        """Tokens that an input must have, None when any number will do."""
        ...

    @property
    def longest_sequence(self) -> int | None:
        """Tokens that an input may have at most, None when the package does not tell."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run one batch; inputs that the artifact has not are left aside.

        Text: int64 (batch, sequence), `attention_mask` always among them; images: float32 (batch, channels, height, width).
        """
        ...

    def tokenize(self, text: str) -> list[int] | None:
        """Ids by a tokenizer of the runtime's own, special tokens added; None when it uses Hugging Face's file."""
        ...

    def close(self) -> None:
        """Give back memory."""
        ...


Session = LanguageSession | EncoderSession
