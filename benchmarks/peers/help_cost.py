"""What `edgec --help` takes of the processor."""

from __future__ import annotations

import statistics

from benchmarks.peers.timing import edgec_script, print_ratio, run_command

RUNS = 15
GOAL_CPU_S = 0.4


def main() -> None:
    """Run it a few times and print the median."""
    costs = [run_command([edgec_script(), "--help"]) for _ in range(RUNS)]
    print_ratio(
        "edgec --help, CPU seconds against the goal", statistics.median(c.cpu_s for c in costs), GOAL_CPU_S, "s", 1.0
    )


if __name__ == "__main__":
    main()
