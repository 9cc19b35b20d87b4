"""What the Reference says of a decoder, and a package beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object, read_regular
from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Shapes
from compiler.stages.worker import report_progress
from runtimes.kinds.generation.use import greedy_tokens
from runtimes.kinds.kind import Expectation, Figures, Findings
from runtimes.session import GenerationSession
from runtimes.verify.metrics import Step, greedy_agreement, join_distances, measure_logits, perplexity
from runtimes.verify.strings import chat_misses, render_chats, string_misses

WINDOW_TOKENS = 512
NEW_TOKENS = 32
_LIMIT_BYTES = 1 << 30


def expect(model: Model, shapes: Shapes, data: Path | None, max_tokens: int) -> Expectation:
    """The Reference scores windows that the model and a package of these shapes can hold."""
    limits = (WINDOW_TOKENS, model.geometry.context_length, shapes.context_length)
    arguments = {
        "window_tokens": min(length for length in limits if length),
        "max_tokens": max_tokens,
        "new_tokens": NEW_TOKENS,
        "text": None if data is None else _read_text(data),
        "task": model.task,
        "today": datetime.now().date().isoformat() if _tells_the_date(model.folder) else None,
    }
    return Expectation(
        f"{__name__}:write_expected", arguments, ("torch", "transformers", "tokenizers", "jinja2", "numpy")
    )


def _read_text(file: Path) -> str:
    try:
        return read_regular(file, f"The text {file}", _LIMIT_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInput(f"The text {file} cannot be read as UTF-8. Give a text file.") from error


def _tells_the_date(folder: Path) -> bool:
    """Whether a chat template writes today's date, so that what the Reference says holds for a day."""
    files = [
        folder / "tokenizer_config.json",
        *folder.glob("*.jinja"),
        *folder.glob("additional_chat_templates/*.jinja"),
    ]
    return any(b"strftime" in file.read_bytes() for file in files if file.is_file())


def write_expected(
    model: str,
    out: str,
    text: str | None,
    window_tokens: int,
    max_tokens: int,
    new_tokens: int,
    task: str,
    today: str | None = None,
) -> None:
    """Write what the Reference says: `expected.json` and one `window-N.npy` a window, float32 (tokens, vocabulary).

    The first `max_tokens` of a text are scored in windows of `window_tokens`, second halves only, as llama.cpp's perplexity
    tool does; without a text the project's passages, each from its start. A model that begins its texts with a token gets it
    everywhere; in the windows of a text it takes the first token's place, as in that tool.
    `today` is there so that what a template with the date says is made anew each day.
    """
    from compiler.tokenizer import end_of_text_ids, load_tokenizer, start_of_text_ids

    folder = Path(model)
    tokenizer = load_tokenizer(folder)
    start = start_of_text_ids(tokenizer)

    def encode(string: str) -> list[int]:
        return list(tokenizer.encode(string, add_special_tokens=False))

    if text is None:
        texts = [ids for ids in (encode(passage) for passage in corpus.PASSAGES) if ids]
        windows = [[*start, *ids][:window_tokens] for ids in texts]
        first_scored = 0
    else:
        ids = encode(text)[:max_tokens]
        windows = [ids[at : at + window_tokens] for at in range(0, len(ids), window_tokens)]
        windows = [[*start, *window[len(start) :]] for window in windows if len(window) == window_tokens]
        first_scored = window_tokens // 2
        if not windows:
            raise UnusableInput(
                f"The text has {len(ids)} tokens, and one window takes {window_tokens}. Give a longer text."
            )
    prompts = [[*start, *ids] for ids in (encode(prompt) for prompt in corpus.PROMPTS) if ids]
    continuations = _answers(folder, task, windows, prompts, new_tokens, first_scored, Path(out))
    chats, chat_error = render_chats(tokenizer)
    # What a user's chat begins with, its marks too.
    strings = [*corpus.nasty_strings(tokenizer.all_special_tokens), *(prompt for _, prompt in chats)]
    expected = {
        "windows": windows,
        "first_scored": first_scored,
        "prompts": prompts,
        "continuations": [[astuple(step) for step in steps] for steps in continuations],
        "strings": [[string, encode(string)] for string in strings],
        "chats": chats,
        "chat_error": chat_error,
        "start_of_text_ids": start,
        "end_of_text_ids": sorted(end_of_text_ids(folder)),
    }
    (Path(out) / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _answers(
    folder: Path,
    task: str,
    windows: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    first_scored: int,
    out: Path,
) -> list[list[Step]]:
    """Write the logits of every window from `first_scored` on; the greedy continuations, which no end of text stops."""
    import torch

    from compiler.pretrained import load_pretrained

    model = load_pretrained(folder, task)
    total = len(windows) + len(prompts)
    continuations = []
    with torch.inference_mode():
        for number, window in enumerate(windows):
            logits = model(torch.tensor([list(window)]), use_cache=False).logits[0, first_scored:]
            np.save(out / f"window-{number}.npy", logits.float().numpy())
            report_progress(number + 1, total)
        for number, prompt in enumerate(prompts):
            cache = None
            tokens = torch.tensor([list(prompt)])
            steps: list[Step] = []
            for _ in range(new_tokens):
                answer = model(tokens, past_key_values=cache, use_cache=True)
                cache = answer.past_key_values
                best = answer.logits[0, -1].float().topk(2)
                first, second = best.indices.tolist()
                steps.append(Step(first, second, float(best.values[0] - best.values[1])))
                tokens = torch.tensor([[first]])
            continuations.append(steps)
            report_progress(len(windows) + number + 1, total)
    return continuations


def probe(
    session: GenerationSession,
    package: Package,
    expected: Path,
    stored: Path | None,
    on_progress: Callable[[int, int], None],
) -> Findings:
    """Score the windows, continue the prompts and tokenize the strings."""
    told = read_object(expected / "expected.json")
    first = told["first_scored"]
    parts, apart = [], []
    beside = read_object(stored / "stored.json")["windows"] if stored else 0
    total = len(told["windows"]) + len(told["prompts"])
    for number, window in enumerate(told["windows"]):
        reference = np.load(expected / f"window-{number}.npy", mmap_mode="r")
        following = np.asarray([*window[1:], -1], np.int64)[first:]
        scored = session.score(window)[first:]
        parts.append(measure_logits(reference, scored, following))
        if stored and number < beside:
            apart.append(measure_logits(np.load(stored / f"stored-{number}.npy"), scored, following).kl)
        on_progress(number + 1, total)
    agreed = counted = 0
    for number, (prompt, continuation) in enumerate(zip(told["prompts"], told["continuations"], strict=True)):
        steps = [Step(*step) for step in continuation]
        new = [token for _, token in zip(steps, greedy_tokens(session, prompt), strict=False)]
        same, of = greedy_agreement(steps, new)
        agreed, counted = agreed + same, counted + of
        on_progress(len(told["windows"]) + number + 1, total)
    distances = join_distances(parts)
    figures: Figures = {
        "positions": len(distances.kl),
        "mean_kl": float(distances.kl.mean()),
        "p90_kl": float(np.quantile(distances.kl, 0.9)),
        "p99_kl": float(np.quantile(distances.kl, 0.99)),
        "same_top1": float(distances.same.mean()),
        "perplexity": perplexity(distances.loss),
        "reference_perplexity": perplexity(distances.reference_loss),
        "greedy_agreement": agreed / counted if counted else 1.0,
    }
    from_stored = float(np.concatenate(apart).mean()) if apart else None
    return Findings(figures, tuple(text_misses(session, told)), from_stored)


def text_misses(session: GenerationSession, told: dict[str, Any]) -> list[str]:
    """Sentences about each string, conversation, begin or end token on which the runtime and Hugging Face differ."""
    text = session.text
    misses = [*string_misses(text.encode, told["strings"]), *chat_misses(text.render_chat, told["chats"])]
    if told["chat_error"] is not None:
        misses.append(f"chat template: it takes no conversation and ends in an error ({told['chat_error']})")
    if list(text.begin) != told["start_of_text_ids"]:
        misses.append(
            f"start of text: the runtime begins with {list(text.begin)}, Hugging Face with {told['start_of_text_ids']}"
        )
    if absent := set(told["end_of_text_ids"]) - text.ends:
        misses.append(
            f"end of text: the runtime does not end at the token {text.decode([min(absent)])!r} (id {min(absent)}), at which "
            "the model's generation_config.json ends a text"
        )
    return misses
