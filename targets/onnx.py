"""onnx: ONNX Runtime's container. Decoders become a GenAI folder, encoders one `model.onnx`."""

from __future__ import annotations

from compiler.lineage import origin_of
from compiler.model import ENCODER_TASKS, TEXT_GENERATION, Model
from compiler.recipe import Recipe
from compiler.target import Stage

NAME = "onnx"
EXTRA = "onnx"
SCHEMES = ("fp32", "fp16", "int8", "int4-rtn-g32", "int4-rtn-g64", "int4-rtn-g128")
OPTIONS: tuple[str, ...] = ()
VARIANTS: tuple[str, ...] = ()

# Architectures of onnxruntime_genai.models.builder (create_model) whose packages are plain text decoders.
DECODERS = (
    "ChatGLMForConditionalGeneration", "ChatGLMModel", "Ernie4_5_ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "NemotronForCausalLM",
    "OlmoForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
)  # fmt: skip
_DECODER_SCHEMES = ("fp32", "fp16", "int8", "int4-rtn-g32", "int4-rtn-g64", "int4-rtn-g128")
_ENCODER_SCHEMES = ("fp32", "fp16", "int8")
_ENCODER_MODEL_TYPES = (
    "albert", "bert", "camembert", "deit", "distilbert", "electra", "mpnet", "roberta", "vit", "xlm-roberta",
)  # fmt: skip


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an architecture that neither the GenAI builder nor the encoder export takes, or a scheme of the other kind."""
    if model.task == TEXT_GENERATION:
        if model.architecture not in DECODERS:
            return (
                f"ONNX Runtime GenAI's builder does not take the architecture {model.architecture}. It takes: "
                f"{', '.join(DECODERS)}."
            )
        if recipe.scheme.name not in _DECODER_SCHEMES:
            return f"for language models the schemes are {', '.join(_DECODER_SCHEMES)}."
        return _refuse_blocks(model, recipe)
    if model.task not in ENCODER_TASKS:
        return f"the task {model.task} is not one of {', '.join((TEXT_GENERATION, *ENCODER_TASKS))}."
    if model.config.get("model_type") not in _ENCODER_MODEL_TYPES:
        return (
            f"the encoder export takes the model types {', '.join(_ENCODER_MODEL_TYPES)}, "
            f"not {model.config.get('model_type')}."
        )
    if recipe.scheme.name not in _ENCODER_SCHEMES:
        return f"for encoders the schemes are {', '.join(_ENCODER_SCHEMES)}."
    return None


def _refuse_blocks(model: Model, recipe: Recipe) -> str | None:
    block = recipe.scheme.block
    if block and model.geometry.hidden_size % block:
        return f"its rows of {model.geometry.hidden_size} do not divide by the group size {block}; use int4-rtn-g32."
    return None


def plan(model: Model, recipe: Recipe) -> Stage:
    """One stage for a decoder; export (shared), then quantize or convert, for an encoder."""
    scheme = recipe.scheme.name
    origin = origin_of(model, recipe)
    if model.task == TEXT_GENERATION:
        return Stage(
            f"build {scheme} with GenAI",
            "targets.onnx_decoder:build",
            {"scheme": scheme, "context_length": recipe.shapes.context_length, "origin": origin},
            ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "torch", "transformers"),
        )
    export = Stage(
        "export to ONNX",
        "targets.onnx_encoder:export",
        {"task": model.task},
        ("torch", "onnx", "onnxscript", "transformers"),
    )
    return Stage(
        f"pack ONNX {scheme}",
        "targets.onnx_encoder:pack",
        {"scheme": scheme, "origin": origin},
        ("onnxruntime", "onnx"),
        (export,),
    )
