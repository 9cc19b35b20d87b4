"""A `.litertlm` bundle as LiteRT-LM's engine runs it: its signatures on LiteRT, its text by the engine itself.

The engine gives no logits. Here the same signatures run on the same runtime, with a cache that grows as the engine's does
(LlmLiteRtCompiledModelExecutorDynamic), so that what is measured is what an app gets.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import litert_lm
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, Options
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from compiler.formats.litertlm import (
    METADATA,
    MODEL,
    TOKENIZER,
    find_section,
    open_litertlm,
    read_metadata,
    unpacked_text,
)
from compiler.formats.tflite import require_whole
from compiler.package import Package
from compiler.quiet import quiet_at_exit, quiet_stderr
from runtimes.session import GenerationSession, Message

_PREFILL, _DECODE, _SCORE = "prefill", "decode", "score"
# A cache that is full grows by so many places, as the engine's does.
_GROWTH = 16
_HIDDEN = np.float32(-0.7 * float(np.finfo(np.float32).max))
# Packed weights of all signatures are kept once, and in no file.
_IN_MEMORY = ":memory:"
_NO_CACHE = ":nocache"
# Of an engine that is asked for text alone.
_TEXT_TOKENS = 128


def open_session(package: Package, threads: int, context_length: int) -> GenerationSession:
    """A session on the package's bundle."""
    return LiteRtLmSession(package, threads, context_length)


class LiteRtLmSession:
    """A decoder whose cache goes into each call and comes out of it in place."""

    def __init__(self, package: Package, threads: int, context_length: int) -> None:
        quiet_at_exit()
        shapes = package.lowered.shapes
        assert shapes.vocabulary is not None
        self.context_length, self.vocabulary = context_length, shapes.vocabulary
        self._file = package.artifact
        with open_litertlm(self._file) as sections:
            model = bytes(find_section(sections, MODEL, self._file))
        require_whole(model, self._file.name)
        cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=_IN_MEMORY)
        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        try:
            with quiet_stderr():
                self._model = CompiledModel.from_buffer(model, options=options)
        except RuntimeError as error:
            raise UnusableInput(
                f"LiteRT cannot load {package.title}: it has an operator or a type that this release does not know. Build it "
                "again here; --debug shows what it says."
            ) from error
        signatures = self._model.get_signature_list()
        self._outputs = {name: signature["outputs"] for name, signature in signatures.items()}
        if not {_PREFILL, _DECODE, _SCORE} <= set(signatures):
            raise UnusableInput(f"{package.title} has not the signatures that edgec writes. Build it again.")
        details = self._model.get_input_tensor_details(_DECODE)
        self._forms = {name: list(each["shape"]) for name, each in details.items() if name.startswith("kv_cache_")}
        self._ready: dict[str, _Call] = {}
        self._caches: dict[str, Any] = {}
        self._places = self._position = 0

    @cached_property
    def text(self) -> LiteRtLmText:
        """The engine's own; what is only measured needs none."""
        return LiteRtLmText(self._file)

    def reset(self) -> None:
        """As a new session of the engine, which begins with an empty cache that has no places yet."""
        self._position = self._places = 0
        self._ready.clear()
        self._caches.clear()

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        # Once for both signatures.
        self._reserve(self._position + len(token_ids))
        if len(token_ids) > 1:
            self._run(_PREFILL, token_ids[:-1])
        return self._run(_DECODE, token_ids[-1:])[-1]

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self._run(_SCORE, token_ids)

    def close(self) -> None:
        with quiet_stderr():
            self._ready.clear()
            self._caches.clear()
            if "text" in self.__dict__:
                self.text.close()
            self._model.close()
            del self._model
            gc.collect()

    def _run(self, signature: str, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Take tokens after those that are there; the logits that the signature gives, (tokens, vocabulary)."""
        after = self._position + len(token_ids)
        self._reserve(after)
        call = self._call(signature, len(token_ids))
        positions = np.arange(self._position, after, dtype=np.int32)
        hidden = np.where(np.arange(self._places)[None] <= positions[:, None], np.float32(0), _HIDDEN)
        call.inputs["tokens"].write(np.asarray([token_ids], np.int32))
        call.inputs["input_pos"].write(positions)
        call.inputs["mask"].write(hidden[None, None])
        self._model.run_by_name(signature, {**call.inputs, **self._caches}, {**call.outputs, **self._caches})
        self._position = after
        if "logits" not in call.outputs:
            return np.zeros((0, self.vocabulary), np.float32)
        logits = call.outputs["logits"].read(len(token_ids) * self.vocabulary, np.float32)
        return np.asarray(logits).reshape(len(token_ids), self.vocabulary)

    def _reserve(self, tokens: int) -> None:
        """Make room for so many tokens in all."""
        if tokens > self.context_length:
            raise UnusableInput(f"{tokens} tokens do not fit the context of {self.context_length}.")
        if tokens > self._places:
            with quiet_stderr():
                self._grow(min(self.context_length, max(tokens, self._places + _GROWTH)))

    def _grow(self, places: int) -> None:
        """Make the caches `places` long; what is in them stays."""
        before = {name: self._read(name) for name in self._caches} if self._position else {}
        self._places = places
        self._ready.clear()
        for name in self._forms:
            self._resize(_DECODE, name)
        for name in self._forms:
            self._caches[name] = buffer = self._model.create_input_buffer_by_name(_DECODE, name)
            values = np.zeros(self._form(name), np.float32)
            if name in before:
                values[:, :, : before[name].shape[2]] = before[name]
            buffer.write(values)

    def _form(self, name: str) -> list[int]:
        return [self._places if size < 0 or axis == 2 else size for axis, size in enumerate(self._forms[name])]

    def _read(self, name: str) -> NDArray[np.float32]:
        form = self._form(name)
        return np.asarray(self._caches[name].read(int(np.prod(form)), np.float32)).reshape(form)

    def _resize(self, signature: str, name: str) -> None:
        self._model.resize_input_tensor_by_name(signature, name, self._form(name))

    def _call(self, signature: str, tokens: int) -> _Call:
        """Buffers for so many tokens, with the signature's shapes set."""
        known = self._ready.get(signature)
        if known is None or known.tokens != tokens:
            with quiet_stderr():
                self._ready[signature] = known = self._make_ready(signature, tokens)
        return known

    def _make_ready(self, signature: str, tokens: int) -> _Call:
        for name in self._forms:
            self._resize(signature, name)
        resized: dict[str, list[int]] = {"mask": [1, 1, tokens, self._places]}
        if signature != _DECODE:
            resized |= {"tokens": [1, tokens], "input_pos": [tokens]}
        for name, form in resized.items():
            self._model.resize_input_tensor_by_name(signature, name, form)
        inputs = {
            name: self._model.create_input_buffer_by_name(signature, name) for name in ("tokens", "input_pos", "mask")
        }
        outputs = {
            name: self._model.create_output_buffer_by_name(signature, name)
            for name in self._outputs[signature]
            if name == "logits"
        }
        return _Call(tokens, inputs, outputs)


@dataclass(frozen=True)
class _Call:
    """A signature made ready for a number of tokens: its buffers by name, the caches aside."""

    tokens: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class LiteRtLmText:
    """Tokenizer and template by LiteRT-LM's engine, begin and end tokens as the bundle has them."""

    def __init__(self, file: Path) -> None:
        with open_litertlm(file) as sections:
            if any(section.kind not in (METADATA, MODEL, TOKENIZER) for section in sections):
                raise UnusableInput(f"{file.name} has a section that edgec does not write. Build the package again.")
            parse_json(unpacked_text(find_section(sections, TOKENIZER, file)), f"The tokenizer in {file.name}")
            told = read_metadata(sections, file)
        cpu = litert_lm.Backend.CPU(thread_count=1)
        try:
            with quiet_stderr():
                self._engine = litert_lm.Engine(str(file), cpu, max_num_tokens=_TEXT_TOKENS, cache_dir=_NO_CACHE)
        except RuntimeError as error:
            raise UnusableInput(
                f"LiteRT-LM's engine cannot load {file.name}: its tokenizer or what it says of its model is damaged, or new "
                "to this release. Build the package again; --debug shows what it says."
            ) from error
        self.begin = tuple(told.start_token.token_ids.ids)
        self.ends = frozenset(token for end in told.stop_tokens for token in end.token_ids.ids)
        self._has_template = bool(told.jinja_prompt_template)

    def close(self) -> None:
        """Give back the engine's memory."""
        self._engine.close()

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._engine.tokenize(text)] if text else []

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._engine.detokenize(list(token_ids))) if token_ids else ""

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        """What the engine makes of the last message after the others, behind its begin token."""
        if not self._has_template:
            return None
        *before, last = ({**message} for message in messages)
        try:
            with quiet_stderr(), self._engine.create_conversation(messages=before) as conversation:
                rendered = conversation.render_message_to_string(last)
        except RuntimeError:
            return None
        return (self.decode(self.begin) + rendered) if rendered else None
