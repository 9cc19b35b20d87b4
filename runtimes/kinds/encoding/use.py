"""Using an encoder for what it is made for: text or a picture goes in, a vector, labels or an answer come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.sentence import OUTPUT
from compiler.task import find_task
from runtimes.kinds.encoding.inputs import padded, require_tokenizer, text_arrays, text_to_inputs
from runtimes.kinds.encoding.pictures import picture_inputs
from runtimes.kinds.kind import Outcome, Request, Table
from runtimes.session import EncodingSession

_ANSWER_TOKENS = 30
_ENDS = 2
_QUESTIONS, _CLASSES = "question-answering", "text-classification"


def check(package: Package, request: Request) -> None:
    """Refuse, before the package is opened, what its task has no use for.

    Raises:
        UnusableInput: something is missing, or given in vain.
    """
    task = find_task(package.model.task)
    if request.inputs is not None:
        raise UnusableInput(f"This package is for {task.name} and takes no arrays. Use --prompt TEXT, or --image FILE.")
    if task.takes == "image" and request.image is None:
        raise UnusableInput("This package classifies pictures. Add --image FILE.")
    if task.takes == "text" and request.image is not None:
        raise UnusableInput(f"This package is for {task.name} and takes no pictures. Use --prompt TEXT.")
    if task.takes == "text" and not request.prompts:
        raise UnusableInput("There is nothing to run on. Add --prompt TEXT.")
    if request.passage is not None and task.name not in (_QUESTIONS, _CLASSES):
        raise UnusableInput(f"This package is for {task.name}: it takes no passage.")
    if request.prompt_name is not None:
        _check_prompt_name(package, request.prompt_name)
    if request.passage is None and task.name == _QUESTIONS:
        raise UnusableInput(f"This package is for {task.name}: add --passage TEXT, in which to look for the answer.")


def _check_prompt_name(package: Package, name: str) -> None:
    prompts = package.sentence.prompts if package.sentence else {}
    if name not in prompts:
        known = f"It has {', '.join(sorted(prompts))}." if prompts else "The model came without any."
        raise UnusableInput(f"{package.title} has no prompt of the name {name!r:.60}. {known}")


def use(package: Package, session: EncodingSession, request: Request) -> Outcome:
    """Answer by the package's task."""
    return _USES[package.model.task](package, session, request)


def _embed_prompts(package: Package, session: EncodingSession, request: Request) -> Outcome:
    vectors = [embed(package, session, text, request.note) for text in _prompted(package, request)]
    document = [[float(value) for value in vector] for vector in vectors]
    if len(vectors) > 1:
        rows = [
            (text, f"{cosine(vectors[0], vector):.4f}") for text, vector in zip(request.prompts, vectors, strict=True)
        ]
        table = Table(f"Likeness to: {request.prompts[0]}", ("text", "cosine"), tuple(rows[1:]))
        return Outcome(document, f"cosine of {rows[0][0]!r} and {rows[1][0]!r} is {rows[1][1]}", (table,))
    head = ", ".join(f"{value:.4f}" for value in vectors[0][:6])
    return Outcome(document, f"{len(vectors[0])} values: {head}, ... (--json prints all; a second --prompt compares)")


def _classify_prompts(package: Package, session: EncodingSession, request: Request) -> Outcome:
    pairs = [text_to_inputs(package, session, text, request.note, request.passage) for text in request.prompts]
    ranked = [classify(package, session, inputs) for inputs in pairs]
    return _tabled(request.prompts, ("label", "probability"), [_shares(each) for each in ranked])


def _classify_image(package: Package, session: EncodingSession, request: Request) -> Outcome:
    assert request.image is not None
    ranked = classify(package, session, picture_inputs(package, request.image))
    return _tabled((request.image.name,), ("label", "probability"), [_shares(ranked)])


def _label_prompts(package: Package, session: EncodingSession, request: Request) -> Outcome:
    labelled = [label_tokens(package, session, text, request.note) for text in request.prompts]
    return _tabled(request.prompts, ("token", "label"), labelled)


def _answer_prompts(package: Package, session: EncodingSession, request: Request) -> Outcome:
    assert request.passage is not None
    answers = [answer(package, session, prompt, request.passage, request.note) for prompt in request.prompts]
    return _tabled(
        request.prompts, ("answer", "probability"), [[(each.text, f"{each.probability:.4f}")] for each in answers]
    )


_USES: dict[str, Callable[[Package, EncodingSession, Request], Outcome]] = {
    "feature-extraction": _embed_prompts,
    _CLASSES: _classify_prompts,
    "image-classification": _classify_image,
    "token-classification": _label_prompts,
    "fill-mask": _label_prompts,
    _QUESTIONS: _answer_prompts,
}


def _shares(ranked: list[tuple[str, float]]) -> list[tuple[str, str]]:
    return [(label, f"{share:.4f}") for label, share in ranked]


def _tabled(titles: tuple[str, ...], columns: tuple[str, str], tables: list[list[tuple[str, str]]]) -> Outcome:
    """A table for each input; as JSON a list of rows, or with several inputs a list of such lists."""
    documents = [[dict(zip(columns, row, strict=True)) for row in rows] for rows in tables]
    made = tuple(Table(title, columns, tuple(rows)) for title, rows in zip(titles, tables, strict=True))
    line = f"{columns[0]} {tables[0][0][0]!r}, {columns[1]} {tables[0][0][1]}" if tables and tables[0] else ""
    return Outcome(documents if len(documents) > 1 else documents[0], line, made)


def embed(package: Package, session: EncodingSession, text: str, note: Callable[[str], None]) -> NDArray[np.float32]:
    """The vector of a text: (width,), as the model's modules make it; without them the mean of its tokens, of length one."""
    inputs = text_to_inputs(package, session, text, note)
    outputs = session.run(inputs)
    if OUTPUT in outputs:
        return np.asarray(outputs[OUTPUT][0], np.float32)
    states = outputs["last_hidden_state"][0]
    mask = inputs["attention_mask"][0][: len(states), None]
    pooled = (states * mask).sum(axis=0) / mask.sum()
    return np.asarray(pooled / np.linalg.norm(pooled), np.float32)


def _prompted(package: Package, request: Request) -> tuple[str, ...]:
    """The texts behind the prompt that the request names, or the model's default one."""
    sentence = package.sentence
    name = request.prompt_name or (sentence.default_prompt if sentence else None)
    before = sentence.prompts[name] if sentence and name else ""
    return tuple(before + text for text in request.prompts)


def classify(
    package: Package, session: EncodingSession, inputs: dict[str, NDArray[Any]], top: int = 5
) -> list[tuple[str, float]]:
    """Labels with probabilities, the most probable first (text- and image-classification).

    As transformers' pipelines do: labels that are independent of each other, and a single one, have a probability each; the
    label of a regression has its value.
    """
    logits = session.run(inputs)["logits"][0].astype(np.float64)
    config = read_object(package.folder / "config.json")
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


def label_tokens(
    package: Package, session: EncodingSession, text: str, note: Callable[[str], None]
) -> list[tuple[str, str]]:
    """(token, most probable label or token) for each token: token-classification, fill-mask."""
    inputs = text_to_inputs(package, session, text, note)
    logits = session.run(inputs)["logits"][0]
    tokenizer = require_tokenizer(package)
    config = read_object(package.folder / "config.json")
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


def answer(
    package: Package, session: EncodingSession, question: str, passage: str, note: Callable[[str], None]
) -> Answer:
    """The likeliest span of at most 30 tokens (question-answering); a passage longer than the package takes is cut.

    Devlin et al. 2018, BERT (arXiv:1810.04805), section 4.2: the sum of the scores of the two ends.
    """
    tokenizer = require_tokenizer(package)
    length, longest = session.fixed_sequence_length, session.longest_sequence
    if longest is not None:
        asked = len(tokenizer.encode(question).ids)
        if asked + _ENDS >= longest:
            raise UnusableInput(f"The question has {asked} tokens; the package takes {longest} with the passage.")
        count = len(tokenizer.encode(question, passage).ids)
        if count > longest:
            note(
                f"Question and passage have {count} tokens and the package takes {longest}: the passage is cut, and an "
                "answer is looked for in its first part only."
            )
        tokenizer.enable_truncation(longest, strategy="only_second")
    encoded = tokenizer.encode(question, passage)
    logits = session.run(padded(text_arrays(encoded.ids, encoded.type_ids), length))
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


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine of two vectors."""
    return float(np.dot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second)))
