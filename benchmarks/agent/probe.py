"""What a machine can do, for its profile: `python -P -m benchmarks.agent.probe THREADS`, driven as the agent is.

look    the machine, and the operations a second of products of float32 matrices by numpy
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

import numpy as np

from benchmarks.agent.environment import read_environment

_ROWS, _LEAST_S = 1024, 1.0


def measure_fp32() -> float:
    """Operations a second of numpy's product of two float32 matrices: the best of a second."""
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal((_ROWS, _ROWS), np.float32) for _ in range(2))
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < _LEAST_S:
        started = time.perf_counter()
        np.matmul(first, second)
        best = max(best, 2 * _ROWS**3 / (time.perf_counter() - started))
    return best


def main(threads: int) -> None:
    """Serve the lines of standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        if line.strip() != "look":
            break
        found = {"environment": asdict(read_environment(threads, ())), "fp32": measure_fp32()}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
