"""From what the user typed (a folder, a hub id, a .gguf or .keras file) to a Model. What must be made first is a stage."""

from __future__ import annotations

import re
from pathlib import Path

from compiler.digest import tool_version
from compiler.errors import UnusableInput, missing_extra
from compiler.formats.gguf import read_gguf_header
from compiler.formats.gptq import CONFIG
from compiler.formats.safetensors import FLOATS
from compiler.inputs.adapter import check_adapter, digest_adapter
from compiler.inputs.hub import fetch_from_hub, is_hub_id
from compiler.inputs.identity import digest_model
from compiler.inputs.real_name import real_name
from compiler.inputs.tensorflow import KERAS, digest_saved, is_saved_model, saved_files
from compiler.inputs.tokenizer import TOKENIZER, older_vocabulary
from compiler.model import Model, model_files, read_model
from compiler.stages.cache import remembered_digest
from compiler.stages.executor import Executor, LocalExecutor, Source, stamp_of
from compiler.stages.stage import Stage
from compiler.task import FUNCTION
from compiler.tensorflow_function import ENVIRONMENT, GRAPH, TOOLS, WEIGHTS

_FOLDER = ("config.json", "*.safetensors")


def open_model(
    text: str,
    *,
    task: str | None = None,
    name: str | None = None,
    adapter: Path | None = None,
    executor: Executor | None = None,
) -> Model:
    """Read the Model that `text` names.

    Args:
        text: a Hugging Face folder, a hub id, a .gguf file, or a TensorFlow SavedModel or .keras file.
        task: what it is for, where its architecture does not tell.
        name: in the place of the name that its folder or file gives it.
        adapter: a folder as peft writes it; the Model is then the one that its LoRA layers make of it.
        executor: what runs the stages that import.

    Raises:
        UnusableInput: nothing usable is there.
    """
    if name is not None and (re.search(r"[/\\\x00-\x1f]", name) or name in ("", ".", "..")):
        raise UnusableInput(f"The name {name!r} cannot be a file's. Give --name without slashes.")
    executor = executor or LocalExecutor()
    if adapter is not None:
        return _with_adapter(_open_base(text, task, None, executor), adapter, name, executor)
    return _open_base(text, task, name, executor)


def _open_base(text: str, task: str | None, name: str | None, executor: Executor) -> Model:
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        return _import_gguf(path, task, name, executor)
    if is_saved_model(path) or (path.suffix == KERAS and path.is_file()):
        if task not in (None, FUNCTION):
            raise UnusableInput(
                f"{path.name} is a function of TensorFlow's, whose inputs and outputs it names itself: it has no task {task}. "
                "Leave --task out."
            )
        return _import_function(path, name, executor)
    if path.is_dir():
        return _prepared(read_model(path, name=name or real_name(path), task=task), executor)
    if path.exists():
        raise UnusableInput(
            f"{text} is neither a folder nor a .gguf or .keras file. Give a Hugging Face model folder, a SavedModel, or a hub "
            "id."
        )
    if not is_hub_id(text):
        raise UnusableInput(f"There is no model {text!r}: no such folder, and it is not of the form of a hub id.")
    folder, source = fetch_from_hub(text)
    model = read_model(folder, name=name or source.split("@")[0].split("/")[-1], source=source, task=task)
    return _prepared(model, executor)


def _prepared(model: Model, executor: Executor) -> Model:
    """The model with a tokenizer.json, and with codes that it came with apart from its weights."""
    return _with_codes_apart(_with_tokenizer(model, executor), executor)


def _with_tokenizer(model: Model, executor: Executor) -> Model:
    """The model, or where it has its vocabulary in an older form, what compiler/inputs/tokenizer.py makes of it."""
    if model.takes != "text" or (vocabulary := older_vocabulary(model.folder)) is None:
        return model
    stage = Stage(
        f"make tokenizer.json of {vocabulary}",
        "compiler.inputs.tokenizer:make_tokenizer",
        {},
        ("transformers", "tokenizers", "sentencepiece"),
        ensures=("config.json", TOKENIZER),
    )
    folder = executor.run_one(stage, {"model": _source_of(model)}, model.name).files
    return read_model(folder, name=model.name, source=model.source, task=model.task)


def _source_of(model: Model) -> Source:
    stamp = stamp_of(model_files(model.folder))
    return Source(model.folder, digest_model(model), stamp)


def _with_adapter(model: Model, adapter: Path, name: str | None, executor: Executor) -> Model:
    """What compiler/inputs/adapter.py makes of the model."""
    check_adapter(adapter, model)
    stage = Stage(
        f"merge {adapter.name}",
        "compiler.inputs.adapter:merge_adapter",
        {"task": model.task},
        ("peft", "transformers", "torch"),
        sources=("model", "adapter"),
        ensures=_FOLDER,
    )
    base, own = _source_of(model), Source(adapter, digest_adapter(adapter))
    folder = executor.run_one(stage, {"model": base, "adapter": own}, model.name).files
    together = f"{model.name}-{adapter.absolute().name}"
    source = f"{model.source}+{adapter.absolute().name}"
    return read_model(folder, name=name or together, source=source, task=model.task)


def _with_codes_apart(model: Model, executor: Executor) -> Model:
    """The model, or where it is a GPTQ checkpoint, what compiler/inputs/gptq.py makes of it."""
    said = model.config.get("quantization_config")
    if said is None and (model.folder / CONFIG).is_file() and any(t.name.endswith(".qweight") for t in model.tensors):
        said = {"quant_method": "gptq"}  # as AutoGPTQ wrote it: in quantize_config.json only
    if said is None:
        _require_floats(model)
        return model
    method = said.get("quant_method", "gptq" if "bits" in said else None) if isinstance(said, dict) else said
    if method != "gptq":
        raise UnusableInput(
            f"{model.name} is already quantized by {method!r}, which edgec does not read. Give the model "
            "that it was made from, or a GPTQ checkpoint."
        )
    stage = Stage(
        f"import {model.name}", "compiler.inputs.gptq:import_gptq", {}, ("numpy", "safetensors"), ensures=_FOLDER
    )
    folder = executor.run_one(stage, {"model": _source_of(model)}, model.name).files
    return read_model(folder, name=model.name, source=model.source, task=model.task)


def _require_floats(model: Model) -> None:
    """Refuse weights that are codes, where nothing tells what they stand for."""
    for tensor in model.tensors:
        codes = tensor.dtype not in FLOATS and len(tensor.shape) > 1 and not tensor.name.endswith(_BUFFERS)
        if codes or tensor.name.endswith((".qweight", "_scale_inv")):
            kind = f"fp8 ({tensor.dtype})" if tensor.dtype.startswith("F8") else f"codes ({tensor.dtype})"
            raise UnusableInput(
                f"{model.name} is already quantized: tensor {tensor.name} holds {kind}, and config.json has no "
                "quantization_config that tells what they stand for. Give the model that it was made from."
            )


# Tensors of whole numbers that are no weights: GPT-2's and BERT's masks and positions.
_BUFFERS = ("position_ids", ".bias", "masked_bias")


def _import_function(path: Path, name: str | None, executor: Executor) -> Model:
    """What compiler/inputs/tensorflow.py makes of a SavedModel or a .keras file."""
    if tool_version("tensorflow") is None:
        raise missing_extra("tensorflow", "tensorflow")
    stage = Stage(
        f"import {path.name}",
        "compiler.inputs.tensorflow:import_function",
        {},
        (*TOOLS, "keras", "h5py"),
        sources=("file",),
        ensures=("config.json", GRAPH, WEIGHTS),
        environment=ENVIRONMENT,
    )
    source = Source(path, digest_saved(path), stamp_of(saved_files(path)))
    folder = executor.run_one(stage, {"file": source}, path.name).files
    name = name or path.absolute().name.removesuffix(KERAS)
    return read_model(folder, name=name, source=path.absolute().name)


def _import_gguf(path: Path, task: str | None, name: str | None, executor: Executor) -> Model:
    if not path.is_file():
        raise UnusableInput(f"There is no file {path}.")
    read_gguf_header(path)
    stamp = stamp_of([path])
    stage = Stage(
        f"import {path.name}",
        "compiler.inputs.gguf:import_gguf",
        {},
        ("transformers", "tokenizers", "gguf", "torch"),
        sources=("file",),
        ensures=_FOLDER,
    )
    folder = executor.run_one(stage, {"file": Source(path, remembered_digest(path), stamp)}, path.name).files
    name = name or re.sub(r"[.-](I?Q\d\w*|TQ\d\w*|B?F16|F32)$", "", path.stem, flags=re.IGNORECASE)
    return read_model(folder, name=name, source=path.name, task=task)
