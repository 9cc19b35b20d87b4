"""What a board over ssh costs the figures: `edgec bench` here and over ssh on this very machine, in turns.

    python -m benchmarks.peers.ssh_cost PACKAGE --device ssh://user@localhost:2222

An OpenSSH server must run here, and let the user in (EDGEC_SSH names another client).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.harness import bench
from benchmarks.peers.timing import print_ratio
from compiler.package import read_package
from runtimes.workload import Workload

_FIGURES = (("tpot_ms_p50", "TPOT", "ms"), ("ttft_s", "TTFT", "s"), ("latency_ms_p50", "latency", "ms"))
_GOAL = 1.02


def main() -> None:
    """Measure in turns, and print the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--device", required=True)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    package, workload = read_package(options.package), Workload(rounds=3)
    found: dict[str, list[dict[str, float]]] = {"local": [], options.device: []}
    for _ in range(options.turns):
        for device, figures in found.items():
            (measured,) = bench([package], workload, device=device)
            figures.append({name: value for name, _, _ in _FIGURES if (value := measured.figure(name)) is not None})
            print(f"  {device}: {figures[-1]} {measured.verdict.word}", flush=True)
    for name, title, unit in _FIGURES:
        both = [[each[name] for each in figures if name in each] for figures in found.values()]
        if all(both):
            here, there = (statistics.median(values) for values in both)
            print_ratio(f"{title}, over ssh / here", there, here, unit, _GOAL)


if __name__ == "__main__":
    main()
