"""A vocabulary in an older form becomes a tokenizer.json that splits as the form's own library does, or is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiny
from tokenizers import Tokenizer

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.inputs.open import open_model
from compiler.inputs.tokenizer import make_tokenizer
from compiler.tokenizer import load_tokenizer

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Der", "der", "Zug", "zug", "fährt", "fahrt", "Über", "uber"]


@pytest.mark.parametrize(("lower", "words"), [(False, ["Der", "Zug", "fährt"]), (True, ["der", "zug", "fahrt"])])
def test_a_wordpiece_vocabulary_keeps_its_case(
    lower: bool, words: list[str], minilm_folder: Path, tmp_path: Path
) -> None:
    tiny.save_encoder("bert", minilm_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "vocab.txt").write_text("\n".join([*_WORDS, *(chr(code) for code in range(33, 127))]))
    settings = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    model = open_model(str(tmp_path / "model"))
    made = Tokenizer.from_file(str(model.folder / "tokenizer.json")).encode("Der Zug fährt")
    assert made.tokens == ["[CLS]", *words, "[SEP]"]
    assert not (tmp_path / "model" / "tokenizer.json").exists()


def _trained(folder: Path, kind: str, tokenizer_class: str, **settings: Any) -> Path:
    folder.mkdir()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus.PASSAGES, *corpus.PROMPTS]),
        model_writer=written,
        model_type=kind,
        vocab_size=450 if kind == "unigram" else 600,
        minloglevel=2,
        **settings,
    )
    name = "sentencepiece.bpe.model" if kind == "unigram" else "tokenizer.model"
    (folder / name).write_bytes(written.getvalue())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, **names}))
    return folder


@pytest.mark.parametrize(
    ("kind", "tokenizer_class", "settings"),
    [
        ("unigram", "XLMRobertaTokenizer", {}),
        ("bpe", "LlamaTokenizer", {"normalization_rule_name": "identity", "byte_fallback": True}),
        (
            "bpe",
            "LlamaTokenizer",
            {"normalization_rule_name": "identity", "byte_fallback": True, "remove_extra_whitespaces": False},
        ),
    ],
)
def test_a_sentencepiece_vocabulary_splits_as_sentencepiece(
    kind: str, tokenizer_class: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = _trained(tmp_path / "model", kind, tokenizer_class, **settings)
    (tmp_path / "out").mkdir()
    make_tokenizer(str(folder), str(tmp_path / "out"))
    made = load_tokenizer(tmp_path / "out")
    own = sentencepiece.SentencePieceProcessor(model_file=str(next(folder.glob("*.model"))))
    for string in corpus.NASTY:
        pieces = [piece if own.piece_to_id(piece) else "<unk>" for piece in own.encode(string, out_type=str)]
        ids = made.encode(string, add_special_tokens=False)
        assert made.convert_ids_to_tokens(ids) == pieces


def test_a_vocabulary_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    folder = _trained(tmp_path / "model", "bpe", "LlamaTokenizer", byte_fallback=True)
    (folder / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnusableInput, match=r"tokenizer\.model and no tokenizer\.json"):
        make_tokenizer(str(folder), str(tmp_path / "out"))
