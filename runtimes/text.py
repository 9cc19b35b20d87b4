"""The text side of packages whose runtime has no tokenizer of its own: Hugging Face's files that lie in the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from compiler.tokenizer import load_tokenizer, start_of_text_ids
from runtimes.session import Message


class HuggingFaceText:
    """Tokenizer, chat template, begin and end tokens of a folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.start_of_text_ids = tuple(start_of_text_ids(self._tokenizer))
        self.end_of_text_ids = frozenset(_ends(folder))

    def tokenize(self, text: str) -> list[int]:
        """Token ids, none added."""
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(token_ids)))

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        """The prompt for a conversation; None without a template."""
        if not self._tokenizer.chat_template:
            return None
        listed = [dict(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True))


def _ends(folder: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return value if isinstance(value, list) else [value]
    return []
