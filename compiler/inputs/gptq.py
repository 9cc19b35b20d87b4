"""A GPTQ checkpoint as a plain Hugging Face folder with its codes beside it. Runs in a child process.

`model.safetensors` gets the weights that the codes stand for, so that everything that reads a Model reads this one, and
`codes-0000.safetensors` the codes themselves, which recipes with the checkpoint's own grid carry as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.codes import QuantizedTensor, write_quantized
from compiler.formats.gptq import CONFIG, CheckpointForm, quantized_names, read_form, unpack_tensor
from compiler.formats.json_file import read_object
from compiler.formats.safetensors import TensorInfo, find_tensors, read_bytes, write_tensors
from compiler.model import MODEL_FILES

_DTYPES = {"I32": np.int32, "F16": np.float16, "F32": np.float32, "BF16": np.uint16}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def import_gptq(model: str, out: str) -> None:
    """Write config.json of a float32 model, the weights as float32, the codes, and all other model files.

    Raises:
        UnusableInput: the checkpoint is of another form or inconsistent.
    """
    source, target = Path(model), Path(out)
    config = read_object(source / "config.json")
    form = read_form(config.get("quantization_config") or read_object(source / CONFIG))
    infos = {info.name: info for info in find_tensors(source)}
    names = quantized_names(infos)
    codes = [_read(infos, name, form) for name in names]
    write_quantized(target / "codes-0000.safetensors", codes)
    parts = {f"{name}.{part}" for name in names for part in _PARTS}
    kept = [info for name, info in infos.items() if name not in parts]
    layout = [(info.name, info.dtype, info.shape) for info in kept]
    layout += [(tensor.name, "F32", tensor.codes.shape) for tensor in codes]
    write_tensors(target / "model.safetensors", layout, _data(kept, codes))
    config.pop("quantization_config", None)
    # The weights are float32 now: what reads the model by its dtype would round them.
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in source.iterdir():
        own = file.name in ("config.json", CONFIG) or ".safetensors" in file.name
        if file.is_file() and MODEL_FILES.fullmatch(file.name) and not own:
            shutil.copyfile(file, target / file.name)


def _read(infos: dict[str, TensorInfo], name: str, form: CheckpointForm) -> QuantizedTensor:
    arrays: dict[str, NDArray[Any]] = {}
    for part in _PARTS:
        info = infos.get(f"{name}.{part}")
        if info is None:
            continue
        if info.dtype not in _DTYPES:
            raise UnusableInput(f"The GPTQ checkpoint stores {info.name} as {info.dtype}, which edgec does not read.")
        stored = np.frombuffer(read_bytes(info), _DTYPES[info.dtype]).reshape(info.shape)
        arrays[part] = (stored.astype(np.uint32) << 16).view(np.float32) if info.dtype == "BF16" else stored
    return unpack_tensor(name, arrays, form)


def _data(kept: list[TensorInfo], codes: list[QuantizedTensor]) -> Iterator[bytes]:
    for info in kept:
        yield read_bytes(info)
    for tensor in codes:
        yield tensor.dequantize().tobytes()
