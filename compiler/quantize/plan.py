"""The stages that find a model's codes, and what can be told before any of them runs. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import asdict

from compiler.model import Model
from compiler.quantize.quantized import Entry, list_quantized
from compiler.quantize.settings import Quantization
from compiler.recipe import Recipe
from compiler.target import Stage

# A fixed threshold lets glibc give large activations back to the system as soon as they are freed.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "16777216"}
_TOOLS = ("torch", "transformers", "numpy", "safetensors")
_IN_BLOCK = re.compile(r"\.\d+\..*weight$")


def plan_codes(model: Model, recipe: Recipe) -> Stage:
    """The stage whose folder holds `codes-*.safetensors` of `model` by `recipe`; equal for all targets that want the same."""
    scheme, settings = recipe.scheme, recipe.quantization
    if own_codes(model):
        return Stage("take over the codes", "compiler.quantize.stage:take_over", {}, ("numpy",))
    inputs: tuple[Stage, ...] = ()
    if scheme.method == "gptq":
        inputs = (_plan_samples(model, settings),)
    arguments = {
        "task": model.task,
        "method": scheme.method,
        "bits": scheme.code_bits,
        "group_size": scheme.block,
        "symmetric": scheme.symmetric,
        "quantization": _relevant(settings, scheme.method),
    }
    label = f"quantize to {scheme.name}"
    return Stage(label, "compiler.quantize.stage:quantize", arguments, _TOOLS, inputs, _ENVIRONMENT)


def _plan_samples(model: Model, settings: Quantization) -> Stage:
    arguments = {"task": model.task, "calibration": asdict(settings.calibration)}
    return Stage("calibration samples", "compiler.quantize.samples:write_samples", arguments, _TOOLS)


def _relevant(settings: Quantization, method: str) -> dict[str, object]:
    """Of the settings, what changes the codes: rounding to nearest looks at no samples."""
    if method == "gptq":
        return settings.full()
    return Quantization(head=settings.head, embedding=settings.embedding).full()


def own_codes(model: Model) -> dict[str, Entry]:
    """The codes that the model itself came with (a GPTQ checkpoint); empty for others."""
    return list_quantized(model.folder)


def refuse_rows(model: Model, recipe: Recipe) -> str | None:
    """Why the scheme does not suit the model's matrices, or the codes that it came with; None when it does."""
    block = recipe.scheme.block
    for entry in own_codes(model).values() if recipe.scheme.method else ():
        if "group_of_column" in entry.parts:
            return (
                f"its codes were made with act-order (desc_act), and groups of {entry.name} are not neighbouring columns, "
                "which only a GPTQ checkpoint can hold. Use a scheme that quantizes anew, such as gguf:Q4_K_M."
            )
        wanted = (recipe.scheme.code_bits, recipe.scheme.block or entry.columns, recipe.scheme.symmetric)
        has = (entry.bits, entry.group_size, entry.symmetric)
        if wanted != has:
            own = f"int{entry.bits}-gptq-g{entry.group_size}{'' if entry.symmetric else '-asym'}"
            return f"it comes with codes of its own, which are {own}; use that scheme, or a float one."
    for tensor in model.tensors:
        if block and len(tensor.shape) == 2 and _IN_BLOCK.search(tensor.name):
            row = tensor.shape[0] if model.config.get("model_type") == "gpt2" else tensor.shape[1]
            if row % block:
                return f"rows of {tensor.name} have {row} weights, which groups of {block} do not divide."
    return None
