"""An encoder made ready to be measured, and the figures of its latency."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.task import find_task
from runtimes.kinds.encoding.inputs import text_arrays
from runtimes.kinds.kind import Figures, Prepared, Round, Samples, percentile_ms
from runtimes.session import EncodingSession
from runtimes.workload import Workload


def prepare(session: EncodingSession, package: Package, workload: Workload) -> Prepared:
    """One seeded input of the workload's length, or of the container's where that is fixed."""
    inputs = encoder_inputs(package, workload, session.fixed_sequence_length)
    return repeated(session, inputs, workload, inputs["input_ids"].shape[1] if "input_ids" in inputs else None)


def repeated(
    session: EncodingSession, inputs: dict[str, NDArray[Any]], workload: Workload, length: int | None
) -> Prepared:
    """One input of `length` tokens, run as often as the workload says."""
    repetitions, warmup = workload.repetitions, workload.warmup_repetitions
    if repetitions is None or warmup is None:
        raise UnusableInput("It is measured with repetitions and warmup_repetitions; the workload lacks one.")
    ran = replace(workload, prompt_tokens=None, generated_tokens=None, context_length=None, sequence_length=length)

    def run(count: int) -> Round:
        latencies = []
        for _ in range(count):
            started = time.perf_counter()
            session.run(inputs)
            latencies.append(time.perf_counter() - started)
        return {"latency_s": latencies}

    return Prepared(lambda: run(repetitions), lambda: run(warmup), ran)


# Ids of ordinary words in every vocabulary; a smaller one ends before.
_FIRST_ID, _LAST_ID = 5, 500


def encoder_inputs(package: Package, workload: Workload, fixed_length: int | None) -> dict[str, NDArray[Any]]:
    """The input; a session takes of it what it needs."""
    generator = np.random.default_rng(0)
    if find_task(package.model.task).takes == "image":
        shape = tuple(size if isinstance(size, int) else 1 for size in package.lowered.main.inputs[0].shape)
        return {"pixel_values": generator.standard_normal(shape, np.float32)}
    words = read_object(package.folder / "config.json").get("vocab_size")
    last = min(_LAST_ID, words) if isinstance(words, int) and words > 0 else _LAST_ID
    ids = generator.integers(min(_FIRST_ID, last - 1), last, fixed_length or workload.sequence_length or 1)
    return text_arrays(ids.tolist())


def summarize(samples: Samples, workload: Workload, package: Package, bandwidth: float | None) -> Figures:
    """The latency of a run."""
    every = [value for part in samples["latency_s"] for value in part]
    return {f"latency_ms_p{share}": percentile_ms(every, share / 100) for share in (50, 90, 99)}
