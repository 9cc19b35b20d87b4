"""Using a package for what it is made for: text goes in, text, a vector or labels come out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.session import EncoderSession, LanguageSession
from runtimes.verify.probe import pad_inputs

_ANSWER_TOKENS = 30
_ENDS = 2


@dataclass(frozen=True)
class Generated:
    """A generated text; `seconds` counts from the prompt's first token to the last new one."""

    text: str
    new_tokens: int
    seconds: float


def generate(
    session: LanguageSession,
    prompt: str,
    max_tokens: int,
    *,
    chat: bool = True,
    on_text: Callable[[str], None] | None = None,
) -> Generated:
    """Continue `prompt` greedily until an end of text or `max_tokens`.

    Args:
        chat: put the prompt into the package's chat template, when it has one.
        on_text: is given each new piece of text as soon as it is whole characters.

    Raises:
        UnusableInput: the prompt does not fit the context.
    """
    rendered = session.render_chat([{"role": "user", "content": prompt}]) if chat else None
    # A chat template writes the begin token itself.
    ids = (
        session.tokenize(rendered)
        if rendered is not None
        else [*session.start_of_text_ids(), *session.tokenize(prompt)]
    )
    room = session.context_length - len(ids)
    if not ids or room < 1:
        raise UnusableInput(f"The prompt has {len(ids)} tokens; the package takes 1 to {session.context_length - 1}.")
    ends = session.end_of_text_ids()
    started = time.perf_counter()
    logits = session.prefill(ids)
    new: list[int] = []
    shown = ""
    while len(new) < min(max_tokens, room):
        token = int(logits.argmax())
        if token in ends:
            break
        new.append(token)
        text = session.detokenize(new)
        if on_text is not None and not text.endswith("\ufffd"):
            on_text(text[len(shown) :])
            shown = text
        if len(new) < min(max_tokens, room):
            logits = session.decode(token)
    return Generated(session.detokenize(new) if new else "", len(new), time.perf_counter() - started)


def text_to_inputs(package: Package, session: EncoderSession, text: str) -> dict[str, NDArray[Any]]:
    """A text as the session's inputs: by its own tokenizer or the one in the package, cut to what it takes, and padded."""
    ids = session.tokenize(text)
    if ids is None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(package.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ids = tokenizer.encode(text).ids
    length, longest = session.fixed_sequence_length, session.longest_sequence
    if longest is not None and len(ids) > longest:
        ids = [*ids[: longest - 1], ids[-1]]
    row = np.asarray([ids], np.int64)
    inputs = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    return pad_inputs(inputs, length) if length is not None else inputs


def embed(package: Package, session: EncoderSession, text: str) -> NDArray[np.float32]:
    """The mean of the token vectors, of length one: (hidden,)."""
    inputs = text_to_inputs(package, session, text)
    states = session.run(inputs)["last_hidden_state"][0]
    mask = inputs["attention_mask"][0][: len(states), None]
    pooled = (states * mask).sum(axis=0) / mask.sum()
    return np.asarray(pooled / np.linalg.norm(pooled), np.float32)


def classify(
    package: Package, session: EncoderSession, inputs: dict[str, NDArray[Any]], top: int = 5
) -> list[tuple[str, float]]:
    """Labels with probabilities, the most probable first (text- and image-classification).

    As transformers' pipelines do: labels that are independent of each other, and a single one, have a probability each; the
    label of a regression has its value.
    """
    logits = session.run(inputs)["logits"][0].astype(np.float64)
    config = json.loads((package.folder / "config.json").read_text(encoding="utf-8"))
    probabilities = _probabilities(logits, config.get("problem_type"))
    names = config.get("id2label") or {}
    best = np.argsort(-probabilities)[:top]
    return [(str(names.get(str(index), index)), float(probabilities[index])) for index in best]


def _probabilities(logits: NDArray[np.float64], problem_type: str | None) -> NDArray[np.float64]:
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or len(logits) == 1:
        return np.asarray(1 / (1 + np.exp(-logits)))
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def label_tokens(package: Package, session: EncoderSession, text: str) -> list[tuple[str, str]]:
    """(token, most probable label or token) for each token: token-classification, fill-mask."""
    from tokenizers import Tokenizer

    inputs = text_to_inputs(package, session, text)
    logits = session.run(inputs)["logits"][0]
    tokenizer = Tokenizer.from_file(str(package.folder / "tokenizer.json"))
    config = json.loads((package.folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("id2label") or {}
    ids = [int(i) for i, seen in zip(inputs["input_ids"][0], inputs["attention_mask"][0], strict=True) if seen]
    chosen = [int(index) for index in logits[: len(ids)].argmax(axis=-1)]
    fill = package.model.task == "fill-mask"
    labels = [tokenizer.id_to_token(index) if fill else str(names.get(str(index), index)) for index in chosen]
    return [(str(tokenizer.id_to_token(token)), str(label)) for token, label in zip(ids, labels, strict=True)]


@dataclass(frozen=True)
class Answer:
    """A piece of a passage that answers a question; `probability` is that of its two ends together."""

    text: str
    probability: float


def answer(package: Package, session: EncoderSession, question: str, passage: str) -> Answer:
    """The likeliest span of at most 30 tokens (question-answering); a passage longer than the package takes is cut.

    Devlin et al. 2018, BERT (arXiv:1810.04805), section 4.2: the sum of the scores of the two ends.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    length, longest = session.fixed_sequence_length, session.longest_sequence
    if longest is not None:
        asked = len(tokenizer.encode(question).ids)
        if asked + _ENDS >= longest:
            raise UnusableInput(f"The question has {asked} tokens; the package takes {longest} with the passage.")
        tokenizer.enable_truncation(longest, strategy="only_second")
    encoded = tokenizer.encode(question, passage)
    row = np.asarray([encoded.ids], np.int64)
    inputs = {
        "input_ids": row,
        "attention_mask": np.ones_like(row),
        "token_type_ids": np.asarray([encoded.type_ids], np.int64),
    }
    logits = session.run(pad_inputs(inputs, length) if length is not None else inputs)
    of_passage = np.asarray([sequence == 1 for sequence in encoded.sequence_ids])
    starts, ends = (
        np.where(of_passage, logits[name][0][: len(of_passage)].astype(np.float64), -np.inf)
        for name in ("start_logits", "end_logits")
    )
    scores = starts[:, None] + ends[None, :]
    scores[np.tril_indices(len(scores), -1)] = -np.inf
    scores[np.triu_indices(len(scores), _ANSWER_TOKENS)] = -np.inf
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    text = passage[encoded.offsets[first][0] : encoded.offsets[last][1]]
    return Answer(text, float(np.exp(starts[first] - _log_sum(starts) + ends[last] - _log_sum(ends))))


def _log_sum(values: NDArray[np.float64]) -> float:
    return float(values.max() + np.log(np.exp(values - values.max()).sum()))


def cosine(first: Sequence[float] | NDArray[np.float32], second: Sequence[float] | NDArray[np.float32]) -> float:
    """Cosine of two vectors of length one."""
    return float(np.dot(np.asarray(first), np.asarray(second)))
