"""What a machine can do, for its profile: `python -P -m benchmarks.agent.probe THREADS`, driven as the agent is.

look    the machine
int8    its products of 8-bit integers
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.agent.environment import read_environment
from benchmarks.agent.rates import measure_int8


def main(threads: int) -> None:
    """Serve the lines of standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        found: dict[str, Any]
        if line.strip() == "look":
            found = {"environment": asdict(read_environment(threads, ()))}
        elif line.strip() == "int8":
            found = {"int8_ops_per_s": measure_int8(threads)}
        else:
            break
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
