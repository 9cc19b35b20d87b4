"""What answers requests with texts on AWS: the toolkit's functions around an encoder's own runtime."""

from __future__ import annotations

from string import Template
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.sentence import OUTPUT
from targets.aws.labels import SCORES, labels_of, problem_of
from targets.aws.openers import READ_JSON, Handler, Opener

_LONGEST = 512
# What a request is, in JSON and in words.
_TEXT = ('{"inputs": "a text"} or {"inputs": ["a text", "another"]}', "a text or a list of texts")
_PAIR = (
    '{"inputs": {"question": "a question", "context": "a text"}} or a list of such',
    "a question and a context, or a list of such",
)
# What a request is, and what comes of each input, as Hugging Face's pipelines have it.
_TASKS = {
    "feature-extraction": (_TEXT, "vectors of its tokens"),
    "text-classification": (_TEXT, "labels with their scores"),
    "token-classification": (_TEXT, "its tokens that have a label, with scores and places"),
    "question-answering": (_PAIR, "the likeliest span of the text, with its score and place"),
    "fill-mask": (_TEXT, "the five likeliest tokens for each mask, with their scores"),
}
_ENCODE = Template('''"""Serves $model as $recipe: the functions that SageMaker's inference toolkit calls. Made by edgec.

A request is $request; the answer has $answer for each.
"""

import json
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
$imports

TASK = "$task"
INPUTS = $inputs
OUTPUTS = $outputs
# Tokens of a text at most, and what it is filled up to; None where any length will do.
LONGEST, LENGTH = $longest, $length
# Which end of a text that is too long is left out, and whether tokens tell which of two texts they are of.
SIDE, SEGMENTS = $side, $segments
# Names of the outputs, and what they are; what stands before every text, and whether it is made small.
LABELS, PROBLEM = $labels, $problem
PREFIX, LOWER, MASK = $prefix, $lower, $mask


def model_fn(model_dir):
    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST, direction=SIDE)
    tokenizer.no_padding()
    return tokenizer, open_model(Path(model_dir) / $file)


$open


def input_fn(data, content_type):
    if content_type.partition(";")[0] != "application/json":
        raise ValueError(f"{content_type} is not taken; send application/json.")
$read_json
    asked = given.get("inputs") if isinstance(given, dict) else None
    asked = [asked] if isinstance(asked, (str, dict)) else asked
    if not isinstance(asked, list) or not asked or not all(is_input(each) for each in asked):
        raise ValueError("Send inputs: $request_words.")
    return asked


def is_input(given):
    if TASK == "question-answering":
        parts = [given.get(name) for name in ("question", "context")] if isinstance(given, dict) else [None]
        return all(isinstance(each, str) and each.strip() for each in parts)
    return isinstance(given, str)


def predict_fn(asked, model):
    return [answer(each, *model) for each in asked]


def answer(given, tokenizer, run):
    if TASK == "question-answering":
        # Its own marks, and one token of the text at least.
        tokenizer.no_truncation()
        if len(tokenizer.encode(given["question"]).ids) + 4 >= LONGEST:
            raise ValueError("The question leaves no room for the text.")
        tokenizer.enable_truncation(LONGEST, strategy="only_second")
        encoded = tokenizer.encode(given["question"], given["context"])
    else:
        text = PREFIX + given
        encoded = tokenizer.encode(text.lower() if LOWER else text)
    count, parts, places = len(encoded.ids), list(encoded.sequence_ids), list(encoded.offsets)
    if LENGTH is not None:
        encoded.pad(LENGTH)
    arrays = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    if not SEGMENTS:
        arrays["token_type_ids"] = [0] * len(encoded.ids)
    found = run({name: np.asarray([arrays[name]], dtype) for name, dtype in INPUTS.items()})
    if TASK == "question-answering":
        return span(given["context"], parts, places, found["start_logits"][0][:count], found["end_logits"][0][:count])
    value = np.asarray(found["$output"], np.float32)[0]
    if TASK == "fill-mask":
        return filled(tokenizer, encoded.ids[:count], value)
    if TASK == "token-classification":
        return labelled(given, parts, places, value[:count])
    if LABELS:
        shares = scores(value)
        return [{"label": LABELS[place], "score": float(shares[place])} for place in np.argsort(-shares)]
    return (value if value.ndim == 1 else value[:count]).tolist()


def labelled(text, parts, places, logits):
    """What stands there: all tokens but those that are outside."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return [
        {"entity": LABELS[best], "score": float(shares[place, best]), "index": place, "word": text[begin:end], "start": begin,
         "end": end}
        for place, (best, (begin, end)) in enumerate(zip(shares.argmax(1), places))
        if parts[place] is not None and LABELS[best] != "O"
    ]


def filled(tokenizer, ids, logits):
    """The likeliest tokens for each mask; of one mask as a list, of several as a list of such."""
    places = [place for place, token in enumerate(ids) if token == MASK]
    if not places:
        raise ValueError("The text has no " + tokenizer.id_to_token(MASK) + " to fill.")
    made = []
    for place in places:
        raised = np.exp(logits[place] - logits[place].max())
        shares, rows = raised / raised.sum(), []
        for token in np.argsort(-shares)[:5].tolist():
            whole = tokenizer.decode([*ids[:place], token, *ids[place + 1:]], skip_special_tokens=len(places) == 1)
            word = tokenizer.decode([token])
            rows.append({"score": float(shares[token]), "token": token, "token_str": word, "sequence": whole})
        made.append(rows)
    return made[0] if len(made) == 1 else made


def span(text, parts, places, starts, ends):
    """The two ends in the text, at most 30 tokens apart, whose scores are together the highest (arXiv:1810.04805, 4.2)."""
    inside = np.asarray([part == 1 for part in parts])
    if not inside.any():
        raise ValueError("The text has no tokens.")
    starts, ends = (np.where(inside, each.astype(np.float64), -np.inf) for each in (starts, ends))
    both = starts[:, None] + ends[None, :]
    both[np.tril_indices(len(both), -1)] = both[np.triu_indices(len(both), 30)] = -np.inf
    first, last = np.unravel_index(both.argmax(), both.shape)
    total = sum(each.max() + np.log(np.exp(each - each.max()).sum()) for each in (starts, ends))
    begin, end = places[first][0], places[last][1]
    return {"answer": text[begin:end], "score": float(np.exp(both[first, last] - total)), "start": begin, "end": end}


$scores


def output_fn(prediction, accept):
    return json.dumps(prediction, allow_nan=False)
''')


TASKS = tuple(_TASKS)


def encoder(package: Package, opener: Opener) -> Handler:
    """What serves an encoder of texts.

    Raises:
        UnusableInput: its tokenizer is not there as tokenizers reads it.
    """
    task, main, shapes = package.model.task, package.lowered.main, package.lowered.shapes
    if "tokenizer.json" not in package.files:
        raise UnusableInput(
            f"{package.title} has no tokenizer.json, which the kit needs. Build it of a model that has one."
        )
    (request, words), answer = _TASKS[task]
    outputs = tuple(port.name for port in main.outputs)
    output = OUTPUT if OUTPUT in outputs else outputs[0]
    config = read_object(package.folder / "config.json")
    labels = labels_of(config, main.outputs[0].shape[-1]) if task.endswith("-classification") else []
    sentence, longest = package.sentence, shapes.longest_sequence or _LONGEST
    length = longest if shapes.sequence_lengths else None
    if sentence is not None and sentence.max_tokens:
        longest = min(longest, sentence.max_tokens)
    tokenizer = _tokenizer_config(package)
    script = _ENCODE.substitute(
        model=package.model.name, recipe=package.recipe, imports=opener.imports, open=opener.open,
        inputs={port.name: port.dtype for port in main.inputs}, outputs=outputs, output=output, longest=longest,
        length=length, file=repr(opener.file), labels=labels, problem=repr(problem_of(config)),
        prefix=repr(sentence.prompts.get(sentence.default_prompt or "", "") if sentence else ""),
        lower=bool(sentence and sentence.lower_case),
        side=repr("left" if tokenizer.get("truncation_side") == "left" else "right"),
        segments="token_type_ids" in names if isinstance(names := tokenizer.get("model_input_names"), list) else True,
        scores=SCORES, read_json=READ_JSON, mask=_mask_of(package) if task == "fill-mask" else None,
        answer=answer if output != OUTPUT else "the text's vector", task=task, request=request, request_words=words,
    )  # fmt: skip
    return Handler(script, {"tokenizer.json": "tokenizer.json"}, ("tokenizers",))


def _tokenizer_config(package: Package) -> dict[str, Any]:
    name = "tokenizer_config.json"
    return read_object(package.folder / name) if name in package.files else {}


def _mask_of(package: Package) -> int:
    """The id of the token that stands for what is to be filled.

    Raises:
        UnusableInput: the tokenizer's files name none.
    """
    word = mask_word(package)
    vocabulary = read_object(package.folder / "tokenizer.json")
    added = vocabulary.get("added_tokens")
    for each in added if isinstance(added, list) else []:
        if isinstance(each, dict) and each.get("content") == word and type(each.get("id")) is int:
            return int(each["id"])
    raise UnusableInput(f"{package.title} does not tell which token is its mask, which the kit needs.")


def mask_word(package: Package) -> str | None:
    """How the tokenizer writes its mask; None where its files tell none."""
    named = _tokenizer_config(package).get("mask_token")
    word = named.get("content") if isinstance(named, dict) else named
    return word if isinstance(word, str) else None
