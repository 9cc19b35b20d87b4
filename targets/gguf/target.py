"""gguf: llama.cpp's container. Its own converter writes F32, BF16 or F16; its own quantizer writes everything else."""

from __future__ import annotations

import ctypes
import difflib
import json
import os
import runpy
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.attention_windows import alternate, every_but, same_up_to
from compiler.errors import UnusableInput
from compiler.formats.gguf import read_gguf_header
from compiler.formats.json_file import read_object
from compiler.lineage import lineage_of, model_of, write_lineage
from compiler.model import Model, model_files
from compiler.package import Deviation, FixedShapes, Graph, Lowered, Port, StoredWeights
from compiler.quantize.allocation import Budget, Choice, write_allocation
from compiler.quantize.plan import CODES, copy_tables, plan_allocation, plan_codes, refuse_rows, rows_in_blocks
from compiler.recipe import IMATRIX, Recipe
from compiler.scheme import SCHEMES as ALL_SCHEMES
from compiler.scheme import find_scheme
from compiler.sentence import OUTPUT
from compiler.stages.stage import Stage
from compiler.target import Target, longest_context, refuse_window
from compiler.task import GENERATION, tasks_of
from compiler.tokenizer import end_of_text_ids
from targets.gguf import converter as llama_converter
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.codes import BLOCK, CONTAINERS, carry, matrix_bytes
from targets.gguf.imatrix import BASE, plan_imatrix, set_imatrix
from targets.gguf.imatrix import FILE as IMATRIX_FILE
from targets.gguf.pretokenizer import recognized
from targets.gguf.settings import refuse_settings
from targets.gguf.sizes import nbytes
from targets.gguf.token_keys import completed

NAME = "gguf"
SCHEMES = tuple(
    scheme.name
    for scheme in ALL_SCHEMES
    if scheme.family == "gguf"
    or scheme.mixed
    or (scheme.method in ("rtn", "gptq") and (scheme.code_bits, scheme.symmetric) in CONTAINERS)
)

CHOICES = tuple(
    Choice(bits, symmetric, found.bits_per_weight)
    for (bits, symmetric), (kind, _) in CONTAINERS.items()
    if (found := find_scheme(kind)) is not None
)

_FLOAT_SCHEMES = ("F32", "F16", "BF16")
_K_BLOCK = 256
# `tensor_requires_imatrix` of llama.cpp's src/llama-quant.cpp.
_BY_IMATRIX_ALONE = ("Q2_K_S",)
_OLLAMA_CONTEXT = 4096
# Types whose converters read `rotary_pct`, and what it is where nothing is said.
_ROTARY_PCT = {"cohere2": 1.0}

# File types of llama.h (enum llama_ftype).
_FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q2_K_S": 21,
}  # fmt: skip
_GGML_TYPE_Q8_0 = 8


# Windows that llama.cpp gives to layers by their number (src/llama-model.cpp: set_swa_pattern).
WINDOWS = {"gemma2": alternate, "gemma3_text": every_but(6), "cohere2": every_but(4)}


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an architecture that the converter does not register, or options that the scheme has no use for."""
    if model.architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(model.architecture, ARCHITECTURES, n=3, cutoff=0.6)
        return (
            f"llama.cpp's converter does not take the architecture {model.architecture}. It takes {len(ARCHITECTURES)} others"
            + (f", {', '.join(near)} among them." if near else ", LlamaForCausalLM and BertModel among them.")
        )
    if (reason := refuse_settings(model)) is not None:
        return reason
    if IMATRIX in recipe.options and (recipe.scheme.method or recipe.scheme.name in _FLOAT_SCHEMES):
        return f"an imatrix weighs llama.cpp's own rounding, and {recipe.scheme.name} has none; drop +{IMATRIX}."
    if recipe.scheme.method and (reason := _refuse_codes(model, recipe)) is not None:
        return reason
    in_k_blocks = any(row % _K_BLOCK == 0 for _, row in rows_in_blocks(model))
    if recipe.scheme.name in _BY_IMATRIX_ALONE and IMATRIX not in recipe.options and in_k_blocks:
        return f"llama.cpp rounds to {recipe.scheme.name} by an importance matrix alone; add +{IMATRIX}, or use Q2_K."
    return refuse_window(model, recipe, "llama.cpp", same_up_to(model, WINDOWS))


def _refuse_codes(model: Model, recipe: Recipe) -> str | None:
    if recipe.scheme.block % BLOCK:
        return f"GGUF blocks have {BLOCK} weights; use a scheme with groups of 32, 64 or 128."
    return refuse_rows(model, recipe)


def foresee(model: Model, recipe: Recipe) -> tuple[Deviation, ...]:
    """Matrices whose rows the blocks of a type of llama.cpp's do not divide: its quantizer stores them in another type."""
    block = recipe.scheme.block
    if recipe.scheme.family != "gguf" or not block:
        return ()
    return tuple(
        Deviation(name, "another type", f"rows of {row} do not divide by {block}", forced=True)
        for name, row in rows_in_blocks(model)
        if row % block
    )


def plan(model: Model, recipe: Recipe) -> Stage:
    """Convert (shared by all GGUF recipes of the model) and, where asked, quantize or carry codes."""
    name = recipe.scheme.name
    if recipe.scheme.method:
        base = _plan_convert(model, _lossless_type(model))
        allocation = (
            plan_allocation(model, recipe, "targets.gguf.target:allocate", base) if recipe.scheme.mixed else None
        )
        return Stage(
            f"carry {name} to GGUF",
            "targets.gguf.target:pack_codes",
            {"scheme": name, "lineage": lineage_of(model, recipe), "context_length": recipe.shapes.context_length},
            ("numpy",),
            {"base": base, "codes": plan_codes(model, recipe, allocation)},
            {"base": (BASE,), "codes": (CODES,)},
            ("*.gguf",),
        )
    base = _plan_convert(model, name if name in _FLOAT_SCHEMES else _lossless_type(model))
    imatrix = {"imatrix": plan_imatrix(model, recipe, base)} if IMATRIX in recipe.options else {}
    return Stage(
        f"quantize to {name}" if name not in _FLOAT_SCHEMES else "pack GGUF",
        "targets.gguf.target:pack",
        {"scheme": name, "lineage": lineage_of(model, recipe), "context_length": recipe.shapes.context_length},
        ("llama-cpp-python", *(("gguf", "numpy") if imatrix else ())),
        {"base": base, **imatrix},
        {"base": (BASE,), **dict.fromkeys(imatrix, (IMATRIX_FILE,))},
        ("*.gguf",),
    )


def _plan_convert(model: Model, base: str) -> Stage:
    return Stage(
        "convert to GGUF",
        "targets.gguf.target:convert",
        {"base": base, "name": model.name, "converter": llama_converter.VERSION},
        ("torch", "transformers", "tokenizers", "sentencepiece", "llama-cpp-python", "numpy"),
        ensures=(BASE,),
        python_path=("targets.gguf.converter:converter_folder",),
    )


def _lossless_type(model: Model) -> str:
    """The float type that holds the model's weights as they are, so that the quantizer sees them unrounded."""
    dtypes = {tensor.dtype for tensor in model.tensors if len(tensor.shape) > 1}
    return {frozenset({"BF16"}): "BF16", frozenset({"F16"}): "F16"}.get(frozenset(dtypes), "F32")


def convert(model: str, out: str, base: str, name: str, converter: str) -> None:
    """Run llama.cpp's converter in this process; writes `base.gguf`."""
    script = llama_converter.converter_folder() / "convert_hf_to_gguf.py"
    target = Path(out) / BASE
    os.environ["NO_LOCAL_GGUF"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        view_without_code(Path(model), folder)
        sys.argv = [str(script), str(folder), "--outtype", base.lower(), "--outfile", str(target), "--model-name", name]
        try:
            with recognized(Path(model)), completed(Path(model)):
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as error:
            if error.code:
                raise UnusableInput(f"llama.cpp's converter refused {name} (exit code {error.code}).") from error
        except (FileNotFoundError, ValueError) as error:
            if "tokenizer.model" not in str(error):
                raise
            raise UnusableInput(
                f"llama.cpp's converter takes the vocabulary of {name} from tokenizer.model, which the model does not have. "
                "Add that file from the model's original repository."
            ) from error
    if not target.is_file():
        raise UnusableInput(f"llama.cpp's converter wrote no file for {name}.")


def view_without_code(model: Path, folder: Path) -> None:
    """A folder with the model's files, under the model's name, which the converter writes into its metadata in parts.

    The converter trusts remote code: no file of code is there, and no `auto_map` that could name one on the hub.
    config.json gets the names that transformers 5 no longer writes.
    """
    folder.mkdir()
    for file in model_files(model):
        (folder / file.relative_to(model)).parent.mkdir(exist_ok=True)
        (folder / file.relative_to(model)).symlink_to(file.resolve())
    for name in ("config.json", "tokenizer_config.json"):
        document = read_object(model / name) if (model / name).is_file() else {}
        plain = {key: value for key, value in document.items() if key != "auto_map"}
        if name == "config.json" and plain.get("model_type") == "gpt2":
            plain.setdefault("n_ctx", plain["n_positions"])
        if name == "config.json" and plain.get("model_type") in _ROTARY_PCT:
            # transformers 5 has it among the parameters of rotations, under another name.
            told = plain.get("rope_parameters")
            share = told.get("partial_rotary_factor") if isinstance(told, dict) else None
            plain.setdefault("rotary_pct", _ROTARY_PCT[plain["model_type"]] if share is None else share)
        if plain != document:
            (folder / name).unlink()
            (folder / name).write_text(json.dumps(plain), encoding="utf-8")


def pack(
    model: str,
    base: str,
    out: str,
    scheme: str,
    lineage: dict[str, str],
    context_length: int | None,
    imatrix: str | None = None,
) -> dict[str, Any]:
    """Quantize the base file (or copy it), add the Modelfile and the lineage, and tell what became of the weights."""
    converted = Path(base) / BASE
    artifact = f"{lineage['name']}-{scheme}.gguf"
    if scheme in _FLOAT_SCHEMES:
        shutil.copyfile(converted, Path(out) / artifact)
    else:
        measured = Path(imatrix) / IMATRIX_FILE if imatrix else None
        _quantize(converted, Path(out) / artifact, scheme, measured)
        if measured:
            shutil.copyfile(measured, Path(out) / IMATRIX_FILE)
    return _finish(Path(model), Path(out), artifact, scheme, lineage, context_length)


def allocate(
    model: str,
    base: str,
    sensitivity: str,
    out: str,
    parameters: int,
    target_bpw: float | None,
    max_bytes: int | None,
) -> dict[str, Any]:
    """Choose each layer's type; `sensitivity` is the folder of the measured layers."""
    converted = Path(base) / BASE
    header = read_gguf_header(converted)
    fixed = converted.stat().st_size - matrix_bytes(converted)
    other = sum(tensor.nbytes for tensor in header.tensors) - matrix_bytes(converted)
    budget = Budget(parameters, fixed, other, target_bpw, max_bytes)
    return write_allocation(Path(sensitivity), Path(out), CHOICES, budget)


def pack_codes(
    model: str, base: str, codes: str, out: str, scheme: str, lineage: dict[str, str], context_length: int | None
) -> dict[str, Any]:
    """Put our codes into the base file's place."""
    artifact = f"{lineage['name']}-{scheme}.gguf"
    carry(Path(base) / BASE, Path(model), Path(codes), Path(out) / artifact)
    copy_tables(Path(codes), Path(out))
    return _finish(Path(model), Path(out), artifact, scheme, lineage, context_length)


def _finish(
    model: Path, folder: Path, artifact: str, scheme: str, lineage: dict[str, str], context_length: int | None
) -> dict[str, Any]:
    """Write lineage and Modelfile beside the artifact, and describe it."""
    read = model_of(model, lineage)
    write_lineage(read, lineage, folder)
    weights = read_weights(folder / artifact, scheme)
    if read.is_decoder:
        (folder / "Modelfile").write_text(_modelfile(artifact, model, read, context_length), encoding="utf-8")
    hidden, vocabulary = read.geometry.hidden_size, read.geometry.vocabulary
    output, width = ("logits", vocabulary) if read.is_decoder else ("last_hidden_state", hidden)
    inputs = (Port("input_ids", "int32", ("sequence",)),)
    outputs: tuple[Port, ...] = (Port(output, "float32", ("sequence", width)),)
    if read.sentence is not None:
        outputs += (Port(OUTPUT, "float32", (read.sentence.width,)),)
    return asdict(
        Lowered(
            runtime="llamacpp",
            graphs=(Graph("main", (artifact,), inputs, outputs),),
            shapes=FixedShapes(
                context_length=context_length, longest_sequence=longest_context(read, same_up_to(read, WINDOWS))
            ),
            weights=weights
            if read.is_decoder
            else StoredWeights(weights.effective_bits_per_weight, weights.types, weights.deviations),
        )
    )


def _quantize(base: Path, target: Path, scheme: str, imatrix: Path | None) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[scheme]
    params.nthread = os.cpu_count() or 1
    if _head_falls_back(base, scheme):
        # llama.cpp would want Q6_K for the head, find that its rows do not divide by 256, and take Q8_0 in its place.
        # Asking for Q8_0 makes the same file without a fallback: the choice is ours and is reported as a mixture.
        params.output_tensor_type = _GGML_TYPE_Q8_0
    kept = set_imatrix(params, imatrix) if imatrix else []
    code = llama_cpp.llama_model_quantize(str(base).encode(), str(target).encode(), ctypes.byref(params))
    del kept
    if code != 0 or not target.is_file():
        raise UnusableInput(
            f"llama.cpp could not quantize to {scheme} (code {code}). Either the disk is full or a tensor's shape does not "
            "suit the type; run with --debug to see its messages."
        )


def _head_falls_back(base: Path, scheme: str) -> bool:
    """Whether a block-32 scheme would meet a head whose rows do not divide by 256."""
    found = find_scheme(scheme)
    if found is None or found.block != 32 or scheme == "Q8_0":
        return False
    tensors = {tensor.name: tensor for tensor in read_gguf_header(base).tensors}
    head = tensors.get("output.weight") or tensors.get("token_embd.weight")
    return head is not None and head.row % _K_BLOCK != 0


def read_weights(artifact: Path, scheme: str) -> StoredWeights:
    """Types, effective bits and deviations of a GGUF file.

    `decode_read_bytes` leaves out the input embedding, of which one row is read, unless it is the head too.
    """
    tensors = read_gguf_header(artifact).tensors
    types: dict[str, int] = {}
    deviations = []
    for tensor in tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.elements
        if len(tensor.shape) > 1 and (deviation := _deviation(tensor.name, tensor.type, tensor.row, scheme)):
            deviations.append(deviation)
    total_bytes = sum(tensor.nbytes for tensor in tensors)
    untied = any(tensor.name == "output.weight" for tensor in tensors)
    unread = sum(tensor.nbytes for tensor in tensors if tensor.name == "token_embd.weight" and untied)
    bits = 8 * total_bytes / sum(types.values())
    return StoredWeights(round(bits, 4), dict(sorted(types.items())), tuple(deviations), total_bytes - unread)


def _deviation(tensor: str, stored: str, row: int, scheme: str) -> Deviation | None:
    """How a matrix differs from the scheme. llama.cpp's K mixtures keep some tensors at another K type by intent."""
    codes = find_scheme(scheme)
    if codes is not None and codes.method:
        if not codes.mixed and stored == CONTAINERS[codes.code_bits, codes.symmetric][0]:
            return None
        if codes.mixed and stored in (kind for kind, _ in CONTAINERS.values()):
            return None
        return Deviation(tensor, stored, "chosen for this tensor by the quantization", forced=False)
    base = scheme.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    if stored == base:
        return None
    found = find_scheme(scheme)
    block = found.block if found else 0
    if stored in ("F32", "F16", "BF16") and (not block or row % block == 0):
        return Deviation(tensor, stored, "kept in float by llama.cpp", forced=False)
    if block and row % block != 0 and not stored.endswith("_K"):
        return Deviation(tensor, stored, f"rows of {row} do not divide by {block}", forced=True)
    return Deviation(tensor, stored, f"{scheme} is a mixture and keeps this tensor so", forced=False)


def _modelfile(artifact: str, folder: Path, model: Model, context_length: int | None) -> str:
    """An Ollama Modelfile. Ollama takes the chat template from the GGUF file's metadata."""
    lines = [f"FROM ./{artifact}"]
    lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in _ends_of_text(folder)]
    trained = model.geometry.context_length
    if context_length or trained:
        lines.append(f"PARAMETER num_ctx {context_length or min(trained or 0, _OLLAMA_CONTEXT)}")
    if model.licence:
        lines.append(f'LICENSE """{model.licence}"""')
    return "\n".join(lines) + "\n"


def _ends_of_text(folder: Path) -> list[str]:
    """The tokens that end a text: the tokenizer's own first, then others that the model names."""
    path = folder / "tokenizer_config.json"
    token = read_object(path).get("eos_token") if path.is_file() else None
    own = token.get("content") if isinstance(token, dict) else token
    file = folder / "tokenizer.json"
    added = (read_object(file).get("added_tokens") or []) if file.is_file() else []
    named = {each["id"]: each["content"] for each in added}
    ends = [named[end] for end in sorted(end_of_text_ids(folder)) if end in named]
    return list(dict.fromkeys([*([own] if own else []), *ends]))


TARGET = Target(
    name=NAME,
    extra="gguf",
    schemes=SCHEMES,
    tasks=(*tasks_of(GENERATION), "feature-extraction"),
    plan=plan,
    refuse=refuse,
    foresee=foresee,
    nbytes=nbytes,
    options=(IMATRIX,),
)
