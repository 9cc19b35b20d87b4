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
from compiler.model import TEXT_GENERATION, Model, read_model
from compiler.package import Lowered, Port
from compiler.quantize.allocation import Budget, write_allocation
from compiler.quantize.plan import copy_tables
from targets.onnx.codes import CHOICES, carry, weight_bytes
from targets.onnx.tokenizer import carry_tokenizer
from targets.onnx.weights import read_weights


def build(
    model: str, inputs: list[str], out: str, scheme: str, context_length: int | None, origin: dict[str, str]
) -> dict[str, Any]:
    """Run the builder in this process and write the lineage beside what it made."""
    folder = Path(out)
    options = []
    if scheme.startswith("int4"):
        options.append(f"int4_block_size={scheme.rsplit('-g', 1)[1]}")
    if read_model(Path(model), task=TEXT_GENERATION).attention_window:
        # The builder then lists no layer as windowed, and the runtime takes that for all of them and fails.
        options.append("windowed_kv_cache=false")
    options = ["--extra_options", *options] if options else []
    precision = "int4" if scheme.startswith("int4") else scheme
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="builder-") as temporary:
        sys.argv = ["builder", "-i", model, "-o", out, "-p", precision, "-e", "cpu", "-c", temporary, *options]
        _tell_rotary_bases_apart()
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    read = write_lineage(Path(model), origin, folder)
    _settle_config(folder / "genai_config.json", context_length)
    carry_tokenizer(Path(model) / "tokenizer.json", folder / "tokenizer.json")
    return _lowered(folder, scheme, read)


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
