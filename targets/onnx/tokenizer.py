"""The model's tokenizer.json in words that GenAI's tokenizer understands; to Hugging Face both forms are the same.

GenAI reads the file with onnxruntime-extensions (operators/tokenizer/bpe_tokenizer_model.hpp, bpe_kernels.cc), which
leaves parts of the form aside. The text gate of `verify` holds the runtime to the model's own ids.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from compiler.formats.json_file import read_object

# GPT-2's pattern, which `ByteLevel` with use_regex applies (tokenizers, pre_tokenizers/byte_level.rs).
_BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def carry_tokenizer(own: Path, path: Path) -> None:
    """Put the model's own file where the builder left what transformers made of it (compiler/tokenizer.py tells why)."""
    if own.is_file():
        shutil.copyfile(own, path)
    if not path.is_file():
        return
    document = read_object(path)
    if (respelt := _respell(document)) is not None:
        path.write_text(json.dumps({**document, "pre_tokenizer": respelt}, ensure_ascii=False), encoding="utf-8")


def _respell(document: dict[str, Any]) -> dict[str, Any] | None:
    """Another form of the pre-tokenizer; None where the one that is there will do."""
    chain = document.get("pre_tokenizer") or {}
    steps = chain.get("pretokenizers", [chain])
    return _spell_digits(steps) if any(step.get("type") == "Digits" for step in steps) else None


def _spell_digits(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """`Digits` as equal `Split` steps.

    GenAI takes `Digits` for ASCII digits only, where Hugging Face takes every character of the Unicode class N; and after
    a `Split` it forgets the pattern of `ByteLevel`, so that is spelt out too.
    """
    spelt: list[dict[str, Any]] = []
    for step in steps:
        if step.get("type") == "Digits":
            spelt.append(_split(r"\p{N}" if step.get("individual_digits") else r"\p{N}+"))
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            spelt += [_split(_BYTE_LEVEL_PATTERN), {**step, "use_regex": False}]
        else:
            spelt.append(step)
    return {"type": "Sequence", "pretokenizers": spelt}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
