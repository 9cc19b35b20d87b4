"""What `edgec plan` tells of this machine beside what is then measured here: bytes, largest memory, tokens a second.

    python -m benchmarks.peers.plan_accuracy FOLDER ...   folders with packages of models that this machine knows

Nothing that was measured before is learned from; `--learned` leaves the file of such measurements in.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.harness import bench
from benchmarks.history import read_history
from benchmarks.measurement import Measurement
from benchmarks.plan import Option, Wishes, plan
from benchmarks.profiling import LOCAL, profile_for
from compiler.inputs.identity import find_identified
from compiler.package import MANIFEST, Package, read_package
from runtimes.context import DEFAULT_CONTEXT
from runtimes.devices.profile import DeviceProfile
from runtimes.workload import Workload
from targets.registry import load_target

_TOKENS = 192
# None was asked of the first token, or of an encoder's input.
_GOALS = (("bytes", 0.02), ("memory", 0.10), ("tok/s", 0.20), ("ms", 0.20))


def predicted(package: Package, here: DeviceProfile) -> Option | None:
    """What the plan for this machine says of a package's recipe; None where it says nothing."""
    model, digest = find_identified(package.model), package.model.digest
    # LiteRT-LM's cache grows with the tokens that are there.
    context = _TOKENS if package.lowered.runtime == "litertlm" else DEFAULT_CONTEXT
    found = plan(model, digest, here, Wishes(context), load_target, read_history())
    alike = [each for each in found.options if each.recipe == package.recipe]
    # Of a mixture the budget that is nearest.
    return min(alike, key=lambda each: abs(each.package_bytes - package.nbytes), default=None)


def _first_ms(found: Measurement) -> float | None:
    seconds = found.figure("ttft_s")
    return seconds * 1e3 if seconds is not None else found.figure("latency_ms_p50")


def main() -> None:
    """Predict all, measure all, print ratios and which are within the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--learned", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgec-no-history-") as empty:
        if not options.learned:
            os.environ["XDG_DATA_HOME"] = empty
        compare(options.folders, options.rounds)


def compare(folders: list[Path], rounds: int) -> None:
    """The same, for packages in folders."""
    packages = [read_package(file.parent) for folder in folders for file in sorted(folder.glob(f"*/{MANIFEST}"))]
    packages = [
        each
        for each in packages
        if each.lowered.runtime in ("llamacpp", "ortgenai", "onnxruntime", "litert", "litertlm")
    ]
    here = profile_for(LOCAL)
    told = [predicted(each, here) for each in packages]
    measured = bench(packages, Workload(rounds=rounds))
    within = dict.fromkeys((name for name, _ in _GOALS), 0)
    compared = dict.fromkeys(within, 0)
    for package, option, found in zip(packages, told, measured, strict=True):
        if option is None:
            print(f"{package.title}: nothing is predicted")
            continue
        print(f"{package.model.name} {package.title} ({found.verdict.word})")
        pairs = {
            "bytes": (option.package_bytes, found.figure("package_bytes")),
            "memory": (option.memory.middle if option.memory else None, found.figure("peak_rss_bytes")),
            "ms": (option.first_s.middle * 1e3 if option.first_s else None, _first_ms(found)),
            "tok/s": (option.tok_per_s.middle if option.tok_per_s else None, found.figure("decode_tok_per_s")),
        }
        for name, goal in _GOALS:
            guess, true = pairs[name]
            if guess is not None and true:
                compared[name] += 1
                within[name] += abs(guess / true - 1) <= goal
                scale = 1e6 if name in ("bytes", "memory") else 1.0
                print(f"  {name:8} {guess / scale:10.1f} / {true / scale:10.1f} = {guess / true:.3f}")
    for name, goal in _GOALS:
        print(f"{name}: {within[name]} of {compared[name]} within {goal:.0%}")


if __name__ == "__main__":
    main()
