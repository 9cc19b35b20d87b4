"""ONNX Runtime GenAI: a generator that is filled with tokens and asked for logits."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.session import Message, Session

_DEFAULT_CONTEXT = 2048
_LETTER = "a"


def open_session(package: Package, threads: int) -> Session:
    """A session on the package's GenAI folder."""
    return GenAiSession(package, threads)


class GenAiSession:
    """A decoder in ONNX Runtime GenAI. Logits come from the generator; the next token is appended by the caller."""

    def __init__(self, package: Package, threads: int) -> None:
        config = og.Config(str(package.folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        try:
            self._model = og.Model(config)
        except RuntimeError as error:
            raise UnusableInput(f"ONNX Runtime GenAI cannot load {package.name}: {error}.") from error
        self._tokenizer = og.Tokenizer(self._model)
        described = json.loads((package.folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.vocabulary = int(described["vocab_size"])
        trained = int(described["context_length"])
        self.context_length = package.recipe_full["shapes"]["context_length"] or min(trained, _DEFAULT_CONTEXT)
        ends = described["eos_token_id"]
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._has_template = (package.folder / "chat_template.jinja").is_file() or "chat_template" in json.loads(
            (package.folder / "tokenizer_config.json").read_text(encoding="utf-8")
        )
        # Where layers look back a window only, what fell out of the cache cannot be rewound to.
        self._forgets = "sliding_window" in described["decoder"]
        self._generator: og.Generator | None = None

    def _fill(self, token_ids: Sequence[int]) -> og.Generator:
        if self._generator is None or self._forgets:
            self._generator = None
            params = og.GeneratorParams(self._model)
            params.set_search_options(max_length=self.context_length, do_sample=False)
            self._generator = og.Generator(self._model, params)
        else:
            # The cache of keys and values stays allocated.
            self._generator.rewind_to(0)
        self._generator.append_tokens(np.asarray(token_ids, np.int32))
        return self._generator

    def prefill(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self._fill(token_ids).get_logits(), np.float32).reshape(-1)

    def decode(self, token_id: int) -> NDArray[np.float32]:
        assert self._generator is not None, "prefill comes first"
        self._generator.append_tokens(np.asarray([token_id], np.int32))
        return np.asarray(self._generator.get_logits(), np.float32).reshape(-1)

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self._fill(token_ids).get_output("logits"), np.float32)[0]

    def tokenize(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(np.asarray(token_ids, np.int32)))

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        if not self._has_template:
            return None
        listed = json.dumps([dict(message) for message in messages], ensure_ascii=False)
        return str(self._tokenizer.apply_chat_template(listed, add_generation_prompt=True))

    def start_of_text_ids(self) -> tuple[int, ...]:
        self._tokenizer.update_options(add_special_tokens="true")
        whole = self.tokenize(_LETTER)
        self._tokenizer.update_options(add_special_tokens="false")
        return tuple(whole[: whole.index(self.tokenize(_LETTER)[0])])

    def end_of_text_ids(self) -> frozenset[int]:
        return self._ends

    def close(self) -> None:
        self._generator = None
