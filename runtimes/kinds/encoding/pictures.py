"""Pictures as an encoder takes them: by the image processor that lies in the package, as transformers reads it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_regular
from compiler.image_processor import CONFIG, pixel_values
from compiler.package import Package

_LIMIT_BYTES = 256 << 20


def picture_inputs(package: Package, file: Path) -> dict[str, NDArray[np.float32]]:
    """A picture file as `pixel_values`, float32 (1, channels, height, width), of the size that the package takes.

    Raises:
        UnusableInput: there is no image processor in the package, it makes another size, or the picture cannot be read.
    """
    if not (package.folder / CONFIG).is_file():
        raise UnusableInput(
            f"{package.title} has no {CONFIG}, which tells how a picture becomes numbers: the model came without it. Add the "
            "file from the model's repository to the model and build again."
        )
    try:
        raw = read_regular(file, f"The picture {file}", _LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableInput(f"There is no picture {file}.") from None
    try:
        import transformers  # noqa: F401
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UnusableInput(f"{error.name} is needed to read pictures: pip install pillow transformers.") from error
    try:
        with Image.open(BytesIO(raw)) as picture:
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableInput(
            f"The picture {file} cannot be read: it is damaged, too large, or of a format that Pillow does not know."
        ) from error
    values = pixel_values(package.folder, pixels)
    wanted: tuple[Any, ...] = package.lowered.main.inputs[0].shape[1:]
    if any(isinstance(size, int) and size != made for size, made in zip(wanted, values.shape[1:], strict=True)):
        raise UnusableInput(
            f"{CONFIG} of {package.title} makes pictures of {list(values.shape[1:])}, and the package takes {list(wanted)} "
            "(channels, height, width). Correct the model's file and build again."
        )
    return {"pixel_values": values}
