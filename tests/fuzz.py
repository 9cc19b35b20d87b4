"""The fuzzer of every parser: whatever the input, it is read, or ends in an error of edgec's own, soon and in little memory.

    python tests/fuzz.py --inputs 200000        all parsers, in their shares
    python tests/fuzz.py --only GGUF            one of them

Inputs are valid files with damage; input N of a parser is the same in every run. What fails is printed once for each place and
kept under `.fuzz/`, and the command exits 1. 200,000 inputs take about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

import tiny  # noqa: E402
from fuzz_mutations import damage  # noqa: E402
from fuzz_parsers import Parser, parsers  # noqa: E402

from compiler.errors import EdgecError  # noqa: E402

LIMIT_S = 10
LIMIT_BYTES = 1 << 30
_CHUNK = 200


class TooLong(BaseException):
    """An input took longer than `LIMIT_S`. No parser may catch it."""


@dataclass(frozen=True)
class Miss:
    """What went wrong with an input: its parser and number, and where."""

    parser: str
    number: int
    what: str
    where: str


def read_damaged(parser: Parser, number: int) -> Miss | None:
    """Give a parser input `number`; what went wrong, or None."""
    seed = parser.file.read_bytes()
    try:
        parser.file.write_bytes(damage(seed, random.Random(f"{parser.name} {number}")))
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            parser.read(parser.file)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except EdgecError as error:
        text = str(error)
        return None if text.strip() else Miss(parser.name, number, "an error without a word", "")
    except (Exception, TooLong) as error:
        return Miss(parser.name, number, f"{type(error).__name__}: {str(error)[:100]}", _place(error))
    finally:
        parser.file.unlink(missing_ok=True)
        parser.file.write_bytes(seed)
    return None


def _place(error: BaseException) -> str:
    """The last line of edgec's own that the error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT) and "fuzz" not in frame.filename]
    own = [frame for frame in own if ".venv" not in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _too_long(number: int, frame: Any) -> None:
    raise TooLong


_HERE: dict[str, Parser] = {}


def prepare(tokenizer: Path) -> None:
    """Make this process one that reads damaged inputs: its own files, a limit of time and one of memory."""
    folder = Path(tempfile.mkdtemp(prefix="edgec-fuzz-"))
    os.environ["EDGEC_CACHE"] = str(folder / "cache")
    _HERE.update({parser.name: parser for parser in parsers(folder, tokenizer)})
    signal.signal(signal.SIGALRM, _too_long)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT_BYTES, resource.RLIM_INFINITY))


def _read_some(name: str, first: int, count: int) -> list[Miss]:
    found = (read_damaged(_HERE[name], number) for number in range(first, first + count))
    return [miss for miss in found if miss is not None]


def shares(every: list[Parser], inputs: int) -> dict[str, int]:
    """Inputs of each parser, by their weights, together `inputs` or a few more."""
    total = sum(parser.weight for parser in every)
    return {parser.name: -(-inputs * parser.weight // total) for parser in every}


def main() -> int:
    """Read damaged inputs in two processes; 1 when one of them was not read right."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--inputs", type=int, default=200_000)
    arguments.add_argument("--only", help="The name of one parser.")
    arguments.add_argument("--processes", type=int, default=2)
    options = arguments.parse_args()
    started, found = time.monotonic(), list[Miss]()
    names = Path(tempfile.mkdtemp(prefix="edgec-fuzz-"))
    every = [each for each in parsers(names, tiny.minilm()) if options.only in (None, each.name)]
    asked = shares(every, options.inputs)
    with ProcessPoolExecutor(options.processes, get_context("spawn"), prepare, (tiny.minilm(),)) as pool:
        waiting = [
            (name, pool.submit(_read_some, name, first, min(_CHUNK, count - first)))
            for name, count in asked.items()
            for first in range(0, count, _CHUNK)
        ]
        for number, (name, future) in enumerate(waiting, 1):
            found += future.result()
            if number % 50 == 0 or number == len(waiting):
                print(
                    f"{number}/{len(waiting)} {name}: {len(found)} missed, {time.monotonic() - started:.0f} s",
                    flush=True,
                )
    places = {(miss.parser, miss.what.split(":")[0], miss.where): miss for miss in reversed(found)}
    for miss in places.values():
        print(f"MISS {miss.parser} {miss.number} {miss.where} {miss.what}")
        kept = _ROOT / ".fuzz" / f"{miss.parser.replace(' ', '-').replace('/', '-')}-{miss.number}"
        kept.parent.mkdir(exist_ok=True)
        seed = next(parser for parser in every if parser.name == miss.parser).file.read_bytes()
        kept.write_bytes(damage(seed, random.Random(f"{miss.parser} {miss.number}")))
    shutil.rmtree(names, ignore_errors=True)
    print(f"{sum(asked.values())} inputs of {len(every)} parsers: {len(found)} missed in {len(places)} places")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
