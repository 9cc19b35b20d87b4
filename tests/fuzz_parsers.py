"""Every parser of edgec that reads what comes from outside, with a valid input to damage."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from lowering import lower
from measurements import found, measurement
from safetensors.numpy import save_file

import edgec
from benchmarks.compare import compare as compare_runs
from benchmarks.measurement import read_measurements
from compiler.formats.codes import list_quantized, read_quantized
from compiler.formats.gguf import read_gguf_header
from compiler.formats.gptq import read_form
from compiler.formats.json_file import parse_json, read_object
from compiler.formats.litertlm import (
    METADATA,
    MODEL,
    TOKENIZER,
    NewSection,
    find_section,
    open_litertlm,
    packed_text,
    unpacked_text,
    write_litertlm,
)
from compiler.formats.safetensors import find_tensors, list_tensors
from compiler.inputs.adapter import check_adapter
from compiler.inputs.keras import check_keras
from compiler.model import read_model
from compiler.package import FileRecord, Package, check_files, read_package, write_manifest
from compiler.quantize.calibrate.arrays import read_arrays
from compiler.quantize.calibrate.texts import keep_text
from compiler.recipe import parse_recipe
from compiler.recipe_file import read_recipe_file
from compiler.stages.cache import find_entry
from compiler.tokenizer import end_of_text_ids, load_tokenizer
from runtimes.coreml.mil_program import read_mil
from runtimes.registry import runtime_of
from runtimes.verify.strings import render_chats
from runtimes.verify.verification import read_verification, write_verification
from targets.registry import TARGET_NAMES


@dataclass(frozen=True)
class Parser:
    """A parser and its input.

    Attributes:
        name: what is damaged.
        file: the valid input; what lies beside it stays as it is.
        read: is given the path of the damaged file, in its place.
        weight: how many inputs it gets beside others.
    """

    name: str
    file: Path
    read: Callable[[Path], Any]
    weight: int = 20


def parsers(folder: Path, tokenizer: Path) -> list[Parser]:
    """All parsers; their valid inputs are written into `folder`, which is empty."""
    decoder = tiny.save_decoder("llama", tokenizer, folder / "decoder")
    encoder = tiny.save_encoder("bert", tokenizer, folder / "encoder")
    package = _package(lower(encoder, folder / "package"))
    every = [
        *_texts(folder),
        *_functions(folder),
        *_weights(folder),
        *_packages(package),
        *_models(folder, decoder, encoder),
    ]
    assert len({each.name for each in every}) == len(every)
    return every


def _write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def _texts(folder: Path) -> list[Parser]:
    recipe_file = '[[recipe]]\nrecipe = "gguf:Q8_0"\ncontext_length = 512\n[recipe.thresholds]\nmax_mean_kl = 0.5\n'
    form = {"bits": 4, "group_size": 32, "quant_method": "gptq", "sym": True, "desc_act": False, "dynamic": {}}
    samples, figures = {"latency_s": [[0.1, 0.2], [0.1, 0.3]]}, {"min_cosine": 0.9}
    results = [
        measurement(samples, {"latency_ms_p50": 1.0}, figures, recipe=name) for name in ("onnx:int8", "onnx:fp32")
    ]
    run = folder / "texts" / "run.jsonl"
    _write(run, "\n".join(json.dumps(asdict(each)) for each in results))
    entry = _write(
        folder / "cache" / "stages" / "key" / "entry.json", {"digests": {"a": "b"}, "value": {}, "sizes": {}}
    )
    lines = '{"text": "one"}\n{"text": "two", "other": [1, {"a": null}]}\n'
    return [
        Parser("JSON", _write(folder / "texts" / "a.json", form), lambda file: parse_json(file.read_bytes(), "it"), 60),
        Parser(
            "recipe", _write(folder / "texts" / "a.recipe", "onnx:int4-gptq-g32-asym@local+imatrix"), _read_recipe, 60
        ),
        Parser("recipe file", _write(folder / "texts" / "a.toml", recipe_file), _read_recipes, 60),
        Parser(
            "GPTQ settings", _write(folder / "texts" / "gptq.json", form), lambda file: read_form(read_object(file)), 60
        ),
        Parser("results", run, _compare, 20),
        Parser("cache entry", entry, lambda file: find_entry("key")),
        Parser("calibration lines", _write(folder / "texts" / "a.jsonl", lines), lambda file: keep_text(str(file))),
    ]


def _read_recipe(file: Path) -> Any:
    return parse_recipe(file.read_bytes().decode("utf-8", "replace"), TARGET_NAMES)


def _read_recipes(file: Path) -> Any:
    return read_recipe_file(file, TARGET_NAMES)


def _compare(file: Path) -> Any:
    found = read_measurements(file)
    return compare_runs(found, found, 0.05, across_schemes=True, allow=())


def _weights(folder: Path) -> list[Parser]:
    import gguf

    from compiler.formats.codes import QuantizedTensor, write_quantized

    weights = folder / "weights"
    weights.mkdir()
    tensors = {name: np.ones((4, 8), np.float32) for name in ("a.weight", "b.weight")}
    save_file(tensors, weights / "model-00001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001.safetensors")}
    _write(weights / "model.safetensors.index.json", index)
    writer = gguf.GGUFWriter(str(weights / "a.gguf"), "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("llama.lengths", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    codes = np.ones((4, 32), np.uint8)
    scales, zeros = np.ones((4, 1), np.float16), np.ones((4, 1), np.uint8)
    (weights / "codes").mkdir()
    write_quantized(
        weights / "codes" / "codes-0000.safetensors", [QuantizedTensor("a.weight", codes, scales, zeros, 4, 32, True)]
    )
    return [
        Parser("GGUF", weights / "a.gguf", read_gguf_header, 100),
        Parser("safetensors", weights / "model-00001.safetensors", list_tensors, 100),
        Parser("index", weights / "model.safetensors.index.json", lambda file: find_tensors(file.parent), 40),
        Parser("codes", weights / "codes" / "codes-0000.safetensors", _read_codes, 40),
        Parser("LiteRT-LM bundle", _bundle(weights / "a.litertlm"), _read_bundle, 100),
    ]


def _functions(folder: Path) -> list[Parser]:
    import h5py

    place = folder / "functions"
    place.mkdir()
    np.savez(place / "a.npz", picture=np.ones((2, 3), np.float32), count=np.ones(2, np.int32))
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}, "registered_name": None}
    with h5py.File(place / "weights.h5", "w") as document:
        document.create_group("layers/dense/vars")["0"] = np.ones((2, 2), np.float32)
    with zipfile.ZipFile(place / "a.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"module": "keras", "class_name": "Sequential", "config": [layer]}))
        archive.writestr("metadata.json", "{}")
        archive.write(place / "weights.h5", "model.weights.h5")
    ports = [{"name": "x", "dtype": "float32", "shape": ["batch", 3], "tensor": "x:0"}]
    config = {"architectures": ["TensorFlowFunction"], "inputs": ports, "outputs": ports}
    own = _write(place / "own" / "config.json", config)
    save_file({"w": np.ones(3, np.float32)}, own.with_name("model.safetensors"))
    return [
        Parser("arrays", place / "a.npz", read_arrays, 40),
        Parser("Keras file", place / "a.keras", check_keras, 40),
        Parser("function's config", own, lambda file: edgec.inspect(read_model(file.parent)), 10),
    ]


def _bundle(file: Path) -> Path:
    sections = (
        NewSection(METADATA, [b"told"]),
        NewSection(TOKENIZER, [packed_text(b"{}")]),
        NewSection(MODEL, [b"TFL3" * 8], {"a": "b"}),
    )
    write_litertlm(file, sections, {"name": "tiny"})
    return file


def _read_bundle(file: Path) -> None:
    with open_litertlm(file) as sections:
        unpacked_text(find_section(sections, TOKENIZER, file))
        find_section(sections, MODEL, file)


def _read_codes(file: Path) -> Any:
    return [read_quantized(each) for each in list_quantized(file.parent).values()]


def _package(lowered: Package) -> Path:
    """The package with its manifest and what verify found."""
    names = [path.relative_to(lowered.folder).as_posix() for path in lowered.folder.rglob("*") if path.is_file()]
    files = {name: FileRecord("0" * 64, (lowered.folder / name).stat().st_size) for name in names}
    package = replace(lowered, files=files)
    write_manifest(package)
    write_verification(package, replace(found({"min_cosine": 0.99}), package=package.digest))
    return package.folder


def _packages(package: Path) -> list[Parser]:
    mlpackage = package / "model.mlpackage"
    (program,) = mlpackage.rglob("*.mlmodel")
    return [
        Parser("package", package / "package.json", lambda file: _open(file.parent), 60),
        Parser(
            "verification", package / "verification.json", lambda file: read_verification(read_package(package)), 40
        ),
        Parser("ML package manifest", mlpackage / "Manifest.json", lambda file: read_mil(mlpackage), 10),
        Parser("ML program", program, lambda file: read_mil(mlpackage), 10),
    ]


def _open(folder: Path) -> Any:
    package = read_package(folder)
    runtime_of(package)
    check_files(package)


def _models(folder: Path, decoder: Path, encoder: Path) -> list[Parser]:
    hidden = json.loads((encoder / "config.json").read_text())["hidden_size"]
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    listed = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(modules)
    ]
    _write(encoder / "modules.json", listed)
    _write(encoder / "1_Pooling" / "config.json", {"embedding_dimension": hidden, "pooling_mode": ["cls", "mean"]})
    dense = {"in_features": 2 * hidden, "out_features": 8, "bias": False, "activation_function": "torch.nn.Tanh"}
    _write(encoder / "2_Dense" / "config.json", dense)
    save_file({"linear.weight": np.ones((8, 2 * hidden), np.float32)}, encoder / "2_Dense" / "model.safetensors")
    _write(encoder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    _write(encoder / "config_sentence_transformers.json", {"prompts": {"query": "q: "}, "default_prompt_name": "query"})
    _write(decoder / "README.md", "---\nlicense: mit\nbase_model:\n- org/name\n---\n# Title\n")
    _write(decoder / "generation_config.json", {"eos_token_id": [1, 2], "bos_token_id": 0})
    adapter = folder / "adapter"
    adapter.mkdir()
    shutil.copyfile(folder / "weights" / "model-00001.safetensors", adapter / "adapter_model.safetensors")
    _write(adapter / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/name", "r": 8})
    read = [
        Parser("decoder's config", decoder / "config.json", lambda file: edgec.inspect(read_model(decoder)), 10),
        Parser("encoder's config", encoder / "config.json", lambda file: edgec.inspect(read_model(encoder)), 10),
        Parser("model card", decoder / "README.md", lambda file: read_model(decoder)),
        Parser("generation_config", decoder / "generation_config.json", lambda file: end_of_text_ids(decoder), 40),
        Parser("tokenizer", decoder / "tokenizer.json", lambda file: load_tokenizer(decoder), 1),
        Parser("tokenizer_config", decoder / "tokenizer_config.json", lambda file: _render(decoder), 1),
        Parser(
            "adapter", adapter / "adapter_config.json", lambda file: check_adapter(adapter, read_model(decoder)), 20
        ),
    ]
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"):
        read.append(Parser(f"encoder's {name}", encoder / name, lambda file: read_model(encoder), 10))
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        read.append(Parser(f"encoder's {name}", encoder / name, lambda file: read_model(encoder), 10))
    return read


def _render(folder: Path) -> Any:
    return render_chats(load_tokenizer(folder))
