"""llama.cpp through llama-cpp-python's low-level API: one `llama_decode` a step and no copy that the loop does not need."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from compiler.chat_template import rendering
from compiler.errors import UnusableInput
from compiler.formats.gguf import read_gguf_header
from compiler.package import Package
from compiler.sentence import OUTPUT
from compiler.task import GENERATION, find_task
from runtimes.session import EncodingSession, GenerationSession, Message

_BATCH = 512


def open_session(package: Package, threads: int, context_length: int) -> GenerationSession | EncodingSession:
    """A session on the package's GGUF file; embeddings come unpooled, one row a token."""
    if find_task(package.model.task).kind == GENERATION:
        return LlamaDecoder(package, context_length, threads)
    return LlamaEncoder(package, context_length, threads)


def _load(package: Package, context: int, batch: int, threads: int, **options: Any) -> llama_cpp.Llama:
    from jinja2.exceptions import TemplateError

    try:
        return llama_cpp.Llama(
            str(package.artifact),
            n_ctx=context,
            n_batch=batch,
            n_ubatch=batch,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            **options,
        )
    except TemplateError as error:
        # It is read when the file is opened.
        raise UnusableInput(
            f"The chat template of {package.title} is damaged ({type(error).__name__}), and llama.cpp opens no such file. "
            "Correct the model's template and build again."
        ) from error
    except ValueError as error:
        raise UnusableInput(
            f"llama.cpp cannot load {package.artifact.name}: the file is damaged, or of an architecture, a vocabulary or a "
            "type that this llama.cpp does not know. Build it again here; --debug shows what it says."
        ) from error


class LlamaDecoder:
    """A decoder in llama.cpp."""

    def __init__(self, package: Package, context: int, threads: int) -> None:
        # Layers that look back a window only keep that much, as in llama.cpp's own programs.
        self._llama = _load(package, context, min(_BATCH, context), threads, swa_full=False)
        self._context = self._llama.ctx
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.context_length = context
        self.vocabulary = self._llama.n_vocab()
        self.text = LlamaText(self._llama)
        self._one = (llama_cpp.llama_token * 1)()

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        if len(token_ids) == 1:
            # One token a step is what generation is made of: no array is made for it.
            self._one[0] = token_ids[0]
            self._decode(llama_cpp.llama_batch_get_one(self._one, 1))
            return self._last_logits()
        for start in range(0, len(token_ids), _BATCH):
            part = token_ids[start : start + _BATCH]
            tokens = (llama_cpp.llama_token * len(part))(*part)
            self._decode(llama_cpp.llama_batch_get_one(tokens, len(part)))
        return self._last_logits()

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        rows = np.empty((len(token_ids), self.vocabulary), np.float32)
        batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        try:
            for start in range(0, len(token_ids), _BATCH):
                part = token_ids[start : start + _BATCH]
                batch.n_tokens = len(part)
                for index, token in enumerate(part):
                    batch.token[index] = token
                    batch.pos[index] = start + index
                    batch.n_seq_id[index] = 1
                    batch.seq_id[index][0] = 0
                    batch.logits[index] = True
                self._decode(batch)
                logits = llama_cpp.llama_get_logits(self._context)
                rows[start : start + len(part)] = np.ctypeslib.as_array(logits, (len(part), self.vocabulary))
        finally:
            llama_cpp.llama_batch_free(batch)
        return rows

    def _decode(self, batch: Any) -> None:
        if code := llama_cpp.llama_decode(self._context, batch):
            raise UnusableInput(f"llama.cpp could not evaluate (code {code}): more tokens than the context holds?")

    def _last_logits(self) -> NDArray[np.float32]:
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,))

    def close(self) -> None:
        self._llama.close()


class LlamaText:
    """llama.cpp's tokenizer, and the chat template in the file's metadata."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._llama = llama
        self._vocab = llama_cpp.llama_model_get_vocab(llama.model)
        self.begin = (llama.token_bos(),) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else ()

    @property
    def ends(self) -> frozenset[int]:
        return frozenset(i for i in range(self._llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(self._vocab, i))

    def encode(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode("utf-8"), add_bos=False, special=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(self._llama.detokenize(list(token_ids), special=True)).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[Message]) -> str | None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._llama.metadata.get("tokenizer.chat_template")
        if template is None:
            return None
        ends = self._text(self._llama.token_eos()), self._text(self._llama.token_bos())
        with rendering():
            formatter = Jinja2ChatFormatter(template, *ends)
            return str(formatter(messages=cast(Any, [dict(message) for message in messages])).prompt)

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text = llama_cpp.llama_vocab_get_text(self._vocab, ctypes.c_int32(token))
        return text.decode("utf-8", "replace") if text else ""


_POOLINGS: dict[int, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    1: lambda rows: rows.mean(0),
    2: lambda rows: rows[0],
    3: lambda rows: rows[-1],
}


def _pooled(states: NDArray[np.float32], masks: NDArray[Any], pooling: int, normalized: bool) -> NDArray[np.float32]:
    """Vectors (batch, hidden) by the pooling that the file names (enum llama_pooling_type of llama.h)."""
    if pooling not in _POOLINGS:
        raise UnusableInput(f"The file names the pooling {pooling}, which makes no vector of a text. Build it again.")
    rows = [_POOLINGS[pooling](state[: int(mask.sum())]) for state, mask in zip(states, masks, strict=True)]
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalized else vectors


class LlamaEncoder:
    """A text encoder in llama.cpp: one sequence at a time, its padding left out."""

    input_names = ("input_ids", "attention_mask")
    fixed_sequence_length = None

    def __init__(self, package: Package, context: int, threads: int) -> None:
        pooling_none = 0
        # An encoder sees all tokens of a text at once.
        self._llama = _load(package, context, context, threads, embedding=True, pooling_type=pooling_none)
        self.longest_sequence: int | None = context
        self._context = self._llama.ctx
        self._output = package.lowered.main.outputs[0].name
        self._sentence = package.sentence
        header = read_gguf_header(package.artifact).metadata
        self._pooling = int(header.get(f"{header['general.architecture']}.pooling_type", 0))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        rows, masks = inputs["input_ids"], inputs["attention_mask"]
        width = self._llama.n_embd()
        output = np.zeros((*rows.shape, width), np.float32)
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            ids = [int(token) for token, seen in zip(row, mask, strict=True) if seen]
            if len(ids) > (self.longest_sequence or len(ids)):
                raise UnusableInput(
                    f"The text has {len(ids)} tokens; the package takes at most {self.longest_sequence}."
                )
            batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
            try:
                batch.n_tokens = len(ids)
                for position, token in enumerate(ids):
                    batch.token[position] = token
                    batch.pos[position] = position
                    batch.n_seq_id[position] = 1
                    batch.seq_id[position][0] = 0
                    batch.logits[position] = True
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
                if code := llama_cpp.llama_decode(self._context, batch):
                    raise UnusableInput(
                        f"llama.cpp could not evaluate (code {code}): more tokens than it was made for?"
                    )
                values = llama_cpp.llama_get_embeddings(self._context)
                output[index, : len(ids)] = np.ctypeslib.as_array(values, (len(ids), width))
            finally:
                llama_cpp.llama_batch_free(batch)
        if self._sentence is None:
            return {self._output: output}
        return {self._output: output, OUTPUT: _pooled(output, masks, self._pooling, self._sentence.normalized)}

    def tokenize(self, text: str) -> list[int] | None:
        return list(self._llama.tokenize(text.encode("utf-8"), add_bos=True, special=True))

    def close(self) -> None:
        self._llama.close()
