"""What a .keras file is before Keras is given it: a zip archive of config.json, which names Keras's own classes, and weights.

Loading makes objects of the classes that config.json names, and HDF5 can lead to other files; Keras guards both, and here
they are looked at by edgec itself.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = (_CONFIG, _WEIGHTS, "metadata.json")
_CONFIG_BYTES = 64 << 20
_WEIGHT_BYTES = 2 << 30
_MOST_LEVELS = 64
_OWN_MODULE = re.compile(r"(keras|builtins)(\.[\w.]+)?")
# Classes whose configuration is code.
_CODE = ("Lambda", "__lambda__", "function", "module", "TFSMLayer", "TorchModuleWrapper", "FlaxLayer", "JaxLayer")


def check_keras(file: Path) -> None:
    """Refuse what is no .keras file, or names classes that are not Keras's own.

    Raises:
        UnusableInput: it is such a file.
    """
    import h5py

    try:
        with zipfile.ZipFile(file) as archive:
            _require_members(archive, file.name)
            config = parse_json(archive.read(_CONFIG), f"{_CONFIG} of {file.name}")
            weights = archive.read(_WEIGHTS)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error) as error:
        raise UnusableInput(f"{file.name} is damaged: it is no .keras archive. Save the model again.") from error
    # How it was trained is not read.
    told = (
        {name: value for name, value in config.items() if name != "compile_config"} if isinstance(config, dict) else {}
    )
    for each in _objects(told):
        module, name = each.get("module"), each.get("class_name")
        inner = each.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
            raise UnusableInput(
                f"{file.name} has a layer {name!r:.60} that reads its words from a file. Save them with the model."
            )
        if name in _CODE or each.get("registered_name") in _CODE:
            raise UnusableInput(
                f"{file.name} has a layer {name!r:.60}, whose content is code of Python or of another library, and edgec runs "
                "no code of a model. Write it with Keras's own layers, or save the model with model.export('folder')."
            )
        if (isinstance(module, str) and not _OWN_MODULE.fullmatch(module)) or (
            module is None and each.get("registered_name")
        ):
            raise UnusableInput(
                f"{file.name} has the class {name!r:.60} of {module or 'its own'!r:.60}, and edgec loads no code of a model. "
                "Save it with model.export('folder'), which needs no class."
            )
    try:
        with h5py.File(BytesIO(weights), "r") as document:
            if _require_own_data(document, file.name) > _WEIGHT_BYTES:
                raise UnusableInput(f"{file.name} unpacks to more than edgec reads of such a file. Refused.")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UnusableInput(f"{_WEIGHTS} of {file.name} is damaged. Save the model again.") from error


def _require_members(archive: zipfile.ZipFile, file: str) -> None:
    members = {each.filename: each.file_size for each in archive.infolist()}
    if not {_CONFIG, _WEIGHTS} <= set(members):
        raise UnusableInput(f"{file} lacks {_CONFIG} or {_WEIGHTS}, so it is no .keras file. Save the model again.")
    if foreign := sorted(set(members) - set(_MEMBERS)):
        raise UnusableInput(f"{file} holds {foreign[0]!r:.80}, which edgec does not read. Save the model without it.")
    if members[_CONFIG] > _CONFIG_BYTES or members[_WEIGHTS] > _WEIGHT_BYTES:
        raise UnusableInput(f"{file} unpacks to more than edgec reads of such a file. Refused.")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a configuration that stands for one of a class."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if "class_name" in each:
                yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _require_own_data(group: Any, file: str, levels: int = _MOST_LEVELS) -> int:
    """Refuse HDF5 that leads out of its file, or in a circle; the bytes of its arrays."""
    import h5py

    if not levels:
        raise UnusableInput(f"{_WEIGHTS} of {file} is nested deeper than {_MOST_LEVELS} levels. Refused.")
    total = 0
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UnusableInput(
                f"{_WEIGHTS} of {file} has a link {name!r:.60}, which may lead to other files. Refused."
            )
        inner = group[name]
        if isinstance(inner, h5py.Group):
            total += _require_own_data(inner, file, levels - 1)
        elif inner.is_virtual or inner.external:
            raise UnusableInput(f"{_WEIGHTS} of {file} keeps {name!r:.60} in other files. Refused.")
        else:
            total += inner.nbytes
    return total
