"""What answers requests with pictures on AWS: the toolkit's functions around a classifier's own runtime.

A picture becomes numbers as it does in edgec: by the model's image processor, as transformers reads it.
"""

from __future__ import annotations

from string import Template

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.image_processor import CONFIG
from compiler.package import Package
from targets.aws.labels import SCORES, labels_of, problem_of
from targets.aws.openers import READ_JSON, Handler, Opener

TASK = "image-classification"
_CLASSIFY = Template('''"""Serves $model as $recipe: the functions that SageMaker's inference toolkit calls. Made by edgec.

A request is a picture, as image/jpeg, image/png or application/x-image, or {"inputs": "its bytes in base64"}; the answer has
the five likeliest labels with their scores.
"""

import base64
import binascii
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
$imports

OUTPUTS, SHAPE = $outputs, $shape
# Names of the outputs, and what they are.
LABELS, PROBLEM = $labels, $problem
MOST_LABELS = 5


def model_fn(model_dir):
    processor = AutoImageProcessor.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False, backend="pil")
    return processor, open_model(Path(model_dir) / $file)


$open


def input_fn(data, content_type):
    kind = content_type.partition(";")[0].strip()
    if kind == "application/json":
        data = picture_of(data)
    elif not kind.startswith("image/") and kind not in ("application/x-image", "application/octet-stream"):
        raise ValueError(content_type + " is not taken; send a picture, or application/json.")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("That is no picture that Pillow reads.") from None


def picture_of(data):
$read_json
    asked = given.get("inputs") if isinstance(given, dict) else None
    if not isinstance(asked, str):
        raise ValueError("Send inputs: a picture's bytes in base64.")
    try:
        return base64.b64decode(asked, validate=True)
    except binascii.Error:
        raise ValueError("What inputs has is no base64.") from None


def predict_fn(picture, model):
    processor, run = model
    pixels = np.asarray(Image.fromarray(picture).convert("$mode"))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    made = processor([pixels], return_tensors="np", input_data_format="channels_last", do_convert_rgb=False)
    values = np.asarray(made["pixel_values"], np.float32)
    if values.shape != SHAPE:
        raise ValueError("The image processor makes pictures of another size than the model takes.")
    found = run({"pixel_values": values})
    shares = scores(np.asarray(found["$output"], np.float32)[0])
    return [{"label": LABELS[place], "score": float(shares[place])} for place in np.argsort(-shares)[:MOST_LABELS].tolist()]


$scores


def output_fn(prediction, accept):
    return json.dumps(prediction, allow_nan=False)
''')
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def classifier(package: Package, opener: Opener) -> Handler:
    """What serves a classifier of pictures.

    Raises:
        UnusableInput: there is no image processor in the package.
    """
    if CONFIG not in package.files:
        raise UnusableInput(
            f"{package.title} has no {CONFIG}, which tells how a picture becomes numbers. Add the file from the model's "
            "repository to the model and build again."
        )
    main, config = package.lowered.main, read_object(package.folder / "config.json")
    shape = (1, *main.inputs[0].shape[1:])
    if any(type(size) is not int for size in shape) or shape[1] not in _MODES:
        raise UnusableInput(f"The kit takes pictures of one size, and {package.title} has {list(shape)}.")
    script = _CLASSIFY.substitute(
        model=package.model.name, recipe=package.recipe, imports=opener.imports, open=opener.open, file=repr(opener.file),
        outputs=tuple(port.name for port in main.outputs), output=main.outputs[0].name, shape=shape, mode=_MODES[shape[1]],
        labels=labels_of(config, main.outputs[0].shape[-1]), problem=repr(problem_of(config)),
        scores=SCORES, read_json=READ_JSON,
    )  # fmt: skip
    files = {name: name for name in (CONFIG, "config.json")}
    return Handler(script, files, ("pillow", "transformers"))
