"""neuron: AWS Inferentia2 and Trainium. HLO modules and weights by rank, which AWS's closed compiler makes NEFFs of."""

from __future__ import annotations

import re
from typing import Any

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.networks.families import refuse_network
from compiler.recipe import Recipe, lengths_up_to
from compiler.size import matrices_of, needed_tensors, processor_bytes, vector_weights
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, GENERATION, tasks_of

NAME = "neuron"
SCHEMES = ("fp32", "bf16")
DEVICES = ("inf2", "trn1", "trn2")
# Cores that can share a language model. Trainium's runtime takes 1, 2, 8, 16 or multiples of 32 (optimum-neuron#619); an
# Inferentia2 machine has 24 at most.
_RANKS = {"inf2": (2, 3, 4, 6, 8, 12, 24), "trn1": (2, 8, 16, 32), "trn2": (2, 8, 16, 32)}
_ALL_RANKS = sorted({each for ranks in _RANKS.values() for each in ranks})
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_BYTES = {"fp32": 4, "bf16": 2}
_LONGEST_CONTEXT = 2048
_PREFILL, _PREFILLS = 128, (32, 128, 512)
# Of an operator in a module, and how many a layer has; from modules of SmolLM2 and MiniLM.
_OPERATOR_BYTES, _OPERATORS_A_LAYER = 170, 120


def ranks_of(recipe: Recipe) -> int:
    """Cores that share the model: N of `+tpN`."""
    found = [int(option[2:]) for option in recipe.options if re.fullmatch(r"tp\d+", option)]
    return max(found, default=1)


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: a family that no re-authored network covers, lengths beyond the model's, heads that cores cannot share."""
    longest, shapes = model.geometry.context_length, recipe.shapes
    asked = shapes.context_length if model.is_decoder else shapes.sequence_length
    if longest and asked and asked > longest and "lengths" not in recipe.options and model.takes == "text":
        return f"the model takes at most {longest} tokens, the recipe asks for {asked}."
    if "lengths" in recipe.options and model.takes != "text":
        return "+lengths is for texts, and pictures have one size."
    if sum(option.startswith("tp") for option in recipe.options) > 1:
        return "it is shared among one number of cores; give one +tp."
    if model.is_decoder and shapes.batch != 1:
        return f"language models are lowered for one text at a time, and the recipe asks for {shapes.batch}."
    return refuse_network(model) or _refuse_ranks(model, ranks_of(recipe), recipe.variant or DEVICES[0])


def _refuse_ranks(model: Model, ranks: int, device: str) -> str | None:
    if ranks == 1:
        return None
    if not model.is_decoder:
        return f"+tp{ranks} is for language models; an encoder fits one core."
    config = model.config
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    wide = config.get("intermediate_size")
    kv_heads = kv_heads or heads
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(wide, int)):
        return "its config.json does not tell how many heads it has."
    possible = [each for each in _RANKS[device] if _shareable(heads, kv_heads, wide, each)]
    if ranks in possible:
        return None
    told = ", ".join(f"+tp{each}" for each in possible) or "one core alone"
    if ranks not in _RANKS[device]:
        return f"{device} takes {', '.join(map(str, _RANKS[device]))} cores at once, not {ranks}. What can: {told}."
    return (
        f"{ranks} cores cannot share its {heads} heads of queries, {kv_heads} of keys and {wide} channels between the layers "
        f"evenly. What can: {told}."
    )


def _shareable(heads: int, kv_heads: int, wide: int, ranks: int) -> bool:
    return heads % ranks == 0 and wide % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def context_of(model: Model, recipe: Recipe) -> int:
    """Positions of the cache: what is asked for, else what the model was trained for up to a limit."""
    trained = model.geometry.context_length or _LONGEST_CONTEXT
    return recipe.shapes.context_length or min(trained, _LONGEST_CONTEXT)


def _prefills(context: int, several: bool) -> list[int]:
    """Tokens at a time, each of which must divide the context: the last ones would be written beyond its end.

    With `several` a short prompt goes through a graph of its size, and a long one in fewer turns.
    """
    one = next(size for size in (_PREFILL >> n for n in range(_PREFILL.bit_length())) if context % size == 0)
    more = [size for size in _PREFILLS if context % size == 0 and size <= context] if several else []
    return sorted({one, *more})


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes: weights of each rank, rotary tables, modules, tokenizer."""
    each, ranks = _BYTES[recipe.scheme.name], ranks_of(recipe)
    matrices = matrices_of(model) if model.is_decoder else ()
    cut = sum(matrix.elements for matrix in matrices if matrix.place not in ("embedding", "head"))
    tables = sum(matrix.elements for matrix in matrices if matrix.place == "embedding")
    head = sum(matrix.elements for matrix in matrices if matrix.place == "head") or tables
    layers = model.config.get("num_hidden_layers") or 1
    prefills = _prefills(context_of(model, recipe), "lengths" in recipe.options) if model.is_decoder else []
    graphs = 1 + len(prefills) if model.is_decoder else len(_lengths(model, recipe))
    modules = graphs * layers * _OPERATORS_A_LAYER * _OPERATOR_BYTES + processor_bytes(model)
    if not model.is_decoder:
        return sum(each * tensor.elements for tensor in needed_tensors(model)) + modules
    heads_shared = ranks > 1 and model.geometry.vocabulary % ranks == 0
    rotary = 2 * 4 * context_of(model, recipe) * model.geometry.head_dim
    held = each * (cut + ranks * tables + (head if heads_shared else ranks * head))
    return held + ranks * (4 * vector_weights(model) + rotary) + modules


def _lengths(model: Model, recipe: Recipe) -> list[int]:
    if "lengths" in recipe.options:
        return list(lengths_up_to(model.geometry.context_length))
    return [recipe.shapes.sequence_length]


def plan(model: Model, recipe: Recipe) -> Stage:
    """One stage that lowers, and holds what comes of it to what the compiler takes."""
    arguments: dict[str, Any] = {
        "dtype": _DTYPES[recipe.scheme.name],
        "device": recipe.variant or DEVICES[0],
        "lineage": lineage_of(model, recipe),
    }
    if model.is_decoder:
        context = context_of(model, recipe)
        prefills = _prefills(context, "lengths" in recipe.options)
        arguments |= {"context_length": context, "prefills": prefills, "ranks": ranks_of(recipe)}
        function = "targets.neuron.lower:lower_decoder"
    else:
        arguments |= {"sequence_lengths": _lengths(model, recipe), "batch": recipe.shapes.batch}
        function = "targets.neuron.lower:lower_encoder"
    tools = ("jax", "jaxlib", "torch", "numpy", "transformers")
    return Stage("lower to HLO", function, arguments, tools, ensures=("*.hlo_module.pb", "weights/*.safetensors"))


TARGET = Target(
    name=NAME,
    extra="neuron",
    schemes=SCHEMES,
    tasks=(*tasks_of(GENERATION), *tasks_of(ENCODING)),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
    # +lengths: an encoder takes texts of several lengths, and a language model prompts. +tpN: N cores share a language model.
    options=("lengths", *(f"tp{ranks}" for ranks in _ALL_RANKS)),
    variants=DEVICES,
    finish="targets.neuron.finish:finish",
    finishes_here="targets.neuron.finish:is_here",
    spread={f"tp{ranks}": ranks for ranks in _ALL_RANKS},
)
