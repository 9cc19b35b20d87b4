"""gptq: a standard GPTQ checkpoint, a Hugging Face folder that GPTQModel, vLLM and transformers read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compiler.formats.codes import QuantizedTensor, list_quantized, read_quantized
from compiler.formats.gptq import BITS, config_of, pack_tensor, write_config
from compiler.formats.safetensors import TensorInfo, find_tensors, read_bytes, write_tensors
from compiler.lineage import copy_chat_files, lineage_of, model_of, write_lineage
from compiler.model import Model
from compiler.package import FixedShapes, Graph, Lowered, Port, StoredWeights
from compiler.quantize.plan import CODES, IN_BLOCK, experts_of, plan_codes, refuse_rows, with_tables_kept
from compiler.recipe import Recipe
from compiler.scheme import CODE_SCHEMES
from compiler.size import matrices_of, packed_bytes, processor_bytes, vector_weights
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import GENERATION, tasks_of

NAME = "gptq"
SCHEMES = tuple(scheme.name for scheme in CODE_SCHEMES if scheme.code_bits in BITS)

_CODES_PER_GROUP = 32
_HALF, _WORD = 2, 4


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: layers that are no Linear, or sizes that do not fill 32-bit words."""
    if model.config.get("model_type") == "gpt2":
        return "GPT-2 is built of Conv1D layers, which readers of GPTQ checkpoints do not agree on; try gguf or onnx."
    if (experts := experts_of(model)) != 0:
        return f"it has {experts} experts a layer, and edgec's own schemes do not quantize the matrices of experts."
    odd = next((t for t in model.tensors if len(t.shape) == 2 and (t.shape[0] % 32 or t.shape[1] % 32)), None)
    if odd is not None and "layers" in odd.name:
        return f"{odd.name} is {list(odd.shape)}, and codes are packed by {_CODES_PER_GROUP}."
    if recipe.quantization.smaller_groups:
        return "a GPTQ checkpoint has one group size for all its matrices; drop --smaller-groups."
    return refuse_rows(model, recipe, takes_act_order=True)


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes: words of codes and zero points, scales, and the group of each column."""
    bits, total = recipe.scheme.code_bits, 0
    for matrix in matrices_of(model):
        if not _is_linear(matrix.name):
            total += _HALF * matrix.elements
            continue
        groups = matrix.elements // (recipe.scheme.block or matrix.row)
        total += packed_bytes(matrix.elements + groups, bits) + _HALF * groups + _WORD * matrix.row
    width = {"F32": 4}.get(model.tensors[0].dtype, _HALF)
    return total + width * vector_weights(model) + processor_bytes(model)


def plan(model: Model, recipe: Recipe) -> Stage:
    """The codes, then the checkpoint."""
    scheme = recipe.scheme
    arguments = {
        "scheme": scheme.name,
        "group_size": scheme.block,
        "bits": scheme.code_bits,
        "symmetric": scheme.symmetric,
        "damping": recipe.quantization.damping,
        "lineage": lineage_of(model, recipe),
        "context_length": recipe.shapes.context_length,
    }
    codes = plan_codes(model, with_tables_kept(model, recipe))
    label, ensures = f"write {scheme.name} checkpoint", ("model.safetensors",)
    requires = {"codes": (CODES,)}
    return Stage(label, "targets.gptq:pack", arguments, ("numpy",), {"codes": codes}, requires, ensures)


def pack(
    model: str,
    codes: str,
    out: str,
    scheme: str,
    bits: int,
    group_size: int,
    symmetric: bool,
    damping: float,
    lineage: dict[str, str],
    context_length: int | None,
) -> dict[str, Any]:
    """Write the checkpoint: v1 for symmetric codes, v2 for others, since readers of v1 part ways at a zero point of 0.

    The embedding and the head have no place for codes in this form; they get what their codes stand for, as float16.
    """
    folder, form = Path(out), "gptq" if symmetric else "gptq_v2"
    infos = {info.name: info for info in find_tensors(Path(model))}
    entries = list_quantized(Path(codes))
    layout: list[tuple[str, str, tuple[int, ...]]] = []
    for name, info in infos.items():
        if name in entries and _is_linear(name):
            entry = entries[name]
            base, groups = name.removesuffix(".weight"), entry.columns // entry.group_size
            layout += [
                (f"{base}.qweight", "I32", (entry.columns * bits // 32, entry.rows)),
                (f"{base}.qzeros", "I32", (groups, entry.rows * bits // 32)),
                (f"{base}.scales", "F16", (groups, entry.rows)),
                (f"{base}.g_idx", "I32", (entry.columns,)),
            ]
        elif name in entries:
            layout.append((name, "F16", info.shape))
        else:
            layout.append((name, info.dtype, info.shape))
    write_tensors(folder / "model.safetensors", layout, _data(infos, entries, form))
    read = model_of(Path(model), lineage)
    write_lineage(read, lineage, folder, processor=True)
    write_config(dict(read.config), config_of(bits, group_size, symmetric, damping, form), folder)
    copy_chat_files(read, folder)
    shutil.copyfile(Path(codes) / "layers.json", folder / "layers.json")
    inputs = (Port("input_ids", "int64", ("batch", "sequence")),)
    outputs = (Port("logits", "float32", ("batch", "sequence", read.geometry.vocabulary)),)
    return asdict(
        Lowered(
            runtime="gptq",
            graphs=(Graph("main", ("model.safetensors",), inputs, outputs),),
            weights=_weights(layout, bits),
            shapes=FixedShapes(context_length, (), read.geometry.context_length, None, read.geometry.vocabulary),
        )
    )


def _is_linear(name: str) -> bool:
    """Embeddings and heads are outside the blocks, whatever a family calls them."""
    return IN_BLOCK.search(name) is not None


def _data(infos: dict[str, TensorInfo], entries: dict[str, Any], form: str) -> Iterator[bytes]:
    for name, info in infos.items():
        if name not in entries:
            yield read_bytes(info)
            continue
        tensor: QuantizedTensor = read_quantized(entries[name])
        if _is_linear(name):
            for values in pack_tensor(tensor, form).values():
                yield values.tobytes()
        else:
            yield tensor.dequantize().astype(np.float16).tobytes()


def _weights(layout: list[tuple[str, str, tuple[int, ...]]], bits: int) -> StoredWeights:
    """Bits per weight over the whole file; `types` counts weights, not words."""
    types: dict[str, int] = {}
    stored_bits = 0
    sizes = {"I32": 32, "F16": 16, "BF16": 16, "F32": 32}
    for name, dtype, shape in layout:
        count = int(np.prod(shape))
        stored_bits += count * sizes.get(dtype, 32)
        if name.endswith(".qweight"):
            types[f"int{bits}"] = types.get(f"int{bits}", 0) + count * 32 // bits
        elif not name.endswith((".qzeros", ".g_idx", ".scales")):
            kind = dtype.lower().replace("f", "fp")
            types[kind] = types.get(kind, 0) + count
    return StoredWeights(round(stored_bits / sum(types.values()), 4), dict(sorted(types.items())))


TARGET = Target(
    name=NAME,
    extra="reference",
    schemes=SCHEMES,
    tasks=tasks_of(GENERATION),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
)
