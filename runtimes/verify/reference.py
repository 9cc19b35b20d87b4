"""The Reference: the fp32 Model in torch, by transformers. Runs in a child process and keeps its answers in the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.model import TEXT_GENERATION
from compiler.pretrained import Encoder, load_encoder, load_pretrained
from compiler.stages.worker import report_progress
from compiler.tokenizer import load_tokenizer, start_of_text_ids
from runtimes.verify.metrics import Step


def reference_decoder(
    folder: Path,
    windows: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    first_scored: int,
    out: Path,
) -> list[list[Step]]:
    """Logits of every window, written as `window-N.npy`, and the greedy continuations of the prompts.

    Args:
        folder: the Hugging Face folder.
        windows: token ids; each is scored from an empty cache.
        prompts: token ids to continue.
        new_tokens: tokens to add to each prompt; generation does not stop at an end of text.
        first_scored: logits before this position are not kept.
        out: where the arrays go: float32 (tokens, vocabulary).

    Returns:
        The steps of each prompt's continuation.
    """
    import torch

    model = load_pretrained(folder, TEXT_GENERATION)
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


def reference_encoder(
    encoder: Encoder, batches: Sequence[dict[str, NDArray[Any]]]
) -> list[dict[str, NDArray[np.float32]]]:
    """The encoder's outputs for each batch, by name."""
    import torch

    outputs = []
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            tensors = [torch.from_numpy(batch[name]) for name in encoder.input_names]
            values = [value.float().numpy() for value in encoder.module(*tensors)]
            outputs.append(dict(zip(encoder.output_names, values, strict=True)))
            report_progress(number + 1, len(batches))
    return outputs


def expect_language(
    model: str, out: str, text: str | None, window_tokens: int, max_tokens: int, new_tokens: int
) -> None:
    """Write what the Reference says about a decoder: `expected.json` and one `window-N.npy` a window.

    Args:
        model: the Hugging Face folder.
        out: the folder to write into.
        text: a text to score in windows of `window_tokens`, second halves only, as llama.cpp's perplexity tool does;
            without one the project's passages are scored, each from its start. A model that begins its texts with a
            token gets it everywhere; in the windows of a text it takes the first token's place, as in that tool.
        max_tokens: tokens of `text` to use at most.
        new_tokens: length of the greedy continuations.
    """
    folder = Path(model)
    tokenizer = load_tokenizer(folder)
    start = start_of_text_ids(tokenizer)
    if text is None:
        texts = [ids for ids in (_encode(tokenizer, passage) for passage in corpus.PASSAGES) if ids]
        windows = [[*start, *ids][:window_tokens] for ids in texts]
        first_scored = 0
    else:
        ids = _encode(tokenizer, text)[:max_tokens]
        windows = [ids[start : start + window_tokens] for start in range(0, len(ids), window_tokens)]
        windows = [[*start, *window[len(start) :]] for window in windows if len(window) == window_tokens]
        first_scored = window_tokens // 2
        if not windows:
            raise UnusableInput(
                f"The text has {len(ids)} tokens, and one window takes {window_tokens}. Give a longer text."
            )
    prompts = [[*start, *ids] for ids in (_encode(tokenizer, prompt) for prompt in corpus.PROMPTS) if ids]
    continuations = reference_decoder(folder, windows, prompts, new_tokens, first_scored, Path(out))
    expected = {
        "windows": windows,
        "first_scored": first_scored,
        "prompts": prompts,
        "continuations": [[astuple(step) for step in steps] for steps in continuations],
        "strings": [[string, _encode(tokenizer, string)] for string in nasty_strings(tokenizer)],
        "chats": _render_chats(tokenizer),
        "start_of_text_ids": start,
        "end_of_text_ids": sorted(end_of_text_ids(folder)),
    }
    (Path(out) / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def nasty_strings(tokenizer: Any) -> list[str]:
    """The corpus, with the model's own special tokens as they look in a user's text."""
    tokens = [token for token in tokenizer.all_special_tokens if token.strip()][:4]
    specials = [form.format(token=token) for token in tokens for form in corpus.SPECIAL_IN_TEXT]
    return [*corpus.NASTY, *specials]


def _render_chats(tokenizer: Any) -> list[list[Any]]:
    """Conversations with their prompts; those that the template itself refuses are left out."""
    from jinja2.exceptions import TemplateError

    chats: list[list[Any]] = []
    if not tokenizer.chat_template:
        return chats
    for conversation in corpus.CONVERSATIONS:
        messages = [dict(message) for message in conversation]
        try:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            continue
        chats.append([messages, prompt])
    return chats


def end_of_text_ids(folder: Path) -> set[int]:
    """The ids at which the Hugging Face model ends a text: generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return set(value) if isinstance(value, list) else {value}
    return set()


def expect_encoder(model: str, out: str, task: str, max_tokens: int) -> None:
    """Write what the Reference says about an encoder: `expected.json` and one `case-N.npz` an input.

    Texts are scored one by one without padding, cut at `max_tokens`; images are drawn, not random.
    """
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
        batches = [text_inputs(ids, encoder.input_names) for ids in encoded]
        strings = [[string, tokenizer.encode(string)] for string in nasty_strings(tokenizer)]
    outputs = reference_encoder(encoder, batches)
    for number, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        arrays: dict[str, Any] = {f"in_{name}": value for name, value in batch.items()}
        arrays |= {f"out_{name}": value for name, value in output.items()}
        np.savez(Path(out) / f"case-{number}.npz", **arrays)
    expected = {"cases": len(batches), "strings": strings, "outputs": list(encoder.output_names)}
    (Path(out) / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def text_inputs(ids: Sequence[int], input_names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
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
