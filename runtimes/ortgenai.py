"""ONNX Runtime GenAI: a generator that is filled with tokens and asked for logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.genai_config import require_known_settings
from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.time_limit import TooSlowError
from runtimes.session import GenerationSession, Message

_LETTER = "a"


def open_session(package: Package, threads: int, context_length: int) -> GenerationSession:
    """A session on the package's GenAI folder."""
    return GenAiSession(package, threads, context_length)


class GenAiSession:
    """A decoder in ONNX Runtime GenAI. Logits come from the generator; the next token is appended by the caller."""

    def __init__(self, package: Package, threads: int, context_length: int) -> None:
        require_known_settings(package.folder, package.title)
        config = og.Config(str(package.folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        try:
            self._model = og.Model(config)
        except RuntimeError as error:
            raise UnusableInput(
                f"ONNX Runtime GenAI cannot load {package.title}: a file is damaged, or the model has an operator or a "
                "setting that this release does not know. Build it again here; --debug shows what it says."
            ) from error
        described = read_object(package.folder / "genai_config.json")["model"]
        self.vocabulary = int(described["vocab_size"])
        self.context_length = context_length
        self.text = GenAiText(self._model, package.folder, described["eos_token_id"])
        # Where layers look back a window only, what fell out of the cache cannot be rewound to.
        self._forgets = "sliding_window" in described["decoder"]
        self._generator: og.Generator | None = None

    def reset(self) -> None:
        if self._generator is None or self._forgets:
            self._generator = None
            params = og.GeneratorParams(self._model)
            params.set_search_options(max_length=self.context_length, do_sample=False)
            self._generator = og.Generator(self._model, params)
        else:
            # The cache of keys and values stays allocated.
            self._generator.rewind_to(0)

    def _append(self, token_ids: Sequence[int]) -> og.Generator:
        if self._generator is None:
            self.reset()
        assert self._generator is not None
        self._generator.append_tokens(np.asarray(token_ids, np.int32))
        return self._generator

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self._append(token_ids).get_logits(), np.float32).reshape(-1)

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return np.asarray(self._append(token_ids).get_output("logits"), np.float32)[0]

    def close(self) -> None:
        self._generator = None


class GenAiText:
    """GenAI's tokenizer, and the chat template of the folder."""

    def __init__(self, model: og.Model, folder: Path, ends: int | list[int]) -> None:
        self._tokenizer, self._folder = og.Tokenizer(model), folder
        self._has_template = (folder / "chat_template.jinja").is_file() or "chat_template" in read_object(
            folder / "tokenizer_config.json"
        )
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])

    @property
    def begin(self) -> tuple[int, ...]:
        return self._begin()

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(np.asarray(token_ids, np.int32)))

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        if not self._has_template:
            return None
        self._require_end(messages)
        listed = json.dumps([dict(message) for message in messages], ensure_ascii=False)
        try:
            return str(self._tokenizer.apply_chat_template(listed, add_generation_prompt=True))
        except RuntimeError as error:
            raise UnusableInput(
                f"The chat template of {self._folder.name} ends in an error for this conversation. Correct the model's "
                "template and build again, or leave it out by --raw."
            ) from error

    def _begin(self) -> tuple[int, ...]:
        self._tokenizer.update_options(add_special_tokens="true")
        whole = self.encode(_LETTER)
        self._tokenizer.update_options(add_special_tokens="false")
        return tuple(whole[: whole.index(self.encode(_LETTER)[0])])

    def _require_end(self, messages: Sequence[Message]) -> None:
        """Refuse a template that does not end: GenAI's own engine has no limit of time.

        Raises:
            TooSlowError: transformers, where it is there, does not end either.
        """
        if self._bounded is None:
            return
        try:
            self._bounded.render_chat(messages)
        except TooSlowError:
            raise
        except UnusableInput:
            # What it makes of it is compared by verify.
            return

    @cached_property
    def _bounded(self) -> Any:
        """Hugging Face's text side of the folder; None on a board without transformers."""
        try:
            from runtimes.text import HuggingFaceText

            return HuggingFaceText(self._folder)
        except (ModuleNotFoundError, UnusableInput):
            return None
