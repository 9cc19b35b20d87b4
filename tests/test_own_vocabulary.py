"""A byte-level BPE of one's own becomes a GGUF file that reads text as it does, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import Run, assert_refused
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from compiler import corpus
from compiler.formats.gguf import read_gguf_header
from compiler.tokenizer import load_tokenizer
from targets.gguf.pretokenizer import strings

_WORDS_AND_THREE_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut_by(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def single_digits() -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])


def train(folder: Path, pre_tokenizer: Any) -> Path:
    """A tiny Llama with a vocabulary of 1000 tokens that nobody has published."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*corpus.PASSAGES, "10 100 1000 2024 365 128 64 2024 100 365 128 1000"]
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    tokenizer.save(str(vocabulary / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (vocabulary / "tokenizer_config.json").write_text(json.dumps(told))
    return tiny.save_decoder("llama", vocabulary, folder / "model")


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"), [(cut_by(_WORDS_AND_THREE_DIGITS), "llama-bpe"), (single_digits(), "smollm")]
)
def test_the_pre_tokenizer_that_cuts_as_the_model_does_is_found(
    pre_tokenizer: Any, name: str, tmp_path: Path, edgec_here: Run
) -> None:
    import llama_cpp

    model = train(tmp_path, pre_tokenizer)
    done = edgec_here("build", model, "-r", "gguf:F16", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "gguf-F16").glob("*.gguf")
    metadata = read_gguf_header(file).metadata
    assert metadata["tokenizer.ggml.pre"] == name and metadata["tokenizer.ggml.add_bos_token"] is False
    llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    tokenizer = load_tokenizer(model)
    for text in strings([]):
        wanted = tokenizer.encode(text, add_special_tokens=False)
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == list(wanted), text


def test_a_cut_that_llama_cpp_does_not_have_is_refused(tmp_path: Path, edgec_here: Run) -> None:
    model = train(tmp_path, cut_by("[aeiou]"))
    done = edgec_here("build", model, "-r", "gguf:F16", "-o", tmp_path)
    assert_refused(done, 2, "pre-tokenizer", "onnx")
    assert not (tmp_path / "gguf-F16").exists()
