"""encoding: encoders of texts and pictures, functions from tensors to tensors."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Shapes
from compiler.scheme import Scheme
from compiler.stages.worker import report_progress
from compiler.task import find_task
from runtimes.encoder_use import check, use
from runtimes.kinds.kind import (
    Chart,
    Column,
    Expectation,
    Figures,
    Findings,
    Kind,
    Prepared,
    Round,
    Samples,
    percentile,
)
from runtimes.session import EncodingSession
from runtimes.verify.metrics import relative_error, row_cosines
from runtimes.verify.strings import nasty_strings, string_misses
from runtimes.whole_batches import in_whole_batches
from runtimes.workload import Workload

Pairs = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def expect(model: Model, shapes: Shapes, text: str | None, max_tokens: int) -> Expectation:
    """The Reference reads the project's own passages, cut to what the model and a package of these shapes hold."""
    if text is not None:
        raise UnusableInput("--text is for language models; encoders are compared on the project's own passages.")
    longest = model.geometry.context_length or shapes.sequence_length
    arguments = {"task": model.task, "max_tokens": min(shapes.sequence_length, longest)}
    return Expectation(f"{__name__}:write_expected", arguments, ("torch", "transformers", "tokenizers"))


def write_expected(model: str, out: str, task: str, max_tokens: int) -> None:
    """Write what the Reference says: `expected.json` and one `case-N.npz` an input.

    Texts are scored one by one without padding, cut at `max_tokens`; images are drawn, not random.
    """
    import torch

    from compiler.pretrained import load_encoder
    from compiler.tokenizer import load_tokenizer

    folder = Path(model)
    encoder = load_encoder(folder, task)
    strings: list[list[Any]] = []
    if encoder.image_shape:
        batches: list[dict[str, NDArray[Any]]] = [
            {"pixel_values": image[None]} for image in draw_images(encoder.image_shape)
        ]
    else:
        tokenizer = load_tokenizer(folder)
        encoded = [tokenizer.encode(passage, truncation=True, max_length=max_tokens) for passage in corpus.PASSAGES]
        batches = [_text_inputs(ids, encoder.input_names) for ids in encoded]
        strings = [[string, tokenizer.encode(string)] for string in nasty_strings(tokenizer)]
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            values = encoder.module(*(torch.from_numpy(batch[name]) for name in encoder.input_names))
            arrays: dict[str, Any] = {f"in_{name}": value for name, value in batch.items()}
            named = zip(encoder.output_names, values, strict=True)
            arrays |= {f"out_{name}": value.float().numpy() for name, value in named}
            np.savez(Path(out) / f"case-{number}.npz", **arrays)
            report_progress(number + 1, len(batches))
    expected = {"cases": len(batches), "strings": strings, "outputs": list(encoder.output_names)}
    (Path(out) / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _text_inputs(ids: Sequence[int], input_names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """One text as int64 (1, tokens) arrays: ids, a mask of ones, segment 0."""
    row = np.asarray([list(ids)], np.int64)
    every = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    return {name: every[name] for name in input_names}


def draw_images(shape: tuple[int, int, int]) -> list[NDArray[np.float32]]:
    """Four pictures in the range -1 to 1, (channels, height, width): gradients, rings, stripes and blocks."""
    channels, height, width = shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pictures = (
        x - y,
        np.cos(40 * np.hypot(x - 0.5, y - 0.5)),
        np.sign(np.sin(25 * (x + 2 * y))),
        np.floor(6 * x) * np.floor(6 * y) / 12.5 - 1,
    )
    return [np.stack([picture * (1 - 0.3 * c) for c in range(channels)]).astype(np.float32) for picture in pictures]


def probe(
    session: EncodingSession, package: Package, expected: Path, on_progress: Callable[[int, int], None]
) -> Findings:
    """Run every case, padded as the container needs it; the distances over the rows that are not padding."""
    told = json.loads((expected / "expected.json").read_text(encoding="utf-8"))
    pairs: dict[str, Pairs] = {}
    largest, worst = 0.0, ""
    for number in range(told["cases"]):
        with np.load(expected / f"case-{number}.npz") as case:
            inputs = {name[3:]: case[name] for name in case.files if name.startswith("in_")}
            wanted = {name[4:]: case[name] for name in case.files if name.startswith("out_")}
        got = session.run(_padded(inputs, session))
        for name, reference in wanted.items():
            observed = got[name][tuple(slice(0, size) for size in reference.shape)]
            pairs.setdefault(name, []).append((reference, observed))
            difference = float(np.abs(reference - observed).max())
            if not np.isfinite(difference) or difference >= largest:
                largest, worst = difference, name
        on_progress(number + 1, told["cases"])
    cosine = np.concatenate([row for each in pairs.values() for row in row_cosines(each)])
    figures: Figures = {
        "rows": len(cosine),
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "relative_error": max(relative_error(each) for each in pairs.values()),
        "max_abs_difference": largest,
        "worst_output": worst,
    }
    return Findings(figures, tuple(string_misses(_tokenizer_of(session, package), told["strings"], "package")))


def _padded(inputs: dict[str, NDArray[Any]], session: EncodingSession) -> dict[str, NDArray[Any]]:
    """Padded with zeros to a container's fixed length; otherwise by a sixth, so that the mask is put to use."""
    if "input_ids" not in inputs:
        return inputs
    tokens = inputs["input_ids"].shape[1]
    longest = session.longest_sequence or sys.maxsize
    target = session.fixed_sequence_length or max(tokens, min(tokens + tokens // 6 + 1, longest))
    return {name: np.pad(value, ((0, 0), (0, target - tokens))) for name, value in inputs.items()}


def _tokenizer_of(session: EncodingSession, package: Package) -> Callable[[str], Sequence[int] | None]:
    """The runtime's tokenizer, or the one that lies in the package."""
    from tokenizers import Tokenizer

    file = package.folder / "tokenizer.json"
    packaged = Tokenizer.from_file(str(file)) if file.is_file() else None
    if packaged is not None:
        packaged.no_padding()
        packaged.no_truncation()

    def encode(string: str) -> Sequence[int] | None:
        own = session.tokenize(string)
        return packaged.encode(string).ids if own is None and packaged is not None else own

    return encode


# Smallest cosine of an output row to the Reference's. Set above what good packages of these schemes show.
_COSINES: dict[str, float] = {
    "fp32": 0.9999, "F32": 0.9999, "fp16": 0.999, "F16": 0.999, "bf16": 0.99, "BF16": 0.99, "int8": 0.85, "w8a8": 0.85,
    "Q8_0": 0.99, "Q6_K": 0.97, "Q5_K_M": 0.95, "Q5_K_S": 0.95, "Q5_1": 0.95, "Q5_0": 0.95, "Q4_K_M": 0.90, "Q4_K_S": 0.90,
    "Q4_1": 0.85, "Q4_0": 0.85, "Q3_K_L": 0.80, "Q3_K_M": 0.80, "Q3_K_S": 0.80, "Q2_K": 0.60, "Q2_K_S": 0.60,
}  # fmt: skip


def limits(scheme: Scheme) -> dict[str, float]:
    """The relative error is held to what the cosine allows a vector of the same length: a wrong scale is wrong."""
    if not scheme.method:
        cosine = _COSINES[scheme.name]
    elif scheme.method == "lut":
        cosine = 0.95 if scheme.code_bits == 6 else 0.6
    else:
        cosine = {8: 0.97, 4: 0.85, 3: 0.6, 2: 0.0}[scheme.code_bits or 4]
    return {"max_relative_error": math.sqrt(2 - 2 * cosine), "min_cosine": cosine}


def prepare(session: EncodingSession, package: Package, workload: Workload) -> Prepared:
    """One seeded input of the workload's length, or of the container's where that is fixed."""
    inputs = encoder_inputs(package, workload, session.fixed_sequence_length)
    repetitions, warmup = workload.repetitions, workload.warmup_repetitions
    assert repetitions is not None and warmup is not None
    length = inputs["input_ids"].shape[1] if "input_ids" in inputs else None
    ran = replace(workload, prompt_tokens=None, generated_tokens=None, sequence_length=length)

    def run(count: int) -> Round:
        latencies = []
        for _ in range(count):
            started = time.perf_counter()
            session.run(inputs)
            latencies.append(time.perf_counter() - started)
        return {"latency_s": latencies}

    return Prepared(lambda: run(repetitions), lambda: run(warmup), ran)


def encoder_inputs(package: Package, workload: Workload, fixed_length: int | None) -> dict[str, NDArray[Any]]:
    """The input; a session takes of it what it needs."""
    generator = np.random.default_rng(0)
    if find_task(package.model.task).takes == "image":
        shape = tuple(size if isinstance(size, int) else 1 for size in package.lowered.main.inputs[0].shape)
        return {"pixel_values": generator.standard_normal(shape, np.float32)}
    row = generator.integers(5, 500, (1, fixed_length or workload.sequence_length or 1), dtype=np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}


def summarize(samples: Samples, workload: Workload, package: Package, bandwidth: float | None) -> Figures:
    """The latency of a run."""
    every = [value for part in samples["latency_s"] for value in part]
    return {f"latency_ms_p{share}": 1e3 * percentile(every, share / 100) for share in (50, 90, 99)}


KIND = Kind(
    name="encoding",
    title="Encoders",
    expect=expect,
    probe=probe,
    limits=limits,
    limited={
        "max_relative_error": "relative_error",
        "max_abs_difference": "max_abs_difference",
        "min_cosine": "min_cosine",
        "min_mean_cosine": "mean_cosine",
    },
    figures=(
        Column("min_cosine", "min cosine", 6),
        Column("mean_cosine", "mean cosine", 6),
        Column("relative_error", "relative error", 5),
        Column("max_abs_difference", "max abs difference", 5),
    ),
    prepare=prepare,
    timed=(("latency", "latency_s"),),
    summarize=summarize,
    speed=(
        Column("latency_ms_p50", "latency ms p50", 2),
        Column("latency_ms_p90", "p90", 2),
        Column("latency_ms_p99", "p99", 2),
    ),
    compared=(("max_abs_difference", 1e-3),),
    chart=Chart(
        models="encoders",
        time=("latency_ms_p50", "ms per run (median)"),
        distance=("mean_cosine", "1 - mean cosine to the fp32 model"),
        samples=("latency_s", "Time per run"),
        from_one=True,
    ),
    check=check,
    use=use,
    wrap=in_whole_batches,
)
