"""How a picture becomes numbers: the model's image processor, read by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object

CONFIG = "preprocessor_config.json"
# The colours of a picture, by a model's channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixel_values(folder: Path, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture as the image processor of a model or package makes it: float32 (1, channels, height, width).

    Args:
        folder: has `config.json` and `preprocessor_config.json`.
        picture: (height, width, 3) in red, green and blue; it is brought to the channels of the model.

    Raises:
        UnusableInput: the processor is code of the model, or none that transformers can read.
    """
    from PIL import Image
    from transformers import AutoImageProcessor

    if "auto_map" in read_object(folder / CONFIG):
        raise UnusableInput(
            f"{folder.name} wants to run code of its own (auto_map in {CONFIG}), and edgec never does. Use the image "
            "processor of a released transformers."
        )
    channels = read_object(folder / "config.json").get("num_channels", 3)
    if channels not in _MODES:
        raise UnusableInput(f"{folder.name} takes pictures of {channels!r:.20} channels; pictures have {list(_MODES)}.")
    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableInput(
            f"transformers knows no image processor for {CONFIG} of {folder.name}. Its image_processor_type must be one of "
            "transformers' own."
        ) from error
    pixels = np.asarray(Image.fromarray(picture).convert(_MODES[channels]))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    made = processor([pixels], return_tensors="np", input_data_format="channels_last", do_convert_rgb=False)
    return np.asarray(made["pixel_values"], np.float32)


def picture_size(folder: Path, told: Any) -> tuple[int, int]:
    """Height and width of the pictures that a model takes: as its configuration tells, or its image processor.

    Raises:
        UnusableInput: neither does.
    """
    asked = [told]
    if told is None and (folder / CONFIG).is_file():
        config = read_object(folder / CONFIG)
        asked = [config.get("crop_size") if config.get("do_center_crop", True) else None, config.get("size")]
    for size in asked:
        if isinstance(size, dict):
            size = (size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge")))
        found = (size, size) if isinstance(size, int) else size
        if (
            isinstance(found, tuple | list)
            and len(found) == 2
            and all(type(n) is int and 0 < n < 1 << 16 for n in found)
        ):
            return found[0], found[1]
    raise UnusableInput(
        f"{folder.name} does not tell how large its pictures are: config.json has no image_size, and {CONFIG} no size."
    )
