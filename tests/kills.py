"""Builds, verifications and measurements that are killed at random moments leave nothing behind, and lose nothing.

    python tests/kills.py --kills 60

Each run has a cache and a folder of its own. It is killed (SIGKILL, SIGTERM or SIGINT; the command itself, or one of the
processes under it) after a random share of the time that it takes. Then, within seconds, no process of it may live; every
package that is there must be whole; and the same command run again must give the same bytes as a run that nobody disturbed.
The moments are the same for the same seed. 60 kills take about an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

import tiny  # noqa: E402

import edgec  # noqa: E402
from compiler.errors import EdgecError  # noqa: E402
from compiler.package import Package  # noqa: E402

_MARK = "EDGEC_KILLS"
_GRACE_S = 10
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Work:
    """A command: what it does, on which model, with which recipes."""

    command: str
    model: str
    recipes: tuple[str, ...]


WORKS = (
    Work("build", "bert", ("onnx:fp32", "onnx:int8")),
    Work("build", "bert", ("coreml:fp16",)),
    Work("build", "llama", ("gguf:Q8_0", "gguf:int4-rtn-g32")),
    Work("build", "llama", ("coreml:int4-rtn-g32",)),
    Work("verify", "bert", ("onnx:fp32", "onnx:int8")),
    Work("verify", "llama", ("gguf:Q8_0",)),
    Work("bench", "llama", ("gguf:Q8_0",)),
    Work("bench", "bert", ("onnx:fp32", "onnx:int8")),
)


@dataclass(frozen=True)
class Place:
    """Where a run works: its cache, its packages, and the mark in the environment of all its processes."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "EDGEC_CACHE": str(self.folder / "cache"), _MARK: str(self.folder)}
        environment |= {"TMPDIR": str(self.folder / "tmp"), "HF_HUB_OFFLINE": "1"}
        script = str(Path(sys.executable).with_name("edgec"))
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen([script, *arguments], stdout=said, stderr=said, env=environment)

    def processes(self) -> list[psutil.Process]:
        """Every process with the mark that still does something."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def _arguments(work: Work, model: Path, place: Place) -> list[str]:
    recipes = [word for recipe in work.recipes for word in ("-r", recipe)]
    packages = [str(place.out / recipe.replace(":", "-")) for recipe in work.recipes]
    if work.command == "build":
        return ["build", str(model), *recipes, "-o", str(place.out), "--verify"]
    if work.command == "verify":
        return ["verify", *packages]
    return ["bench", *packages, "--rounds", "2", "--repetitions", "3", "-o", str(place.folder / "run.jsonl")]


def _prepare(work: Work, model: Path, folder: Path, warm: Place | None) -> Place:
    """A place of its own; where packages must be there already, with a copy of those of a run that was not disturbed."""
    place = Place(folder)
    (folder / "tmp").mkdir(parents=True)
    if warm is not None:
        shutil.copytree(warm.folder / "cache", folder / "cache", symlinks=True)
        shutil.copytree(warm.out, place.out)
    return place


def _finish(work: Work, model: Path, place: Place) -> tuple[int, float]:
    """Run it to its end: exit code and seconds."""
    started = time.monotonic()
    code = place.start(_arguments(work, model, place)).wait()
    return code, time.monotonic() - started


def _packages(place: Place) -> dict[str, str]:
    """The digests of the packages that are there, each held to its hashes."""
    found: dict[str, Package] = {}
    for manifest in sorted(place.out.glob("*/package.json")):
        found[manifest.parent.name] = edgec.open_package(manifest.parent)
    return {name: package.digest for name, package in found.items()}


def _left_over(place: Place) -> list[str]:
    """Folders in the making, and whatever the command's own temporary folder still holds."""
    making = [path for path in (place.out, place.folder / "cache" / "stages") if path.is_dir()]
    names = [entry.name for folder in making for entry in folder.iterdir() if ".edgec-new-" in entry.name]
    return names + [entry.name for entry in (place.folder / "tmp").iterdir() if entry.name.startswith("edgec")]


def _kill(place: Place, started: subprocess.Popen[bytes], number: int, chance: random.Random) -> str:
    """Send a signal to the command, or to a process under it, and tell which."""
    under = [process for process in place.processes() if process.pid != started.pid]
    if under and chance.random() < 0.3:
        victim = chance.choice(under)
        try:
            victim.send_signal(number)
        except psutil.Error:
            return "a process that had just ended"
        return "a process under it"
    if started.poll() is None:
        started.send_signal(number)
    return "the command"


def misses(
    work: Work, model: Path, warm: Place, wanted: dict[str, str], seconds: float, chance: random.Random
) -> list[str]:
    """Kill one run and look at what is left; a sentence for each thing that must not be."""
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgec-kills-") as temporary:
        ready = None if work.command == "build" else warm
        place = _prepare(work, model, Path(temporary) / "place", ready)
        started = place.start(_arguments(work, model, place))
        moment, number = chance.uniform(0, seconds), chance.choice(_SIGNALS)
        time.sleep(moment)
        victim = _kill(place, started, number, chance)
        told = f"{work.command} {'+'.join(work.recipes)}, {victim}, {signal.Signals(number).name} at {moment:.1f} s"
        try:
            code = started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()
            return [f"{told}: it did not end"]
        deadline = time.monotonic() + _GRACE_S
        while place.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in place.processes():
            found.append(f"{told}: the process {process.pid} {process.name()} lives on")
            process.kill()
        try:
            there = _packages(place)
        except EdgecError as error:
            return [*found, f"{told}: {error}"]
        found += [f"{told}: {name} is another package" for name, digest in there.items() if wanted[name] != digest]
        results = place.folder / "run.jsonl"
        try:
            if results.exists():
                edgec.read_measurements(results)
                results.unlink()
        except EdgecError as error:
            found.append(f"{told}: {error}")
        if work.command == "build":
            for name in there:
                shutil.rmtree(place.out / name)
        again, _ = _finish(work, model, place)
        if again != 0:
            said = (place.folder / "said").read_text("utf-8", "replace")
            found.append(f"{told}: the next run ends with {again} (this one ended with {code}): {said[-500:]}")
        elif _packages(place) != wanted:
            found.append(f"{told}: the next run gives other bytes")
        if left := _left_over(place):
            found.append(f"{told}: {left[0]} is left over after the next run")
    return found


def main() -> int:
    """Kill so many runs; 1 when one of them left something that must not be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, found, done = random.Random(options.seed), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="edgec-kills-") as temporary:
        folder = Path(temporary)
        models = {"bert": tiny.save_encoder("bert", tiny.minilm(), folder / "bert")}
        models["llama"] = tiny.save_decoder("llama", tiny.save_sentencepiece(folder / "tokenizer"), folder / "llama")
        warm: dict[Work, tuple[Place, dict[str, str], float]] = {}
        for number in range(options.kills):
            work = WORKS[number % len(WORKS)]
            if work not in warm:
                warm[work] = _undisturbed(work, models[work.model], folder / f"warm-{number}")
            place, wanted, seconds = warm[work]
            missed = misses(work, models[work.model], place, wanted, seconds, chance)
            done[work.command] += 1
            found += missed
            print(
                f"{number + 1}/{options.kills} {work.command} {'+'.join(work.recipes)}: {missed or 'right'}", flush=True
            )
    kinds = ", ".join(f"{count} of {name}" for name, count in sorted(done.items()))
    print(f"{options.kills} kills ({kinds}): {len(found)} missed")
    return 1 if found else 0


def _undisturbed(work: Work, model: Path, folder: Path) -> tuple[Place, dict[str, str], float]:
    """A run that nobody disturbs: its place, its packages, and the seconds that it took."""
    place = _prepare(work, model, folder, None)
    code, seconds = _finish(Work("build", work.model, work.recipes), model, place)
    if code == 0 and work.command != "build":
        code, seconds = _finish(work, model, place)
    if code != 0:
        raise SystemExit(f"{work} ends with {code}: {(folder / 'said').read_text()[-1000:]}")
    (folder / "run.jsonl").unlink(missing_ok=True)
    return place, _packages(place), seconds


if __name__ == "__main__":
    sys.exit(main())
