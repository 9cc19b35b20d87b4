"""The text side of packages whose runtime has no tokenizer of its own: Hugging Face's files that lie in the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.chat_template import rendering
from compiler.tokenizer import end_of_text_ids, load_tokenizer, start_of_text_ids
from runtimes.session import Message


class HuggingFaceText:
    """Tokenizer, chat template, begin and end tokens of a folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.begin = tuple(start_of_text_ids(self._tokenizer))
        self.ends = frozenset(end_of_text_ids(folder))

    def encode(self, text: str) -> list[int]:
        """Token ids, none added."""
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(token_ids)))

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        """The prompt for a conversation; None without a template."""
        if not self._tokenizer.chat_template:
            return None
        listed = [dict(message) for message in messages]
        with rendering():
            return str(self._tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True))
