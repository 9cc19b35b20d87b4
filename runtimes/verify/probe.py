"""What a package says, beside what the Reference said: run in a child process with the package's own runtime."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.package import read_package
from compiler.stages.worker import report_progress
from runtimes.registry import open_session
from runtimes.session import EncoderSession, LanguageSession
from runtimes.verify.metrics import (
    Step,
    greedy_agreement,
    join_distances,
    measure_logits,
    perplexity,
    relative_error,
    row_cosines,
)


def probe_language(package: str, expected: str, threads: int) -> dict[str, Any]:
    """Score the windows, continue the prompts and tokenize the strings; return figures and every text-side miss."""
    folder = Path(expected)
    told = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    session = open_session(read_package(Path(package)), threads)
    assert isinstance(session, LanguageSession)
    first = told["first_scored"]
    parts = []
    total = len(told["windows"]) + len(told["prompts"])
    for number, window in enumerate(told["windows"]):
        reference = np.load(folder / f"window-{number}.npy", mmap_mode="r")
        following = np.asarray([*window[1:], -1], np.int64)[first:]
        parts.append(measure_logits(reference, session.score(window)[first:], following))
        report_progress(number + 1, total)
    agreed = counted = 0
    for number, (prompt, continuation) in enumerate(zip(told["prompts"], told["continuations"], strict=True)):
        steps = [Step(*step) for step in continuation]
        same, of = greedy_agreement(steps, continue_greedily(session, prompt, len(steps)))
        agreed, counted = agreed + same, counted + of
        report_progress(len(told["windows"]) + number + 1, total)
    distances = join_distances(parts)
    return {
        "positions": len(distances.kl),
        "mean_kl": float(distances.kl.mean()),
        "p90_kl": float(np.quantile(distances.kl, 0.9)),
        "p99_kl": float(np.quantile(distances.kl, 0.99)),
        "same_top1": float(distances.same.mean()),
        "perplexity": perplexity(distances.loss),
        "reference_perplexity": perplexity(distances.reference_loss),
        "greedy_agreement": agreed / counted if counted else 1.0,
        "text_misses": text_misses(session, told),
    }


def continue_greedily(session: LanguageSession, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """The most probable token, `new_tokens` times, through the cache of keys and values."""
    logits = session.prefill(prompt)
    new: list[int] = []
    while True:
        new.append(int(logits.argmax()))
        if len(new) == new_tokens:
            return new
        logits = session.decode(new[-1])


def text_misses(session: LanguageSession, told: dict[str, Any]) -> list[str]:
    """Sentences about each string, conversation, begin or end token on which the runtime and Hugging Face differ."""
    misses = [
        f"tokenizer: {string[:60]!r} is {_brief(session.tokenize(string))} to the runtime, {_brief(ids)} to Hugging Face"
        for string, ids in told["strings"]
        if session.tokenize(string) != ids
    ]
    for messages, prompt in told["chats"]:
        rendered = session.render_chat(messages)
        if rendered != prompt:
            shown = f"{rendered[:80]!r}" if rendered is not None else "nothing"
            misses.append(f"chat template: the runtime renders {shown}, Hugging Face {prompt[:80]!r}")
    if list(session.start_of_text_ids()) != told["start_of_text_ids"]:
        misses.append(
            f"start of text: the runtime begins with {_brief(session.start_of_text_ids())}, Hugging Face with "
            f"{_brief(told['start_of_text_ids'])}"
        )
    absent = set(told["end_of_text_ids"]) - session.end_of_text_ids()
    if absent:
        misses.append(f"end of text: the runtime does not end at the token {min(absent)}")
    return misses


def _brief(ids: Sequence[int] | None) -> str:
    shown = list(ids or [])
    return f"{shown[:8]}{'...' if len(shown) > 8 else ''}"


def probe_encoder(package: str, expected: str, threads: int) -> dict[str, Any]:
    """Run every case, padded as the container needs it; return the distances over the rows that are not padding."""
    read = read_package(Path(package))
    folder = Path(expected)
    told = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    session = open_session(read, threads)
    assert isinstance(session, EncoderSession)
    pairs: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
    largest, worst = 0.0, ""
    for number in range(told["cases"]):
        with np.load(folder / f"case-{number}.npz") as case:
            inputs = {name[3:]: case[name] for name in case.files if name.startswith("in_")}
            wanted = {name[4:]: case[name] for name in case.files if name.startswith("out_")}
        got = session.run(pad_inputs(inputs, session.fixed_sequence_length, session.longest_sequence))
        for name, reference in wanted.items():
            observed = got[name][tuple(slice(0, size) for size in reference.shape)]
            pairs.setdefault(name, []).append((reference, observed))
            difference = float(np.abs(reference - observed).max())
            if not np.isfinite(difference) or difference >= largest:
                largest, worst = difference, name
        report_progress(number + 1, told["cases"])
    cosine = np.concatenate([row for each in pairs.values() for row in row_cosines(each)])
    return {
        "rows": len(cosine),
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "relative_error": max(relative_error(each) for each in pairs.values()),
        "max_abs_difference": largest,
        "worst_output": worst,
        "text_misses": _tokenizer_misses(session, read.folder, told["strings"]),
    }


def pad_inputs(
    inputs: dict[str, NDArray[Any]], length: int | None, longest: int | None = None
) -> dict[str, NDArray[Any]]:
    """Pad texts with zeros to a container's fixed length; otherwise by a sixth, so that the mask is put to use."""
    if "input_ids" not in inputs:
        return inputs
    tokens = inputs["input_ids"].shape[1]
    target = length if length is not None else max(tokens, min(tokens + tokens // 6 + 1, longest or sys.maxsize))
    return {name: np.pad(value, ((0, 0), (0, target - tokens))) for name, value in inputs.items()}


def _tokenizer_misses(session: EncoderSession, folder: Path, strings: Sequence[Sequence[Any]]) -> list[str]:
    """The runtime's tokenizer, or the one that lies in the package, against the model's."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    packaged = Tokenizer.from_file(str(file)) if file.is_file() else None
    if packaged is not None:
        packaged.no_padding()
        packaged.no_truncation()
    misses = []
    for string, ids in strings:
        own = session.tokenize(string)
        if own is None and packaged is not None:
            own = packaged.encode(string).ids
        if own is None:
            return ["tokenizer: the package has none"]
        if list(own) != list(ids):
            misses.append(f"tokenizer: {string[:60]!r} is {_brief(own)} to the package, {_brief(ids)} to Hugging Face")
    return misses
