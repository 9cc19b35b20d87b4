"""A decoder as an ONNX Runtime GenAI folder: model, genai_config.json and tokenizer, made by GenAI's own builder."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.lineage import write_lineage
from compiler.model import Model
from compiler.package import Lowered, Port
from compiler.quantize.allocation import Budget, write_allocation
from compiler.quantize.plan import copy_tables
from targets.onnx_codes import CHOICES, carry, weight_bytes
from targets.onnx_weights import read_weights


def build(
    model: str, inputs: list[str], out: str, scheme: str, context_length: int | None, origin: dict[str, str]
) -> dict[str, Any]:
    """Run the builder in this process and write the lineage beside what it made."""
    folder = Path(out)
    options = []
    if scheme.startswith("int4"):
        options = ["--extra_options", f"int4_block_size={scheme.rsplit('-g', 1)[1]}"]
    precision = "int4" if scheme.startswith("int4") else scheme
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="builder-") as temporary:
        sys.argv = ["builder", "-i", model, "-o", out, "-p", precision, "-e", "cpu", "-c", temporary, *options]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    read = write_lineage(Path(model), origin, folder)
    _settle_config(folder / "genai_config.json", context_length)
    _respell_pre_tokenizer(folder / "tokenizer.json")
    return _lowered(folder, scheme, read)


def allocate(
    model: str, inputs: list[str], out: str, parameters: int, target_bpw: float | None, max_bytes: int | None
) -> dict[str, Any]:
    """Choose each layer's bits; `inputs` are the folders of the float32 graph and of the measured layers."""
    folder = Path(inputs[0])
    matrices, others = weight_bytes(folder / "model.onnx")
    fixed = sum(file.stat().st_size for file in folder.iterdir()) - matrices
    budget = Budget(parameters, fixed, others, target_bpw, max_bytes)
    return write_allocation(Path(inputs[1]), Path(out), CHOICES, budget)


def pack_codes(
    model: str, inputs: list[str], out: str, scheme: str, context_length: int | None, origin: dict[str, str]
) -> dict[str, Any]:
    """Put our codes into GenAI's float32 graph; `inputs` are the folders of that graph and of the quantization."""
    exported, folder = Path(inputs[0]), Path(out)
    for file in exported.iterdir():
        if file.name not in ("model.onnx", "model.onnx.data"):
            shutil.copyfile(file, folder / file.name)
    carry(exported / "model.onnx", Path(model), Path(inputs[1]), folder / "model.onnx")
    copy_tables(Path(inputs[1]), folder)
    read = write_lineage(Path(model), origin, folder)
    _settle_config(folder / "genai_config.json", context_length)
    return _lowered(folder, scheme, read)


def _lowered(folder: Path, scheme: str, model: Model) -> dict[str, Any]:
    return asdict(
        Lowered(
            runtime="ortgenai",
            artifact=".",
            inputs=(Port("input_ids", "int64", ("batch", "sequence")),),
            outputs=(Port("logits", "float32", ("batch", "sequence", model.geometry.vocabulary)),),
            weights=read_weights(folder / "model.onnx", scheme),
        )
    )


def _settle_config(path: Path, context_length: int | None) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    if context_length is not None:
        trained = config["model"]["context_length"]
        if context_length > trained:
            raise UnusableInput(
                f"A context of {context_length} tokens is asked for; the model was trained for {trained}."
            )
        config["search"]["max_length"] = context_length
    path.write_text(json.dumps(config, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


# GPT-2's pattern, which `ByteLevel` with use_regex applies (tokenizers, pre_tokenizers/byte_level.rs).
_BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _respell_pre_tokenizer(path: Path) -> None:
    """Write a pre-tokenizer with `Digits` as equal `Split` steps.

    GenAI's tokenizer takes `Digits` for ASCII digits only, where Hugging Face takes every character of the Unicode class
    N; and after a `Split` it forgets the pattern of `ByteLevel`, so that is spelt out too. To Hugging Face both forms are
    the same, and the text gate of `verify` holds the runtime to it.
    """
    if not path.is_file():
        return
    document = json.loads(path.read_text(encoding="utf-8"))
    chain = document.get("pre_tokenizer") or {}
    steps = chain.get("pretokenizers", [chain])
    if not any(step.get("type") == "Digits" for step in steps):
        return
    spelt: list[dict[str, Any]] = []
    for step in steps:
        if step.get("type") == "Digits":
            spelt.append(_split(r"\p{N}" if step.get("individual_digits") else r"\p{N}+"))
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            spelt += [_split(_BYTE_LEVEL_PATTERN), {**step, "use_regex": False}]
        else:
            spelt.append(step)
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": spelt}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
