"""GGUF importance matrices: measured here, written in llama.cpp's own form, and handed to its quantizer.

The form is that of tools/imatrix/imatrix.cpp (`save_imatrix`): for each tensor of the model `NAME.in_sum2`, the sums of
squares of its inputs, and `NAME.counts`, the number of tokens. llama-quantize reads the file as one of its own.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CheckFailed
from compiler.formats.gguf import read_gguf_header
from compiler.model import Model, read_model
from compiler.quantize.carrying import DTYPES, mark_rows
from compiler.quantize.plan import SAMPLES, plan_samples
from compiler.recipe import Recipe
from compiler.stages.stage import Stage

FILE = "imatrix.gguf"
# What the conversion writes.
BASE = "base.gguf"

_MARKED_ROWS = 4


def plan_imatrix(model: Model, recipe: Recipe, base: Stage) -> Stage:
    """The stage that writes `imatrix.gguf` for the tensors of the conversion `base`."""
    calibration = recipe.quantization.calibration
    return Stage(
        "measure imatrix",
        "targets.gguf.imatrix:measure",
        {"task": model.task, "dataset": calibration.source},
        ("torch", "transformers", "numpy", "gguf"),
        {"base": base, "samples": plan_samples(model, recipe.quantization)},
        {"base": (BASE,), "samples": (SAMPLES,)},
        (FILE,),
    )


def measure(model: str, base: str, samples: str, out: str, task: str, dataset: str) -> None:
    """Write `imatrix.gguf` for the tensors of the conversion `base`."""
    import torch

    from compiler.quantize.calibrate.importance import measure_importance

    given = torch.from_numpy(np.load(Path(samples) / SAMPLES))
    by_mark: dict[int, NDArray[np.float32]] = {}
    shared: set[int] = set()
    for each in measure_importance(read_model(Path(model), task=task), given, Path(out)):
        values = np.memmap(each.weight.file, DTYPES[each.weight.dtype], "r", each.weight.offset, each.weight.shape)
        rows = (values.T if each.transposed else values)[:_MARKED_ROWS]
        marks = {int(mark) for mark in mark_rows(rows, each.weight.dtype)}
        shared |= marks & by_mark.keys()
        by_mark |= dict.fromkeys(marks, each.squares.numpy().astype(np.float32))
    # Rows that two layers have (of zeros, for one) tell nothing of which of them a tensor was made of.
    by_mark = {mark: squares for mark, squares in by_mark.items() if mark not in shared}
    entries = _by_tensor(Path(base) / BASE, by_mark)
    write_imatrix(Path(out) / FILE, entries, given.shape[0], given.shape[1], dataset)


def _by_tensor(base: Path, by_mark: dict[int, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The sums for the base file's tensors; the converter keeps rows as they are, whatever their order and names."""
    entries = {}
    for tensor in read_gguf_header(base).tensors:
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2:
            continue
        shape = (tensor.elements // tensor.row, tensor.row)
        values: NDArray[Any] = np.memmap(base, DTYPES[tensor.type], "r", tensor.offset, shape)
        known = next((by_mark[int(mark)] for mark in mark_rows(values, tensor.type) if int(mark) in by_mark), None)
        if known is None:
            raise CheckFailed(
                "imatrix",
                f"No importance was measured for {tensor.name}: none of its rows is known from a Linear layer of the model. "
                "Build without +imatrix.",
            )
        entries[tensor.name] = known
    return entries


def write_imatrix(path: Path, sums: dict[str, NDArray[np.float32]], chunks: int, chunk_size: int, dataset: str) -> None:
    """Write sums of squares, float32 (inputs,) for each tensor, over `chunks` of `chunk_size` tokens."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name in sorted(sums):
        writer.add_tensor(f"{name}.in_sum2", sums[name].reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), chunks * chunk_size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def set_imatrix(params: Any, path: Path) -> list[Any]:
    """Put an imatrix file into `llama_model_quantize_params`; keep what is returned until the quantizer is done.

    The file's figures go in as mean squares, and what llama-quantize itself notes of an imatrix goes into the metadata.
    """
    import gguf
    import llama_cpp

    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    means = [(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"][0]).astype(np.float32) for name in names]
    data = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for place, name, mean in zip(data, names, means, strict=False):
        pointer = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        place.name, place.data, place.size = name.encode(), pointer, mean.size
    notes: tuple[tuple[str, str | int], ...] = (
        ("quantize.imatrix.file", path.name),
        ("quantize.imatrix.dataset", str(reader.fields["imatrix.datasets"].contents()[0])),
        ("quantize.imatrix.entries_count", len(names)),
        ("quantize.imatrix.chunks_count", int(reader.fields["imatrix.chunk_count"].contents())),
    )
    overrides = (llama_cpp.llama_model_kv_override * (len(notes) + 1))()
    for place, (key, value) in zip(overrides, notes, strict=False):
        place.key = key.encode()
        if isinstance(value, int):
            place.tag, place.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            place.tag, place.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, str(value).encode()[:127]
    params.imatrix, params.kv_overrides = data, overrides
    return [means, data, overrides]
