"""Samples of a function's inputs: arrays of a .npz file, each with the samples along its first axis."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.model import read_model
from compiler.quantization import Calibration
from compiler.stages.cache import cache_folder, new_folder
from compiler.tensorflow_function import FunctionPort, read_signature

SUFFIX = ".npz"
_LIMIT_BYTES = 8 << 30
_FILE = "samples.npz"  # ARRAYS of quantize/plan.py, which stages of targets name
Arrays = dict[str, NDArray[Any]]
# What numpy and zipfile meet in damaged files.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, SyntaxError, NotImplementedError, RuntimeError,
    MemoryError, OverflowError, TypeError,
)  # fmt: skip


def keep_arrays(source: str) -> tuple[str, str]:
    """(SHA-256, name for people) of a .npz file, which the cache keeps under it.

    Raises:
        UnusableInput: there is no such file, or it cannot be read.
    """
    file = Path(source).expanduser()
    read_arrays(file)
    digest = digest_file(file)
    place = kept_arrays(digest)
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(place.parent) as work:
            shutil.copyfile(file, work / place.name).rename(place)
    return digest, file.name


def kept_arrays(digest: str) -> Path:
    """Where the cache keeps the file of that SHA-256.

    Raises:
        UnusableInput: it is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UnusableInput(f"{digest!r:.80} is no SHA-256 of arrays. Build the package again.")
    return cache_folder("arrays") / f"{digest}{SUFFIX}"


def read_arrays(file: Path) -> Arrays:
    """The arrays of a .npz file, by name; nothing that it holds is run.

    Raises:
        UnusableInput: there is no such file, it is no .npz file, it is too large, or it holds objects of Python.
    """
    if not file.is_file():
        raise UnusableInput(f"There is no file {file.name}.")
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(each.file_size for each in archive.infolist())
        if size > _LIMIT_BYTES:
            raise UnusableInput(f"{file.name} unpacks to {size:,} bytes, and at most {_LIMIT_BYTES:,} are read.")
        with np.load(file, allow_pickle=False) as given:
            arrays = {name: given[name] for name in given.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a member is no array")
            return arrays
    except _BROKEN as error:
        raise UnusableInput(
            f"{file.name} cannot be read: it is no .npz file of numbers. Write it with numpy.savez(file, name=array)."
        ) from error


def samples_for(inputs: Sequence[FunctionPort], given: Mapping[str, NDArray[Any]], file: str) -> Arrays:
    """The arrays by the names of a function's inputs, each of the input's type, (samples, ...) by its shape.

    Raises:
        UnusableInput: an input has no array, or one of another shape or of numbers that its type does not hold.
    """
    if unknown := sorted(set(given) - {port.name for port in inputs}):
        known = ", ".join(port.name for port in inputs)
        raise UnusableInput(f"{file} has an array {unknown[0]!r:.60}, and the inputs are {known}. Rename it.")
    taken = {}
    for port in inputs:
        wanted = f"({', '.join(map(str, ('samples', *port.sample_shape)))})"
        if port.name not in given:
            raise UnusableInput(f"{file} has no array {port.name}. Give one of the shape {wanted}.")
        array = given[port.name]
        if not array.ndim or array.shape[1:] != port.sample_shape or not len(array):
            raise UnusableInput(f"The array {port.name} of {file} has the shape {array.shape}; it must be {wanted}.")
        made = array.astype(port.dtype) if array.dtype.kind in "fiub" else None
        if made is None or (made.dtype.kind != "f" and not np.array_equal(made, array)):
            raise UnusableInput(f"The array {port.name} of {file} is of {array.dtype}; the input takes {port.dtype}.")
        if made.dtype.kind == "f" and not np.isfinite(made).all():
            raise UnusableInput(f"The array {port.name} of {file} has numbers that are not finite. Take them out.")
        taken[port.name] = made
    if len({len(array) for array in taken.values()}) > 1:
        raise UnusableInput(f"The arrays of {file} have different numbers of samples. Give as many for each input.")
    return taken


def write_array_samples(model: str, out: str, task: str, calibration: dict[str, Any]) -> None:
    """Write `samples.npz`, an array for each input, of samples spread evenly over those given: a stage.

    Raises:
        UnusableInput: none are given, or they do not suit the function.
    """
    source, wanted = read_model(Path(model), task=task), Calibration(**calibration)
    if wanted.arrays is None:
        raise UnusableInput(
            f"{source.name} takes arrays, and the calibration {wanted.source} is none. Name a {SUFFIX} file of its inputs "
            "with --calibration."
        )
    inputs, _ = read_signature(source.config, source.name)
    kept = kept_arrays(wanted.arrays)
    if not kept.is_file():
        raise UnusableInput(
            f"The calibration {wanted.source} is no longer in edgec's cache. Name the file again with --calibration."
        )
    samples = samples_for(inputs, read_arrays(kept), wanted.source)
    count = len(next(iter(samples.values())))
    chosen = np.linspace(0, count - 1, min(count, wanted.samples)).round().astype(np.int64)
    taken: dict[str, Any] = {name: array[chosen] for name, array in samples.items()}
    np.savez(Path(out) / _FILE, **taken)
