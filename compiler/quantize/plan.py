"""The stages that find a model's codes, and what can be told before any of them runs. Imports no torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from compiler.formats.codes import QuantizedInfo, list_quantized
from compiler.model import Model
from compiler.quantization import Quantization, Storage
from compiler.quantize.allocation import TABLE
from compiler.quantize.solve.grid import fitting_group
from compiler.recipe import Recipe
from compiler.stages.stage import Stage
from compiler.task import find_task

# A fixed threshold lets glibc give large activations back to the system as soon as they are freed.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
_TOOLS = ("torch", "transformers", "numpy", "safetensors")
PALETTE_ROWS = 8
# Files that stages here leave.
SAMPLES = "samples.npy"
ARRAYS = "samples.npz"
CODES = "codes-*.safetensors"
SENSITIVITY = "sensitivity.json"
IN_BLOCK = re.compile(r"\.\d+\..*weight$")


def plan_codes(
    model: Model,
    recipe: Recipe,
    allocation: Stage | None = None,
    rows_per_palette: int = PALETTE_ROWS,
    *,
    positive_scales: bool = False,
    tables_by_row: bool = False,
) -> Stage:
    """The stage whose folder holds `codes-*.safetensors` of `model` by `recipe`; equal for all targets that want the same.

    For a mixed scheme `allocation` is the target's stage that writes `allocation.json`. `rows_per_palette` is how many rows
    the container lets share a palette, 0 for all. Palettes are fitted to the weights alone unless a calibration is given.
    `positive_scales` is for runtimes that take no negative ones, `tables_by_row` for those whose 8-bit tables have no blocks;
    where scales are to be portable, both hold for every target, which so shares the stage.
    """
    scheme, settings = recipe.scheme, replace(recipe.quantization, portable_scales=False)
    portable = recipe.quantization.portable_scales
    if own_codes(model):
        tables = Quantization(head=settings.head, embedding=settings.embedding).full()
        function, own = "compiler.quantize.stage:take_over", {"task": model.task, "quantization": tables}
        return Stage("take over the codes", function, own, _TOOLS, ensures=(CODES,), environment=_ENVIRONMENT)
    inputs: dict[str, Stage] = {}
    method = scheme.method
    if method == "lut":
        method = "gptq" if settings.calibration.is_given else "rtn"
    if method == "gptq":
        inputs = {"samples": plan_samples(model, settings), **({"allocation": allocation} if allocation else {})}
    arguments = {
        "task": model.task,
        "method": method,
        "bits": scheme.code_bits,
        "group_size": scheme.block,
        "symmetric": scheme.symmetric,
        "rows_per_palette": rows_per_palette if scheme.method == "lut" else None,
        "positive_scales": positive_scales or portable,
        "tables_by_row": tables_by_row or portable,
        "quantization": _relevant(settings, method),
    }
    label = f"quantize to {scheme.name}"
    requires = {name: {"samples": (SAMPLES,), "allocation": (TABLE,)}[name] for name in inputs}
    function = "compiler.quantize.stage:quantize"
    return Stage(label, function, arguments, _TOOLS, inputs, requires, (CODES,), environment=_ENVIRONMENT)


def plan_allocation(model: Model, recipe: Recipe, function: str, base: Stage) -> Stage:
    """The stage that gives each layer its bits: the target's `function`, with the folders `base` and `sensitivity`.

    It is called with `parameters`, `target_bpw` and `max_bytes` beside.
    """
    settings = recipe.quantization
    budget = {"parameters": model.parameters, "target_bpw": settings.target_bpw, "max_bytes": settings.max_bytes}
    inputs = {"base": base, "sensitivity": _plan_sensitivity(model, recipe)}
    return Stage("allocate bits", function, budget, ("numpy",), inputs, {"sensitivity": (SENSITIVITY,)}, (TABLE,))


def _plan_sensitivity(model: Model, recipe: Recipe) -> Stage:
    """The stage that measures what rounding each layer costs."""
    settings = recipe.quantization
    relevant = Quantization(settings.calibration, settings.head, settings.embedding).full()
    arguments = {"task": model.task, "group_size": recipe.scheme.block, "quantization": relevant}
    return Stage(
        "measure layers",
        "compiler.quantize.calibrate.sensitivity:measure",
        arguments,
        _TOOLS,
        {"samples": plan_samples(model, settings)},
        {"samples": (SAMPLES,)},
        (SENSITIVITY,),
        environment=_ENVIRONMENT,
    )


def plan_samples(model: Model, settings: Quantization) -> Stage:
    """The stage that writes the calibration samples."""
    arguments = {"task": model.task, "calibration": asdict(settings.calibration)}
    tools, task = (*_TOOLS, "tokenizers", "pillow"), find_task(model.task)
    file = ARRAYS if task.takes == "arrays" else SAMPLES
    return Stage("calibration samples", task.samples, arguments, tools, ensures=(file,))


def _relevant(settings: Quantization, method: str) -> dict[str, object]:
    """Of the settings, what changes the codes: rounding to nearest looks at no samples."""
    if method == "gptq":
        return settings.full()
    return Quantization(head=settings.head, embedding=settings.embedding, smaller_groups=settings.smaller_groups).full()


def _hint(row: int, block: int) -> str:
    fitting = fitting_group(row, block)
    return f" --smaller-groups gives such matrices groups of {fitting}." if fitting < block else ""


def copy_tables(codes: Path, out: Path) -> None:
    """Copy the tables of layers from the folder of codes into a package."""
    for name in ("layers.json", TABLE):
        if (codes / name).is_file():
            shutil.copyfile(codes / name, out / name)


def own_codes(model: Model) -> dict[str, QuantizedInfo]:
    """The codes that the model itself came with (a GPTQ checkpoint); empty for others."""
    return list_quantized(model.folder)


def with_tables_kept(model: Model, recipe: Recipe) -> Recipe:
    """For a container that has no place for a table's codes: a model with codes of its own keeps its tables as they are."""
    settings = recipe.quantization
    if not own_codes(model):
        return recipe
    head: Storage = "kept" if settings.head == "auto" else settings.head
    embedding: Storage = "kept" if settings.embedding == "auto" else settings.embedding
    return replace(recipe, quantization=replace(settings, head=head, embedding=embedding))


def _own_scheme(entry: QuantizedInfo) -> str:
    return f"int{entry.bits}-gptq-g{entry.group_size}{'' if entry.symmetric else '-asym'}"


def experts_of(model: Model) -> int:
    """How many experts a layer of the model has; 0 where its layers are not made of experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return max((model.config[name] for name in names if isinstance(model.config.get(name), int)), default=0)


def rows_in_blocks(model: Model) -> Iterator[tuple[str, int]]:
    """Name and weights of a row of every matrix inside the model's blocks."""
    transposed = model.config.get("model_type") == "gpt2"
    for tensor in model.tensors:
        if len(tensor.shape) == 2 and IN_BLOCK.search(tensor.name):
            yield tensor.name, tensor.shape[0] if transposed else tensor.shape[1]


def _portable(recipe: Recipe) -> bool:
    scheme = recipe.scheme
    return scheme.method in ("rtn", "gptq") and scheme.symmetric and scheme.code_bits in (4, 8)


def refuse_rows(model: Model, recipe: Recipe, *, takes_act_order: bool = False) -> str | None:
    """Why the scheme does not suit the model's matrices, or the codes that it came with; None when it does.

    `takes_act_order` tells whether the container can say which group each column belongs to.
    """
    if recipe.scheme.method and (experts := experts_of(model)):
        return (
            f"{model.name} has {experts} experts a layer, and edgec's own schemes do not quantize the matrices of experts. "
            "Use a float scheme."
        )
    # The classifier's own matrix stays a float in every scheme.
    matrices = [tensor for tensor in model.tensors if len(tensor.shape) == 2 and "classifier" not in tensor.name]
    if recipe.scheme.method and model.takes == "image" and not matrices:
        return f"{model.name} consists of convolutions, and edgec quantizes matrices. Use a float scheme."
    block = recipe.scheme.block
    if recipe.scheme.mixed and not recipe.quantization.has_budget:
        return "a mixed scheme needs a budget: give --target-bpw or --max-bytes."
    if recipe.scheme.mixed and not model.is_decoder:
        return (
            "a mixed scheme weighs layers by KL divergence, which only language models have; use one with equal bits."
        )
    if recipe.quantization.portable_scales and recipe.scheme.method and not _portable(recipe):
        return (
            f"{recipe.scheme.name} is not for every target; --portable-scales goes with symmetric codes of 4 or 8 bits, such "
            "as int4-gptq-g32."
        )
    if recipe.quantization.portable_scales and recipe.scheme.method and own_codes(model):
        return "it comes with codes and scales of its own, which stay as they are; drop --portable-scales."
    for entry in own_codes(model).values() if recipe.scheme.method else ():
        if "group_of_column" in entry.parts and not takes_act_order:
            return (
                f"its codes were made with act-order (desc_act), and groups of {entry.name} are not neighbouring columns, "
                f"which this container cannot hold. Use gptq:{_own_scheme(entry)}, or a float scheme."
            )
        wanted = (recipe.scheme.code_bits, recipe.scheme.block or entry.columns, recipe.scheme.symmetric)
        has = (entry.bits, entry.group_size, entry.symmetric)
        if wanted != has:
            return f"it comes with codes of its own, which are {_own_scheme(entry)}; use that scheme, or a float one."
    for name, row in rows_in_blocks(model) if block else ():
        fitting = fitting_group(row, block) if recipe.quantization.smaller_groups else block
        if row % fitting:
            return f"rows of {name} have {row} weights, which groups of {block} do not divide.{_hint(row, block)}"
    return None
