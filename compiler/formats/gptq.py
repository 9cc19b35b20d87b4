"""GPTQ checkpoints: the standard safetensors form of GPTQModel and AutoGPTQ, written and read.

A Linear `NAME` becomes `NAME.qweight` int32 (inputs * bits / 32, outputs), `NAME.qzeros` int32 (groups, outputs * bits / 32),
`NAME.scales` float16 (groups, outputs) and `NAME.g_idx` int32 (inputs,). Codes are packed from the low bits up, along the
inputs in `qweight` and along the outputs in `qzeros`; with 3 bits, 32 codes fill three words without gaps. The form `gptq`
(v1) stores zero points less one, `gptq_v2` stores them as they are: in v1 a zero point of 0 wraps around to all ones, which
readers must mask. (gptqmodel/quantization/config.py and nn_modules/qlinear/__init__.py of ModelCloud/GPTQModel.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.codes import QuantizedTensor
from compiler.formats.safetensors import TensorInfo

_WORD = 32
CONFIG = "quantize_config.json"
FORMS = ("gptq", "gptq_v2")
# Settings that tell how weights are stored, and those that tell how they were found (gptqmodel/quantization/config.py).
_CONSUMED = (
    "bits",
    "group_size",
    "desc_act",
    "sym",
    "quant_method",
    "checkpoint_format",
    "format",
    "dynamic",
    "pack_dtype",
)
_DESCRIPTIVE = (
    "lm_head", "meta", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse", "act_group_aware",
    "model_name_or_path", "model_file_base_name", "dataset", "tokenizer", "batch_size", "block_name_to_quantize",
    "module_name_preceding_first_block", "modules_in_block_to_quantize", "model_seqlen", "max_input_length", "pad_token_id",
    "cache_block_outputs", "use_cuda_fp16", "use_exllama", "exllama_config", "disable_exllama", "backend", "version",
    "quantizer", "uri", "hyb_act", "offload_to_disk", "offload_to_disk_path", "device", "parallel_packing",
    "mock_quantization",
    "is_marlin_format", "modules_to_not_convert", "v2_memory_device",
)  # fmt: skip
BITS = (2, 3, 4, 8)


_LARGEST_GROUP = 1 << 24


@dataclass(frozen=True)
class CheckpointForm:
    """What `quantization_config` says.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; -1 for all.
        desc_act: columns belong to groups in the order of their activations.
        symmetric: all zero points are the middle.
        form: `gptq` or `gptq_v2`.
    """

    bits: int
    group_size: int
    desc_act: bool
    symmetric: bool
    form: str


def read_form(said: Mapping[str, Any]) -> CheckpointForm:
    """The form that a `quantization_config`, or a quantize_config.json, tells of.

    Raises:
        UnusableInput: another method, an unknown form, bits that GPTQ does not have, or a setting that is not read.
    """
    form = str(said.get("checkpoint_format") or said.get("format") or "gptq")
    if unknown := sorted(name for name, value in said.items() if value and name not in _CONSUMED + _DESCRIPTIVE):
        raise UnusableInput(
            f"The GPTQ checkpoint has the setting {unknown[0]} = {said[unknown[0]]!r:.80}, which edgec does not know. Its "
            "weights may stand for something else; give the model that it was made from."
        )
    dynamic = said.get("dynamic") or {}
    if settings := sorted(str(name) for name in _listed(dynamic) if not str(name).startswith("-")):
        raise UnusableInput(
            f"The GPTQ checkpoint has settings of their own for some layers (dynamic: {settings[0]!r:.80}), which edgec does "
            "not read. Give the model that it was made from."
        )
    if said.get("pack_dtype", "int32") != "int32":
        raise UnusableInput(f"The GPTQ checkpoint packs codes into {said['pack_dtype']!r}; edgec reads int32.")
    if said.get("quant_method", "gptq") != "gptq" or form not in FORMS:
        raise UnusableInput(
            f"The checkpoint is of the form {said.get('quant_method')}/{form}; read are gptq in the forms {', '.join(FORMS)}."
        )
    bits = said.get("bits")
    if type(bits) is not int or bits not in BITS:
        raise UnusableInput(f"The GPTQ checkpoint says {bits!r} bits; known are {', '.join(map(str, BITS))}.")
    size = said.get("group_size", -1)
    if type(size) is not int or not (size == -1 or 0 < size < _LARGEST_GROUP):
        raise UnusableInput(
            f"The GPTQ checkpoint says groups of {size!r:.40}; a group has a number of weights, or -1 is all."
        )
    return CheckpointForm(bits, size, bool(said.get("desc_act")), bool(said.get("sym", True)), form)


def _listed(value: Any) -> list[Any]:
    """What a setting names: the keys of an object, the members of a list, or itself."""
    return list(value) if isinstance(value, dict | list) else [value]


def pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes (n, m) packed along the first axis into int32 (n * bits / 32, m); n * bits must divide by 32."""
    spread = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=bits)
    stream = spread.transpose(0, 2, 1).reshape(-1, _WORD, codes.shape[1])
    packed = np.packbits(stream.transpose(0, 2, 1), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4")[..., 0].astype(np.int32)


def unpack_words(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack_words`."""
    raw = np.ascontiguousarray(words[..., None].astype("<i4")).view(np.uint8)
    stream = np.unpackbits(raw, axis=-1, bitorder="little").transpose(0, 2, 1)
    spread = stream.reshape(-1, bits, words.shape[1]).transpose(0, 2, 1)
    return np.packbits(spread, axis=-1, bitorder="little")[..., 0]


def pack_tensor(tensor: QuantizedTensor, form: str) -> dict[str, NDArray[Any]]:
    """The four arrays of a Linear, by the ends of their names."""
    zeros = tensor.zero_points.T
    if form == "gptq":
        zeros = (zeros - 1) & (2**tensor.bits - 1)
    group_of_column = tensor.group_of_column
    if group_of_column is None:
        group_of_column = np.arange(tensor.columns, dtype=np.int32) // tensor.group_size
    return {
        "qweight": pack_words(np.ascontiguousarray(tensor.codes.T), tensor.bits),
        "qzeros": np.ascontiguousarray(pack_words(np.ascontiguousarray(zeros.T), tensor.bits).T),
        "scales": np.ascontiguousarray(tensor.scales.T),
        "g_idx": group_of_column.astype(np.int32),
    }


def unpack_tensor(name: str, arrays: Mapping[str, NDArray[Any]], form: CheckpointForm) -> QuantizedTensor:
    """A Linear's QuantizedTensor from its four arrays.

    Raises:
        UnusableInput: their shapes do not agree.
    """
    if missing := [part for part in ("qweight", "qzeros", "scales") if part not in arrays or arrays[part].ndim != 2]:
        raise UnusableInput(f"The GPTQ checkpoint has no matrix {name}.{missing[0]}.")
    if arrays["qweight"].size * _WORD // form.bits % max(1, arrays["qweight"].shape[1]):
        raise UnusableInput(f"The GPTQ checkpoint's {name}.qweight does not hold codes of {form.bits} bits.")
    codes = unpack_words(arrays["qweight"], form.bits).T
    zeros = unpack_words(np.ascontiguousarray(arrays["qzeros"].T), form.bits)
    rows, columns = codes.shape
    size = columns if form.group_size == -1 else form.group_size
    groups = -(-columns // size)
    if form.symmetric and (zeros == 2 ** (form.bits - 1)).all():
        pass  # The middle is the zero point, stored as it is: the label v1 is wrong, as vLLM issue 38966 has it.
    elif form.form == "gptq":
        zeros = (zeros + 1) & (2**form.bits - 1) if form.bits < 8 else zeros + np.uint8(1)
    g_idx = arrays.get("g_idx")
    if g_idx is None and form.desc_act and groups > 1:
        raise UnusableInput(
            f"The GPTQ checkpoint says that columns belong to groups in the order of their activations (desc_act), and has no "
            f"{name}.g_idx, which tells the order. Download it again."
        )
    scales = arrays["scales"]
    wrong = None
    if scales.shape != (groups, rows):
        wrong = f"scales are {list(scales.shape)}, its codes ask for {[groups, rows]}"
    elif zeros.shape != (rows, groups):
        wrong = f"zero points are {list(zeros.shape)}, its codes ask for {[rows, groups]}"
    elif g_idx is not None and (g_idx.shape != (columns,) or g_idx.min() < 0 or g_idx.max() >= groups):
        wrong = f"g_idx does not name one of {groups} groups for each of {columns} inputs"
    elif not np.isfinite(scales.astype(np.float32)).all():
        wrong = "scales are not all finite"
    elif (scales.astype(np.float16).astype(np.float32) != scales.astype(np.float32)).any():
        wrong = "scales have values that float16 cannot hold, which is what every container has for them"
    elif form.symmetric and not (zeros == 2 ** (form.bits - 1)).all():
        wrong = f"zero points are not {2 ** (form.bits - 1)}, and it says that it is symmetric (sym)"
    if wrong:
        raise UnusableInput(f"The GPTQ checkpoint is inconsistent at {name}: its {wrong}.")
    contiguous = g_idx is None or bool((g_idx == np.arange(columns) // size).all())
    return QuantizedTensor(
        f"{name}.weight",
        np.ascontiguousarray(codes),
        np.ascontiguousarray(scales.T.astype(np.float16)),
        np.ascontiguousarray(zeros),
        form.bits,
        size,
        bool((zeros == 2 ** (form.bits - 1)).all()),
        group_of_column=None if contiguous else np.asarray(g_idx, np.int32),
    )


def quantized_names(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The Linears of a checkpoint that are stored as codes.

    Raises:
        UnusableInput: one of them lacks a part.
    """
    names = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    for name in names:
        for part in ("qzeros", "scales"):
            if f"{name}.{part}" not in tensors:
                raise UnusableInput(f"The GPTQ checkpoint has no {name}.{part}. Download it again.")
    return names


def config_of(bits: int, group_size: int, symmetric: bool, damping: float, form: str) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint that edgec writes."""
    return {
        "bits": bits,
        "group_size": group_size or -1,
        "desc_act": False,
        "sym": symmetric,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": form,
        "pack_dtype": "int32",
        "meta": {
            "quantizer": ["edgec:1"],
            "damp_percent": damping,
            "static_groups": True,
            "true_sequential": True,
        },
    }


def write_config(config: dict[str, Any], said: dict[str, Any], folder: Path) -> None:
    """Write config.json and quantize_config.json."""
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}, indent=2), encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(said, indent=2), encoding="utf-8")
