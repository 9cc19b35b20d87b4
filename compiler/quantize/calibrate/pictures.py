"""Calibration pictures of image models: from a folder, or drawn where none is given."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.quantization import Calibration
from compiler.stages.cache import cache_folder, new_folder

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DRAWN_DEVIATION = 0.5
_CHROMA = 0.3


def keep_pictures(folder: Path) -> tuple[str, str]:
    """(SHA-256, name for people) of the pictures in a folder, which the cache keeps under it.

    Raises:
        UnusableInput: there is none.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise UnusableInput(
            f"The calibration folder {folder.name} has no picture. Put files into it that end with {', '.join(_SUFFIXES)}."
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    place = _place(digest.hexdigest())
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(place.parent) as work:
            new = work / "pictures"
            new.mkdir()
            for number, path in enumerate(files):
                shutil.copyfile(path, new / f"{number:06}{path.suffix.lower()}")
            new.rename(place)
    return digest.hexdigest(), folder.name


def samples_of_pictures(model: Model, calibration: Calibration) -> NDArray[np.float32]:
    """Pictures spread evenly over those given, as the model's own image processor makes them: (samples, channels, height,
    width).

    Raises:
        UnusableInput: the model has no image processor, or a picture cannot be read.
    """
    from PIL import Image
    from transformers import AutoImageProcessor

    assert calibration.pictures is not None
    files = sorted(_place(calibration.pictures).glob("*"))
    if not files:
        raise UnusableInput(
            "The calibration pictures are no longer in edgec's cache. Name their folder again with --calibration."
        )
    try:
        processor = AutoImageProcessor.from_pretrained(
            model.folder, local_files_only=True, trust_remote_code=False, use_fast=False
        )
    except (OSError, ValueError) as error:
        raise UnusableInput(
            f"{model.name} has no image processor that transformers can load: preprocessor_config.json is missing, damaged, "
            "or of a kind that it does not know. Add the file from the model's repository."
        ) from error
    chosen = np.linspace(0, len(files) - 1, min(calibration.samples, len(files))).round().astype(int)
    found = []
    for number in chosen:
        try:
            with Image.open(files[number]) as picture:
                made = processor(picture.convert("RGB"), return_tensors="np")["pixel_values"][0]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnusableInput(
                f"Picture {number + 1} of the calibration folder {calibration.source} is not one that Pillow can open: it is "
                "damaged, or of another format. Remove it, or save it again as PNG or JPEG."
            ) from error
        found.append(np.asarray(made, np.float32))
    return np.stack(found)


def draw_samples(shape: tuple[int, int, int], count: int, seed: int) -> NDArray[np.float32]:
    """Noise whose amplitude falls with frequency as that of photographs does, (count, *shape), within -1 to 1.

    Field 1987, "Relations between the statistics of natural images"; Baradad et al. 2021 (arXiv:2106.05963) train on the same.
    """
    channels, height, width = shape
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))
    noise = generator.standard_normal((count, 1 + channels, height, width))
    fields = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(height, width))
    pictures = fields[:, :1] + _CHROMA * fields[:, 1:]
    pictures *= _DRAWN_DEVIATION / pictures.std(axis=(1, 2, 3), keepdims=True)
    return pictures.clip(-1, 1).astype(np.float32)


def _place(digest: str) -> Path:
    return cache_folder("pictures") / digest
