"""onnx: ONNX Runtime's container. Decoders become a GenAI folder, encoders one `model.onnx`."""

from __future__ import annotations

from typing import Any

from compiler.lineage import origin_of
from compiler.model import ENCODER_TASKS, TEXT_GENERATION, Model
from compiler.quantize.plan import plan_allocation, plan_codes, refuse_rows
from compiler.recipe import Recipe, parse_recipe
from compiler.scheme import CODE_SCHEMES, MIXED
from compiler.target import Stage, refuse_window
from targets.onnx.codes import CONTAINERS

NAME = "onnx"
EXTRA = "onnx"
_OURS = tuple(
    scheme.name for scheme in CODE_SCHEMES if (scheme.code_bits, scheme.symmetric) in CONTAINERS and scheme.block
)
SCHEMES = ("fp32", "fp16", "int8", *_OURS, MIXED.name)
OPTIONS: tuple[str, ...] = ()
VARIANTS: tuple[str, ...] = ()
ENGINES: tuple[str, ...] = ()

# Architectures of onnxruntime_genai.models.builder (create_model) whose packages are plain text decoders.
DECODERS = (
    "ChatGLMForConditionalGeneration", "ChatGLMModel", "Ernie4_5ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "NemotronForCausalLM",
    "OlmoForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
)  # fmt: skip
# GenAI's builder rounds to these itself.
_BUILDER_SCHEMES = ("fp32", "fp16", "int8", "int4-rtn-g32", "int4-rtn-g64", "int4-rtn-g128")
_ENCODER_MODEL_TYPES = (
    "albert", "bert", "camembert", "deit", "distilbert", "electra", "roberta", "vit", "xlm-roberta",
)  # fmt: skip


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an architecture that neither the GenAI builder nor the encoder export takes, or a scheme of the other kind."""
    if model.task == TEXT_GENERATION:
        if model.architecture not in DECODERS:
            return (
                f"ONNX Runtime GenAI's builder does not take the architecture {model.architecture}. It takes: "
                f"{', '.join(DECODERS)}."
            )
        return refuse_rows(model, recipe) or refuse_window(model, recipe)
    if model.task not in ENCODER_TASKS:
        return f"the task {model.task} is not one of {', '.join((TEXT_GENERATION, *ENCODER_TASKS))}."
    if model.config.get("model_type") not in _ENCODER_MODEL_TYPES:
        return (
            f"the encoder export takes the model types {', '.join(_ENCODER_MODEL_TYPES)}, "
            f"not {model.config.get('model_type')}."
        )
    return refuse_rows(model, recipe)


def plan(model: Model, recipe: Recipe) -> Stage:
    """One stage for a decoder of the builder's; else export (shared), then store, or carry codes."""
    scheme = recipe.scheme.name
    arguments: dict[str, Any] = {"scheme": scheme, "origin": origin_of(model, recipe)}
    if model.task == TEXT_GENERATION:
        arguments["context_length"] = recipe.shapes.context_length
        if scheme in _BUILDER_SCHEMES and not _says_more(recipe):
            return _plan_builder(scheme, arguments)
        exported = {
            "scheme": "fp32",
            "context_length": None,
            "origin": origin_of(model, parse_recipe("onnx:fp32", (NAME,))),
        }
        base = _plan_builder("fp32", exported)
        mixed = recipe.scheme.mixed
        allocation = plan_allocation(model, recipe, "targets.onnx.decoder:allocate", base) if mixed else None
        inputs = (base, plan_codes(model, recipe, allocation))
        return Stage(f"carry {scheme} to ONNX", "targets.onnx.decoder:pack_codes", arguments, ("onnx", "numpy"), inputs)
    export = Stage(
        "export to ONNX",
        "targets.onnx.encoder:export",
        {"task": model.task},
        ("torch", "onnx", "onnx-ir", "onnxscript", "transformers"),
    )
    if recipe.scheme.method:
        inputs = (export, plan_codes(model, recipe))
        return Stage(f"carry {scheme} to ONNX", "targets.onnx.encoder:pack_codes", arguments, ("onnx", "numpy"), inputs)
    tools = ("onnxruntime", "onnx")
    return Stage(f"pack ONNX {scheme}", "targets.onnx.encoder:pack", arguments, tools, (export,))


def _plan_builder(scheme: str, arguments: dict[str, Any]) -> Stage:
    tools = ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "torch", "transformers")
    return Stage(f"build {scheme} with GenAI", "targets.onnx.decoder:build", arguments, tools)


def _says_more(recipe: Recipe) -> bool:
    """Whether the recipe asks for what GenAI's builder cannot: a head, an embedding or groups of its own."""
    settings = recipe.quantization
    return (settings.head, settings.embedding) != ("auto", "auto") or settings.smaller_groups
