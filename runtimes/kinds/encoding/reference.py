"""What the Reference says of an encoder, and a package beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.image_processor import CONFIG, pixel_values
from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Shapes
from compiler.stages.worker import report_progress
from runtimes.kinds.encoding.inputs import packaged_tokenizer, padded, text_arrays
from runtimes.kinds.kind import Expectation, Findings
from runtimes.kinds.outputs import Pairs, distances
from runtimes.session import EncodingSession
from runtimes.verify.metrics import relative_error
from runtimes.verify.strings import string_misses

_MOST_TOKENS = 512
_LONG_TEXT = "\n".join(corpus.PASSAGES * 2)
_PICTURE = "picture.npz"


def expect(model: Model, shapes: Shapes, data: Path | None, max_tokens: int) -> Expectation:
    """The Reference reads the project's own passages, cut to what the model and a package of these shapes hold."""
    if data is not None:
        raise UnusableInput(
            f"{data.name} is given in vain: --text is for language models and --inputs for TensorFlow functions. Encoders are "
            "compared on the project's own passages."
        )
    longest = model.geometry.context_length or _MOST_TOKENS
    limits = {"max_tokens": min(shapes.sequence_length, longest), "most_tokens": min(_MOST_TOKENS, longest)}
    arguments = {"task": model.task, **limits}
    return Expectation(f"{__name__}:write_expected", arguments, ("torch", "transformers", "tokenizers", "numpy"))


def write_expected(model: str, out: str, task: str, max_tokens: int, most_tokens: int) -> None:
    """Write what the Reference says: `expected.json` and one `case-N.npz` an input.

    Texts are scored one by one without padding, cut at `max_tokens`, and one of `most_tokens`; where the model has segments,
    a pair is among them. Images are drawn, not random; one of them goes through the image processor too, `picture.npz`.
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
        if (folder / CONFIG).is_file():
            picture = _picture()
            np.savez(Path(out) / _PICTURE, picture=picture, values=pixel_values(folder, picture))
    else:
        tokenizer = load_tokenizer(folder)
        encoded = [tokenizer.encode(passage, truncation=True, max_length=max_tokens) for passage in corpus.PASSAGES]
        every = [text_arrays(ids) for ids in encoded]
        if "token_type_ids" in encoder.input_names:
            pair = tokenizer(*corpus.PASSAGES[:2], truncation=True, max_length=max_tokens)
            every.append(text_arrays(pair["input_ids"], pair.get("token_type_ids")))
        if most_tokens > max_tokens:
            every.append(text_arrays(tokenizer.encode(_LONG_TEXT, truncation=True, max_length=most_tokens)))
        batches = [{name: each[name] for name in encoder.input_names} for each in every]
        strings = [[string, tokenizer.encode(string)] for string in corpus.nasty_strings(tokenizer.all_special_tokens)]
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


def _picture() -> NDArray[np.uint8]:
    """A coloured picture, (height, width, 3)."""
    y, x = np.mgrid[0:1:90j, 0:1:120j]
    channels = (x, 1 - y, 0.5 + 0.5 * np.sin(20 * x * y))
    return np.stack([(255 * channel).round() for channel in channels], -1).astype(np.uint8)


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
    session: EncodingSession,
    package: Package,
    expected: Path,
    stored: Path | None,
    on_progress: Callable[[int, int], None],
) -> Findings:
    """Run every case that the package takes, padded as the container needs it; distances over rows that are not padding."""
    told = read_object(expected / "expected.json")
    pairs: dict[str, Pairs] = {}
    apart: dict[str, Pairs] = {}
    for number in range(told["cases"]):
        with np.load(expected / f"case-{number}.npz") as case:
            inputs = {name[3:]: case[name] for name in case.files if name.startswith("in_")}
            wanted = {name[4:]: case[name] for name in case.files if name.startswith("out_")}
        on_progress(number + 1, told["cases"])
        if not _taken(inputs, session):
            continue
        got = session.run(_with_padding(inputs, session))
        for name, reference in wanted.items():
            observed = got[name][tuple(slice(0, size) for size in reference.shape)]
            pairs.setdefault(name, []).append((reference, observed))
            if stored:
                with np.load(stored / f"stored-{number}.npz") as own:
                    apart.setdefault(name, []).append((own[name], observed))
    misses = string_misses(_tokenizer_of(session, package), told["strings"], "package")
    from_stored = max((relative_error(each) for each in apart.values()), default=None)
    return Findings(distances(pairs), (*misses, *_picture_misses(package, expected / _PICTURE)), from_stored)


def _picture_misses(package: Package, file: Path) -> list[str]:
    """A sentence where the image processor in the package makes other numbers of a picture than the model's."""
    if not file.is_file():
        return []
    with np.load(file) as case:
        picture, wanted = case["picture"], case["values"]
    if not (package.folder / CONFIG).is_file():
        return [f"pictures: the package has no {CONFIG}"]
    made = pixel_values(package.folder, picture)
    if made.shape != wanted.shape or not np.allclose(made, wanted, atol=1e-6):
        return [f"pictures: {CONFIG} of the package makes other numbers of a picture than that of the model"]
    return []


def _taken(inputs: dict[str, NDArray[Any]], session: EncodingSession) -> bool:
    """Whether a package takes that input: not too many tokens, and segments only where it has them."""
    if "input_ids" not in inputs:
        return True
    longest = session.fixed_sequence_length or session.longest_sequence or sys.maxsize
    segments = "token_type_ids" in session.input_names or not inputs.get("token_type_ids", np.zeros(1)).any()
    return bool(segments and inputs["input_ids"].shape[1] <= longest)


def _with_padding(inputs: dict[str, NDArray[Any]], session: EncodingSession) -> dict[str, NDArray[Any]]:
    """Padded to a container's fixed length; otherwise by a sixth, so that the mask is put to use."""
    tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    longest = session.longest_sequence or sys.maxsize
    return padded(inputs, session.fixed_sequence_length or max(tokens, min(tokens + tokens // 6 + 1, longest)))


def _tokenizer_of(session: EncodingSession, package: Package) -> Callable[[str], Sequence[int] | None]:
    """The runtime's tokenizer, or the one that lies in the package."""
    packaged = packaged_tokenizer(package)

    def encode(string: str) -> Sequence[int] | None:
        own = session.tokenize(string)
        return packaged.encode(string).ids if own is None and packaged is not None else own

    return encode
