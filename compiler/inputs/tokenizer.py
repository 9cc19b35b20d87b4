"""A `tokenizer.json` for a model that has its vocabulary in an older form only. Runs in a child process.

All that edgec writes takes text by `tokenizer.json`. transformers makes one of `tokenizer.model`, `sentencepiece.bpe.model`,
`spiece.model`, `vocab.txt` or `vocab.json` with `merges.txt`. What it makes of a SentencePiece model is held to the
sentencepiece library, of a WordPiece vocabulary to transformers' tokenizer in plain Python.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.model import model_files

TOKENIZER = "tokenizer.json"
_SENTENCEPIECE = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_OLDER = (*_SENTENCEPIECE, "vocab.txt", "vocab.json")
_SPACE = "\u2581"


def older_vocabulary(folder: Path) -> str | None:
    """The file that a folder has its vocabulary in, where it has no `tokenizer.json`."""
    if (folder / TOKENIZER).exists():
        return None
    return next((name for name in _OLDER if (folder / name).is_file()), None)


def make_tokenizer(model: str, out: str) -> None:
    """Write the model's files and a `tokenizer.json` into `out`.

    Raises:
        UnusableInput: transformers cannot read the vocabulary, or splits text another way than its own library does.
    """
    from transformers import AutoTokenizer

    source, target = Path(model), Path(out)
    vocabulary = older_vocabulary(source)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # tokenizers and sentencepiece raise nothing narrower
        raise UnusableInput(_refusal(source, vocabulary, "transformers cannot read it")) from error
    if vocabulary in _SENTENCEPIECE:
        _hold_to_sentencepiece(tokenizer, backend, source / vocabulary)
    elif vocabulary == "vocab.txt":
        _hold_to_wordpiece(tokenizer, source)
    for file in model_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    tokenizer.save_pretrained(target)
    for name in _OLDER:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _refusal(folder: Path, vocabulary: str | None, why: str) -> str:
    return (
        f"{folder.name} has its vocabulary in {vocabulary} and no tokenizer.json, and none can be made: {why}. Add "
        "tokenizer.json from the model's repository."
    )


def _hold_to_sentencepiece(tokenizer: Any, backend: Any, file: Path) -> None:
    import sentencepiece

    try:
        own = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except Exception as error:
        raise UnusableInput(_refusal(file.parent, file.name, "sentencepiece cannot read it")) from error
    unknown = own.unk_id()

    def pieces(text: str) -> list[str]:
        found: list[str] = own.encode(text, out_type=str)
        return [piece if own.piece_to_id(piece) != unknown else str(tokenizer.unk_token) for piece in found]

    if _first_miss(tokenizer, pieces) is not None:
        _treat_spaces(backend, file)
    if (miss := _first_miss(tokenizer, pieces)) is not None:
        why = f"transformers splits {miss[:40]!r} another way than sentencepiece"
        raise UnusableInput(_refusal(file.parent, file.name, why))


def _treat_spaces(backend: Any, file: Path) -> None:
    """Normalize as the SentencePiece model says (sentencepiece_model.proto, NormalizerSpec), and split nothing before."""
    from sentencepiece import sentencepiece_model_pb2 as form
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    read: Any = form.ModelProto()  # type: ignore[attr-defined]
    read.ParseFromString(file.read_bytes())
    spec = read.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _hold_to_wordpiece(tokenizer: Any, folder: Path) -> None:
    """Compare with the tokenizer in plain Python, made by the same settings."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    if not type(tokenizer).__name__.startswith(("Bert", "DistilBert", "Electra", "MobileBert", "MPNet")):
        return
    settings = {
        name: value
        for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "unk_token")
        if (value := tokenizer.init_kwargs.get(name)) is not None
    }
    plain: Any = BertTokenizerLegacy(str(folder / "vocab.txt"), **settings)
    # The plain one composes characters first (NFC), which neither Google's own nor any other does.
    composed = [string for string in corpus.NASTY if unicodedata.is_normalized("NFC", string)]
    if (miss := _first_miss(tokenizer, plain.tokenize, composed)) is not None:
        raise UnusableInput(_refusal(folder, "vocab.txt", f"transformers splits {miss[:40]!r} in two ways"))


def _first_miss(
    tokenizer: Any, pieces: Callable[[str], Sequence[str]], strings: Sequence[str] = corpus.NASTY
) -> str | None:
    """The first string that the tokenizer splits another way."""
    for string in strings:
        ids = tokenizer.encode(string, add_special_tokens=False)
        if tokenizer.convert_ids_to_tokens(ids) != list(pieces(string)):
            return string
    return None
