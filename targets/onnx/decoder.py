"""A decoder as an ONNX Runtime GenAI folder: model, genai_config.json and tokenizer, made by GenAI's own builder."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.json_file import read_object
from compiler.lineage import about, model_of, write_lineage
from compiler.model import Model
from compiler.package import FixedShapes, Graph, Lowered, Port
from compiler.quantize.allocation import Budget, write_allocation
from compiler.quantize.plan import copy_tables
from compiler.target import longest_context
from targets.onnx.codes import CHOICES, carry, weight_bytes
from targets.onnx.metadata import describe
from targets.onnx.tokenizer import carry_tokenizer
from targets.onnx.weights import read_weights
from targets.onnx.windows import cache_slides, same_in_genai


def build(model: str, out: str, scheme: str, context_length: int | None, lineage: dict[str, str]) -> dict[str, Any]:
    """Run the builder in this process and write the lineage beside what it made."""
    from targets.onnx.streaming import stream_weights

    folder, source = Path(out), model_of(Path(model), lineage)
    options = []
    if scheme.startswith("int4"):
        options.append(f"block_size={_block_of(scheme)}")
    if not cache_slides(source, context_length):
        options.append("windowed_kv_cache=false")
    options = ["--extra_options", *options] if options else []
    precision = "int4" if scheme.startswith("int4") else scheme
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="builder-") as temporary:
        sys.argv = ["builder", "-i", model, "-o", out, "-p", precision, "-e", "cpu", "-c", temporary, *options]
        _tell_rotary_bases_apart()
        stream_weights()
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    write_lineage(source, lineage, folder)
    _write_context(folder / "genai_config.json", context_length)
    carry_tokenizer(Path(model) / "tokenizer.json", folder / "tokenizer.json")
    describe(folder / "model.onnx", about(source, lineage["recipe"]))
    lowered = _lowered(folder, scheme, source, context_length)
    if scheme.startswith("int4"):
        _require_blocks(lowered["weights"]["types"], scheme)
    return lowered


def _block_of(scheme: str) -> str:
    return scheme.rsplit("-g", 1)[1]


def _require_blocks(types: Mapping[str, int], scheme: str) -> None:
    """Hold the builder to the group size that was asked for: it passes over options that it does not know.

    Raises:
        CheckFailed: it took another.
    """
    wrong = [stored for stored in types if "-block" in stored and not stored.endswith(f"-block{_block_of(scheme)}")]
    if wrong:
        raise CheckFailed(
            "scheme",
            f"ONNX Runtime GenAI's builder stored {wrong[0]} where {scheme} was asked for. Use onnx:int4-rtn-g32, or "
            f"onnx:{scheme}-asym, whose codes are edgec's own.",
        )


def _tell_rotary_bases_apart() -> None:
    """Give the builder a Gemma 3 configuration as transformers 4 had it: the local layers' base on its own.

    transformers 5 keeps a set of rotary parameters for each kind of layer, which the builder reads for Gemma 4 only
    (onnxruntime_genai/models/builders/gemma.py).
    """
    from transformers import AutoConfig

    given = AutoConfig.from_pretrained

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        config = given(*arguments, **options)
        # The model itself is loaded with unused options asked for, and needs its own form.
        if not options.get("return_unused_kwargs") and getattr(config, "model_type", None) == "gemma3_text":
            kinds = config.rope_parameters
            config.rope_local_base_freq = kinds["sliding_attention"]["rope_theta"]
            config.rope_parameters = dict(kinds["full_attention"])
        return config

    AutoConfig.from_pretrained = from_pretrained  # type: ignore[method-assign]


def allocate(
    model: str,
    base: str,
    sensitivity: str,
    out: str,
    parameters: int,
    target_bpw: float | None,
    max_bytes: int | None,
) -> dict[str, Any]:
    """Choose each layer's bits; `base` is the folder of the float32 graph, `sensitivity` that of the measured layers."""
    folder = Path(base)
    matrices, others = weight_bytes(folder / "model.onnx")
    fixed = sum(file.stat().st_size for file in folder.iterdir()) - matrices
    budget = Budget(parameters, fixed, others, target_bpw, max_bytes)
    return write_allocation(Path(sensitivity), Path(out), CHOICES, budget)


def pack_codes(
    model: str, base: str, codes: str, out: str, scheme: str, context_length: int | None, lineage: dict[str, str]
) -> dict[str, Any]:
    """Put our codes into GenAI's float32 graph, which lies in the folder `base`."""
    exported, folder, source = Path(base), Path(out), model_of(Path(model), lineage)
    for file in exported.iterdir():
        if file.name not in ("model.onnx", "model.onnx.data"):
            shutil.copyfile(file, folder / file.name)
    carry(exported / "model.onnx", Path(model), Path(codes), folder / "model.onnx")
    copy_tables(Path(codes), folder)
    write_lineage(source, lineage, folder)
    _write_context(folder / "genai_config.json", context_length)
    describe(folder / "model.onnx", about(source, lineage["recipe"]))
    return _lowered(folder, scheme, source, context_length)


def _lowered(folder: Path, scheme: str, model: Model, context_length: int | None) -> dict[str, Any]:
    inputs = (Port("input_ids", "int64", ("batch", "sequence")),)
    outputs = (Port("logits", "float32", ("batch", "sequence", model.geometry.vocabulary)),)
    return asdict(
        Lowered(
            runtime="ortgenai",
            graphs=(Graph("main", ("model.onnx",), inputs, outputs),),
            weights=read_weights(folder / "model.onnx", scheme),
            shapes=FixedShapes(
                context_length, (), longest_context(model, same_in_genai(model)), None, model.geometry.vocabulary
            ),
        )
    )


def _write_context(path: Path, context_length: int | None) -> None:
    config = read_object(path)
    if context_length is not None:
        trained = config["model"]["context_length"]
        if context_length > trained:
            raise UnusableInput(
                f"A context of {context_length} tokens is asked for; the model was trained for {trained}."
            )
        config["search"]["max_length"] = context_length
    path.write_text(json.dumps(config, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
