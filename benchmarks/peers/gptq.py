"""All figures of the quantization engine, one benchmark after the other: quality, sentence embeddings, cost."""

from __future__ import annotations

import subprocess
import sys

_MODULES = ("gptq_quality", "encoder_quality", "gptq_cost")


def main() -> None:
    """Run each in a process of its own, so that none measures what another left in memory."""
    for module in _MODULES:
        print(f"== benchmarks.peers.{module}", flush=True)
        subprocess.run([sys.executable, "-P", "-m", f"benchmarks.peers.{module}"], check=True)


if __name__ == "__main__":
    main()
