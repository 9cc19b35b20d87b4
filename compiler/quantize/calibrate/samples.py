"""Calibration samples: token ids of equal length, from a text or from what the model writes itself; or pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.config_types import image_shape
from compiler.errors import UnusableInput
from compiler.model import Model, read_model
from compiler.pretrained import load_pretrained
from compiler.quantization import Calibration
from compiler.quantize.calibrate.lengths import sample_tokens_of
from compiler.quantize.calibrate.passages import PASSAGES
from compiler.quantize.calibrate.pictures import draw_samples, samples_of_pictures
from compiler.quantize.calibrate.texts import kept_text
from compiler.stages.worker import report_progress
from compiler.tokenizer import load_tokenizer, start_of_text_ids

_FILE = "samples.npy"
_FEWEST_TOKENS = 2048
# Short texts side by side: attention costs with their length, and GPTQ sees the same sums of squares.
_TEXT_TOKENS = 128
_TEXTS_AT_ONCE = 128


def write_decoder_samples(model: str, out: str, task: str, calibration: dict[str, Any]) -> None:
    """Write `samples.npy`, int64 (samples, tokens), of the text that is given or of what the model writes itself: a stage.

    Raises:
        UnusableInput: the text is too short, gives tokens that the model does not have, or pictures are given.
    """
    source, wanted = read_model(Path(model), task=task), Calibration(**calibration)
    _refuse_pictures(source, wanted)
    samples = (
        samples_of_text(source, kept_text(wanted.text), wanted) if wanted.text else generate_samples(source, wanted)
    )
    np.save(Path(out) / _FILE, samples)


def write_text_samples(model: str, out: str, task: str, calibration: dict[str, Any]) -> None:
    """The same for an encoder, which calibrates on short passages of edgec's where no text is given: a stage."""
    source, wanted = read_model(Path(model), task=task), Calibration(**calibration)
    _refuse_pictures(source, wanted)
    text = "\n\n".join(PASSAGES) if wanted.text is None else kept_text(wanted.text)
    samples = samples_of_text(source, text, wanted)
    np.save(Path(out) / _FILE, samples)


def write_image_samples(model: str, out: str, task: str, calibration: dict[str, Any]) -> None:
    """Write `samples.npy`, float32 (samples, channels, height, width), of the pictures given or of drawn ones: a stage.

    Raises:
        UnusableInput: a picture cannot be read, or a text is given.
    """
    source, wanted = read_model(Path(model), task=task), Calibration(**calibration)
    if wanted.text is not None or wanted.arrays is not None:
        raise UnusableInput(
            f"{source.name} takes pictures, and the calibration {wanted.source} has none. Name a folder of pictures."
        )
    given = wanted.pictures is not None
    np.save(Path(out) / _FILE, samples_of_pictures(source, wanted) if given else _draw(source, wanted))


def _refuse_pictures(model: Model, calibration: Calibration) -> None:
    if calibration.pictures is not None or calibration.arrays is not None:
        raise UnusableInput(
            f"{model.name} takes text, and the calibration {calibration.source} is none. Name a text file."
        )


def _draw(model: Model, calibration: Calibration) -> NDArray[np.float32]:
    return draw_samples(image_shape(model.config), calibration.samples, calibration.seed)


def samples_of_text(model: Model, text: str, calibration: Calibration) -> NDArray[np.int64]:
    """Chunks of the text, spread evenly over it; with the begin token, or an encoder's special tokens at both ends."""
    tokenizer = load_tokenizer(model.folder)
    tokenizer.model_max_length = int(1e12)
    length = sample_tokens_of(model, calibration)
    if model.is_decoder:
        before, after = start_of_text_ids(tokenizer), []
    else:
        frame = tokenizer("a")["input_ids"]
        before, after = (frame[:1], frame[-1:]) if len(frame) > 2 else ([], [])
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
    inner = length - len(before) - len(after)
    fewest = _FEWEST_TOKENS if calibration.text is not None else inner
    if len(ids) < max(fewest, inner):
        raise UnusableInput(
            f"The calibration text {calibration.source} is too short: it has {len(ids)} tokens for {model.name}, and at "
            f"least {max(fewest, inner)} are needed."
        )
    count = min(calibration.samples, len(ids) // inner)
    starts = np.linspace(0, len(ids) - inner, count).round().astype(np.int64)
    rows = [np.concatenate([before, ids[start : start + inner], after]) for start in starts]
    return np.stack(rows).astype(np.int64)


def generate_samples(model: Model, calibration: Calibration) -> NDArray[np.int64]:
    """What the model writes after a random token, sampled at temperature 1: text of its own distribution.

    A sample is several such texts, each with the begin token. Liu et al. 2023, LLM-QAT (arXiv:2305.17888), section 3.1,
    calibrate on the same.
    """
    import torch

    length = sample_tokens_of(model, calibration)
    text_length = min(length, _TEXT_TOKENS)
    texts = calibration.samples * -(-length // text_length)
    network = load_pretrained(model.folder, model.task)
    generator = torch.Generator().manual_seed(calibration.seed)
    begin = torch.tensor([start_of_text_ids(load_tokenizer(model.folder))], dtype=torch.int64)
    ends = network.config.eos_token_id
    special = [token for token in (ends if isinstance(ends, list) else [ends]) if isinstance(token, int)]
    made: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for done in range(0, texts, _TEXTS_AT_ONCE):
            count = min(_TEXTS_AT_ONCE, texts - done)
            tokens = torch.randint(len(special) + 4, model.geometry.vocabulary, (count, 1), generator=generator)
            tokens = torch.cat([begin.expand(count, -1), tokens], 1)
            cache, row = None, [tokens]
            for step in range(text_length - tokens.shape[1]):
                answer = network(input_ids=tokens, past_key_values=cache, use_cache=True)
                cache, logits = answer.past_key_values, answer.logits[:, -1]
                logits[:, special] = -torch.inf
                tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                row.append(tokens)
                if step % 16 == 0:
                    report_progress(done * text_length + count * step, texts * text_length)
            made.append(torch.cat(row, 1).numpy())
    return np.concatenate(made).reshape(calibration.samples, -1)[:, :length]
