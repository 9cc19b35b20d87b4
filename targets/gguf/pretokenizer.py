"""Which of llama.cpp's pre-tokenizers cuts text as a model's own byte-level BPE does.

A GGUF file names the rules by which text is cut before merges (`tokenizer.ggml.pre`); llama.cpp has a fixed set of them
(src/llama-vocab.cpp). Its converter knows a tokenizer by the hash of the ids of one text, so that whoever trains a
vocabulary is turned away though the rules are among them. Here each is tried: what gives Hugging Face's ids for every
string is right.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.tokenizer import load_tokenizer

# One name for each set of rules, those of the most models first.
CANDIDATES = (
    "gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "starcoder", "tekken", "deepseek-llm", "deepseek-coder", "deepseek-v3",
    "falcon", "stablelm2", "bloom", "poro-chat", "viking", "command-r", "chatglm-bpe", "glm4", "mpt", "olmo", "dbrx",
    "smaug-bpe", "refact", "codeshell", "jais", "exaone", "exaone4", "chameleon", "minerva-7b", "megrez", "superbpe",
    "trillion", "bailingmoe", "seed-coder", "hunyuan", "hunyuan-dense", "kimi-k2", "gpt3-finnish", "lfm2", "llama4", "grok-2",
    "jais-2", "tiny_aya", "qwen35", "falcon3",
)  # fmt: skip

_RANDOM_STRINGS = 400
_PIECES = (
    " ", "  ", "\n", "\t", "\r\n", "a", "Ab", "word", "naïve", "I'm", "WE'LL", "'s", "1", "12", "1234", "12345678", "٣٤",
    "½", "²", ".", "...", "!?", "--", "_", "@", "/", "(x)", "“", "—", "的", "日本", "漢字", "カナ", "한국", "мир", "Ёж",
    "سلام", "हिन्दी", "ไทย", "é", "e\u0301", "\u0301", "😀", "👍🏽", "\u200d", "\u00a0", "\u3000", "ß", "İ", "∑", "$",
    "=", "{", "}", "#", "\\", "🏳️‍🌈",
)  # fmt: skip


@contextmanager
def recognized(model: Path) -> Iterator[None]:
    """Let llama.cpp's converter, in this process, take the pre-tokenizer that is proved right for the model's own.

    Within, a tokenizer for which there is none ends in UnusableInput.
    """
    from conversion.base import TextModel

    original = TextModel.get_vocab_base_pre

    def find(self: Any, tokenizer: Any) -> str:
        try:
            known: str | None = original(self, tokenizer)
        except NotImplementedError:
            known = None
        kind = type(getattr(tokenizer, "backend_tokenizer", tokenizer).model).__name__
        if kind != "BPE":
            # The name is read for byte-level BPE alone.
            return known or "default"
        TextModel.get_vocab_base_pre = lambda self, tokenizer: CANDIDATES[0]
        try:
            return _choose(self, model, known)
        finally:
            TextModel.get_vocab_base_pre = find

    TextModel.get_vocab_base_pre = find
    try:
        yield
    finally:
        TextModel.get_vocab_base_pre = original


def strings(special_tokens: Sequence[str]) -> list[str]:
    """Texts on which pre-tokenizers part, without special tokens."""
    chosen = random.Random(0)
    drawn = ["".join(chosen.choices(_PIECES, k=chosen.randint(2, 12))) for _ in range(_RANDOM_STRINGS)]
    every = [*corpus.NASTY, *corpus.PASSAGES, *corpus.PROMPTS, *drawn]
    return [text for text in every if not any(token and token in text for token in special_tokens)]


def _choose(converter: Any, model: Path, known: str | None) -> str:
    """The first candidate that gives Hugging Face's ids for every string; what the converter knows comes first."""
    tokenizer = load_tokenizer(model)
    texts = strings(tokenizer.all_special_tokens)
    wanted = [(text, list(tokenizer.encode(text, add_special_tokens=False))) for text in texts]
    tokens, types, _ = converter.get_vocab_base()
    best, most = "", -1
    with tempfile.TemporaryDirectory() as temporary:
        for name in dict.fromkeys([*([known] if known else []), *CANDIDATES]):
            file = Path(temporary) / "vocabulary.gguf"
            _write_vocabulary(converter, tokens, types, name, file)
            right = _count_right(file, wanted)
            if right == len(wanted):
                return name
            if right > most:
                best, most = name, right
    if known:
        return known
    raise UnusableInput(
        f"llama.cpp has no pre-tokenizer that cuts text as the tokenizer of {model.name} does: {len(CANDIDATES)} were tried "
        f"on {len(wanted)} strings, and the nearest, {best}, gives other ids for {len(wanted) - most} of them. A GGUF file "
        "of it would read other text; the targets that carry tokenizer.json, such as onnx and coreml, take it."
    )


def _write_vocabulary(converter: Any, tokens: Any, types: Any, name: str, file: Path) -> None:
    import gguf

    file.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    gguf.SpecialVocab(converter.dir_model, load_merges=True).add_to_gguf(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _count_right(file: Path, wanted: Sequence[tuple[str, list[int]]]) -> int:
    """Strings that llama.cpp gives the wanted ids for; -1 where it does not know the name."""
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    if not loaded:
        return -1
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(loaded)
        return sum(_encode(vocabulary, text) == ids for text, ids in wanted)
    finally:
        llama_cpp.llama_model_free(loaded)


def _encode(vocabulary: Any, text: str) -> list[int]:
    import llama_cpp

    raw = text.encode("utf-8")
    room = len(raw) + 8
    ids = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, room, False, True)
    return list(ids[: max(count, 0)])
