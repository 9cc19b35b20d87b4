"""The process in which one package is measured: `python -P -m benchmarks.agent.child PACKAGE WORKLOAD`.

It is driven by lines on standard input (`load`, `warmup`, `round`, `end`) and answers each with one JSON line on what was
its standard output when it started; runtimes that print do so to standard error. The same process runs on this machine or,
through a transport that carries the two streams, on another.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.agent.observe import peak_rss_bytes, resident_bytes
from benchmarks.workload import Workload
from compiler.package import Package, read_package
from compiler.stages.worker import die_with_parent
from runtimes.registry import import_runtime, open_session
from runtimes.session import LanguageSession

Round = dict[str, list[float]]


def language_round(session: LanguageSession, workload: Workload, prompt: list[int]) -> Round:
    """Prefill the prompt, then decode greedily; seconds to the first token and of every token after it."""
    clock = time.perf_counter
    started = clock()
    token = int(session.prefill(prompt).argmax())
    first = clock()
    tokens = []
    before = first
    for _ in range(workload.generated_tokens - 1):
        token = int(session.decode(token).argmax())
        now = clock()
        tokens.append(now - before)
        before = now
    return {"ttft_s": [first - started], "tpot_s": tokens}


def encoder_round(run: Callable[[], Any], repetitions: int) -> Round:
    """Seconds of each run."""
    latencies = []
    for _ in range(repetitions):
        started = time.perf_counter()
        run()
        latencies.append(time.perf_counter() - started)
    return {"latency_s": latencies}


def encoder_inputs(package: Package, workload: Workload, fixed_length: int | None) -> dict[str, NDArray[Any]]:
    """One seeded input of the workload's length, or of the container's where that is fixed; a session takes what it needs."""
    generator = np.random.default_rng(0)
    ports = package.lowered.inputs
    if ports[0].name == "pixel_values":
        shape = tuple(size if isinstance(size, int) else 1 for size in ports[0].shape)
        return {"pixel_values": generator.standard_normal(shape, np.float32)}
    length = fixed_length or workload.sequence_length
    row = generator.integers(5, 500, (1, length), dtype=np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}


def _open(package: Package, workload: Workload) -> tuple[Callable[[], Round], Callable[[], Round]]:
    """(timed round, warm-up round) of the package."""
    session = open_session(package, workload.threads)
    if isinstance(session, LanguageSession):
        needed = workload.prompt_tokens + workload.generated_tokens
        if needed > session.context_length:
            raise ValueError(f"the workload needs {needed} tokens, the package holds {session.context_length}")
        prompt = [int(token) for token in np.random.default_rng(0).integers(5, session.vocabulary // 2, needed)]
        prompt = prompt[: workload.prompt_tokens]
        timed = partial(language_round, session, workload, prompt)
        return timed, timed
    inputs = encoder_inputs(package, workload, session.fixed_sequence_length)
    run = partial(session.run, inputs)
    return partial(encoder_round, run, workload.repetitions), partial(encoder_round, run, workload.warmup_repetitions)


def main(folder: str, workload_json: str) -> None:
    """Serve the lines of standard input until `end`."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    package, workload = read_package(Path(folder)), Workload(**json.loads(workload_json))
    import_runtime(package)
    timed: Callable[[], Round] | None = None
    warm: Callable[[], Round] | None = None
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            command = line.strip()
            if command == "load":
                before = resident_bytes(os.getpid())
                started = time.perf_counter()
                timed, warm = _open(package, workload)
                answer = {"load_s": time.perf_counter() - started, "imports": before}
            elif command == "warmup" and warm:
                answer = {"round": warm()}
            elif command == "round" and timed:
                answer = {"round": timed()}
            else:
                answer = {"peak_rss_bytes": peak_rss_bytes(os.getpid())}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if command == "end":
            break


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
