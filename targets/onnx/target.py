"""onnx: ONNX Runtime's container. Decoders become a GenAI folder, encoders one `model.onnx`."""

from __future__ import annotations

from typing import Any

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.quantize.plan import CODES, plan_allocation, plan_codes, refuse_rows
from compiler.recipe import Recipe, parse_recipe
from compiler.scheme import CODE_SCHEMES, MIXED
from compiler.stages.stage import Stage
from compiler.target import Target, refuse_window
from compiler.task import ENCODING, GENERATION, tasks_of
from targets.onnx.codes import CONTAINERS
from targets.onnx.sizes import nbytes
from targets.onnx.windows import same_in_genai

NAME = "onnx"
# The file that the graph is in.
GRAPH = "model.onnx"
_OURS = tuple(
    scheme.name for scheme in CODE_SCHEMES if (scheme.code_bits, scheme.symmetric) in CONTAINERS and scheme.block
)
SCHEMES = ("fp32", "fp16", "int8", *_OURS, MIXED.name)

# Architectures of onnxruntime_genai.models.builder (create_model) whose packages are plain text decoders.
DECODERS = (
    "ChatGLMForConditionalGeneration", "ChatGLMModel", "Ernie4_5ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "NemotronForCausalLM",
    "OlmoForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
)  # fmt: skip
# What ONNX Runtime's GroupQueryAttention asks of head_size where it rotates (group_query_attention_helper.h).
_HEAD_STEP = 8
# GenAI's builder rounds to these itself.
_BUILDER_SCHEMES = ("fp32", "fp16", "int8", "int4-rtn-g32", "int4-rtn-g64", "int4-rtn-g128")
_ENCODER_MODEL_TYPES = (
    "albert", "bert", "camembert", "deit", "distilbert", "electra", "roberta", "vit", "xlm-roberta",
)  # fmt: skip


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an architecture that neither the GenAI builder nor the encoder export takes, or rows that do not divide."""
    if model.kind == GENERATION:
        if model.architecture not in DECODERS:
            return (
                f"ONNX Runtime GenAI's builder does not take the architecture {model.architecture}. It takes: "
                f"{', '.join(DECODERS)}."
            )
        if (width := model.geometry.head_dim) % _HEAD_STEP:
            return (
                f"its heads have {width} values, and ONNX Runtime's GroupQueryAttention takes head sizes that {_HEAD_STEP} "
                "divides (head_size)."
            )
        return refuse_rows(model, recipe) or refuse_window(model, recipe, "ONNX Runtime GenAI", same_in_genai(model))
    if model.config.get("model_type") not in _ENCODER_MODEL_TYPES:
        return (
            f"the encoder export takes the model types {', '.join(_ENCODER_MODEL_TYPES)}, "
            f"not {model.config.get('model_type')}."
        )
    return refuse_rows(model, recipe)


def plan(model: Model, recipe: Recipe) -> Stage:
    """One stage for a decoder of the builder's; else export (shared), then store, or carry codes."""
    scheme = recipe.scheme.name
    arguments: dict[str, Any] = {"scheme": scheme, "lineage": lineage_of(model, recipe)}
    if model.kind == GENERATION:
        arguments["context_length"] = recipe.shapes.context_length
        if scheme in _BUILDER_SCHEMES and not _says_more(recipe):
            return _plan_builder(scheme, arguments)
        exported = {
            "scheme": "fp32",
            "context_length": None,
            "lineage": lineage_of(model, parse_recipe("onnx:fp32", (NAME,))),
        }
        base = _plan_builder("fp32", exported)
        mixed = recipe.scheme.mixed
        allocation = plan_allocation(model, recipe, "targets.onnx.decoder:allocate", base) if mixed else None
        inputs = {"base": base, "codes": plan_codes(model, recipe, allocation)}
        return _plan_carry(scheme, "targets.onnx.decoder:pack_codes", arguments, inputs)
    export = Stage(
        "export to ONNX",
        "targets.onnx.encoder:export",
        {"task": model.task},
        ("torch", "onnx", "onnx-ir", "onnxscript", "transformers"),
        ensures=(GRAPH,),
    )
    if recipe.scheme.method:
        inputs = {"base": export, "codes": plan_codes(model, recipe)}
        return _plan_carry(scheme, "targets.onnx.encoder:pack_codes", arguments, inputs)
    tools, inputs = ("onnxruntime", "onnx"), {"base": export}
    requires = {"base": (GRAPH,)}
    return Stage(f"pack ONNX {scheme}", "targets.onnx.encoder:pack", arguments, tools, inputs, requires, (GRAPH,))


def _plan_carry(scheme: str, function: str, arguments: dict[str, Any], inputs: dict[str, Stage]) -> Stage:
    requires = {"base": (GRAPH,), "codes": (CODES,)}
    label, tools = f"carry {scheme} to ONNX", ("onnx", "numpy")
    return Stage(label, function, arguments, tools, inputs, requires, (GRAPH,))


def _plan_builder(scheme: str, arguments: dict[str, Any]) -> Stage:
    tools = ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "torch", "transformers", "numpy")
    label, ensures = f"build {scheme} with GenAI", (GRAPH, "genai_config.json")
    # The builder stamps the commit of whatever repository it is installed within; without one it takes its wheel's own.
    without_git = {"GIT_DIR": "/dev/null"}
    return Stage(label, "targets.onnx.decoder:build", arguments, tools, ensures=ensures, environment=without_git)


def _says_more(recipe: Recipe) -> bool:
    """Whether the recipe asks for what GenAI's builder cannot: a head, an embedding, groups or scales of its own."""
    settings = recipe.quantization
    return (
        (settings.head, settings.embedding) != ("auto", "auto") or settings.smaller_groups or settings.portable_scales
    )


TARGET = Target(
    name=NAME,
    extra="onnx",
    schemes=SCHEMES,
    tasks=(*tasks_of(GENERATION), *tasks_of(ENCODING)),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
)
