"""How a sentence-transformers model makes one vector of a text: its modules behind the transformer, and what goes before.

`modules.json` lists the modules, each with a folder that has its `config.json`; `sentence_bert_config.json` is that of
the transformer; `config_sentence_transformers.json` has the prompts (https://sbert.net, "Creating Custom Models", and the
modules of sentence-transformers 2 to 6, which name the same things in two ways).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_json, read_object
from compiler.formats.safetensors import TensorInfo, list_tensors

OUTPUT = "sentence_embedding"
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"

# In the order in which several are joined.
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = tuple(_LEGACY.values())
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
_NO_LIMIT = 1_000_000  # Tokenizers without a limit tell 1e30.


# What every module of the library itself is called.
_OWN = "sentence_transformers."


@dataclass(frozen=True)
class Dense:
    """A dense layer behind the pooling: `activation(W x + b)`.

    Attributes:
        folder: where its weights lie within the model.
        inputs, outputs: its widths.
        bias: whether it has one.
        activation: the name of torch's module, one of `ACTIVATIONS`.
    """

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class SentenceVector:
    """How token vectors become one vector, in this order: pooling, dense layers, and length one.

    Attributes:
        pooling: what is made of the token vectors, one of `POOLINGS` each; several lie one after the other.
        dense: the layers behind it.
        normalized: whether the vector has length one.
        width: its values.
        max_tokens: tokens of a text that count, special tokens among them; None where the model sets no limit.
        lower_case: texts are put into lower case first.
        prompts: what is put before a text, by name.
        default_prompt: the name of the prompt that is used when none is named.
    """

    pooling: tuple[str, ...]
    dense: tuple[Dense, ...]
    normalized: bool
    width: int
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_sentence_vector(folder: Path, hidden_size: int) -> SentenceVector | None:
    """What the modules of a model say; None where it has none. Weights are looked up, not loaded.

    Raises:
        UnusableInput: a module, or a setting of one, is not known here: the vector would be another.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = read_json(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise UnusableInput(f"{MODULES} of {folder.name} is no list of modules. Download it again.")
    strange = [str(each.get("type", "")) for each in modules if not str(each.get("type", "")).startswith(_OWN)]
    if strange:
        raise UnusableInput(
            f"{MODULES} of {folder.name} names the module {strange[0]!r:.80}, which is code of the model's own, and edgec "
            "never runs such. Its vectors would be others."
        )
    named = [(str(each.get("type", "")).rpartition(".")[2], str(each.get("path", ""))) for each in modules]
    if not named or named[0] != ("Transformer", ""):
        raise UnusableInput(
            f"{MODULES} of {folder.name} begins with {named[0] if named else 'nothing'}, and only a Transformer in the folder "
            "itself is taken."
        )
    pooling: tuple[str, ...] = ()
    dense: list[Dense] = []
    width, normalized = hidden_size, False
    for kind, path in named[1:]:
        if not re.fullmatch(r"[0-9]+_[A-Za-z0-9_-]{1,60}", path):
            raise UnusableInput(f"{MODULES} of {folder.name} names the folder {path!r:.80}, which no module has.")
        if kind == "Dropout":
            continue
        if normalized or (kind == "Pooling") == bool(pooling) or kind not in ("Pooling", "Dense", "Normalize"):
            raise UnusableInput(
                f"{folder.name} makes its sentence vector by {' > '.join(name for name, _ in named)} ({MODULES}). edgec knows "
                "Transformer, Pooling, Dense and Normalize, in this order."
            )
        if kind == "Pooling":
            pooling = _pooling(folder, path, hidden_size)
            width *= len(pooling)
        elif kind == "Dense":
            dense.append(_dense(folder, path, width))
            width = dense[-1].outputs
        else:
            normalized = True
    if not pooling:
        raise UnusableInput(
            f"{folder.name} has no Pooling among its modules ({MODULES}), so it has no sentence vector."
        )
    limit, lower_case = _transformer(folder)
    prompts, default = _prompts(folder)
    return SentenceVector(pooling, tuple(dense), normalized, width, limit, lower_case, prompts, default)


def dense_tensors(folder: Path, layer: Dense) -> dict[str, TensorInfo]:
    """The tensors of a dense layer by `weight` and `bias`, held to its sizes.

    Raises:
        UnusableInput: one is missing, left over, or of another shape.
    """
    file = folder / layer.folder / "model.safetensors"
    if not file.is_file():
        raise UnusableInput(
            f"{folder.name} has no weights for its dense layer: {layer.folder}/model.safetensors is missing. Load the model "
            "with sentence-transformers where you trust it and save it again, which writes that file."
        )
    found = {info.name: info for info in list_tensors(file)}
    wanted = {"linear.weight": (layer.outputs, layer.inputs)} | (
        {"linear.bias": (layer.outputs,)} if layer.bias else {}
    )
    if {name: info.shape for name, info in found.items()} != wanted:
        raise UnusableInput(
            f"The tensors in {layer.folder} of {folder.name} are not those that its config.json tells, "
            f"{', '.join(f'{name} {list(shape)}' for name, shape in wanted.items())}."
        )
    return {name.removeprefix("linear."): replaced for name, replaced in found.items()}


def describe(vector: SentenceVector) -> str:
    """The steps in words."""
    steps = [" and ".join(vector.pooling) + " pooling"]
    steps += [f"dense {layer.inputs} to {layer.outputs} ({layer.activation})" for layer in vector.dense]
    return ", ".join([*steps, *(["length one"] if vector.normalized else [])])


def _pooling(folder: Path, path: str, hidden_size: int) -> tuple[str, ...]:
    where = f"{path}/config.json of {folder.name}"
    config = _config(folder, path)
    modes = config.get("pooling_mode") or [name for key, name in _LEGACY.items() if config.get(key)] or "mean"
    found = (modes,) if isinstance(modes, str) else tuple(modes) if isinstance(modes, list) else (modes,)
    if unknown := [mode for mode in found if mode not in POOLINGS]:
        raise UnusableInput(f"{where} names the pooling {unknown[0]!r:.40}. Known are {', '.join(POOLINGS)}.")
    if others := [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in _LEGACY
    ]:
        raise UnusableInput(f"{where} names the pooling {others[0]:.60}. Known are {', '.join(POOLINGS)}.")
    if config.get("include_prompt") is False:
        raise UnusableInput(
            f"{where} leaves the prompt out of the pooling (include_prompt), and no package of edgec can: it does not know "
            "where a prompt ends."
        )
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise UnusableInput(f"{where} pools vectors of {width!r:.20} values, and the model's have {hidden_size}.")
    return found


_DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function")
_DENSE_DEFAULTS = {"module_input_name": (OUTPUT,), "module_output_name": (OUTPUT, None), "use_residual": (False,)}


def _dense(folder: Path, path: str, width: int) -> Dense:
    config = _config(folder, path)
    where = f"{path}/config.json of {folder.name}"
    for key, value in config.items():
        if key not in _DENSE_KEYS and value not in _DENSE_DEFAULTS.get(key, ()):
            raise UnusableInput(
                f"{where}, a dense layer, has the setting {key} = {value!r:.40}, which edgec does not know."
            )
    activation = str(config.get("activation_function") or "Identity").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise UnusableInput(
            f"{where}, a dense layer, has the activation {activation:.40}, none of {', '.join(ACTIVATIONS)}."
        )
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if inputs != width or type(outputs) is not int or outputs < 1:
        raise UnusableInput(
            f"{where}, a dense layer, has {inputs!r:.20} inputs and {outputs!r:.20} outputs, and {width} values come in."
        )
    layer = Dense(path, width, outputs, bool(config.get("bias", True)), activation)
    dense_tensors(folder, layer)
    return layer


def _config(folder: Path, path: str) -> dict[str, Any]:
    file = folder / path / "config.json"
    if not file.is_file():
        raise UnusableInput(
            f"{MODULES} of {folder.name} names {path}, and {path}/config.json is missing. Download it again."
        )
    return read_object(file)


def _transformer(folder: Path) -> tuple[int | None, bool]:
    """Tokens of a text that count, and whether it is put into lower case."""
    files = sorted(folder.glob("sentence_*_config.json"))
    config = read_object(files[0]) if files else {}
    output = config.get("module_output_name", "token_embeddings")
    task = config.get("transformer_task", "feature-extraction")
    if output != "token_embeddings" or task != "feature-extraction":
        raise UnusableInput(
            f"{files[0].name} of {folder.name} takes {output!r:.40} of the transformer for {task!r:.40}, and only token "
            "vectors (feature-extraction) are taken."
        )
    limit = config.get("max_seq_length")
    if limit is None and (folder / "tokenizer_config.json").is_file():
        limit = read_object(folder / "tokenizer_config.json").get("model_max_length")
    known = int(limit) if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT else None
    return known, config.get("do_lower_case") is True


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """What is put before texts by name, and the name that counts when none is named."""
    config: Mapping[str, Any] = read_object(folder / PROMPTS) if (folder / PROMPTS).is_file() else {}
    told, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(told, dict) or not all(text is None or isinstance(text, str) for text in told.values()):
        raise UnusableInput(f"{PROMPTS} of {folder.name} has prompts that are no texts by name. Download it again.")
    prompts = {name: text for name, text in told.items() if text}
    if default is not None and (not isinstance(default, str) or default not in told):
        raise UnusableInput(f"{PROMPTS} of {folder.name} has the default prompt {default!r:.40}, and no text for it.")
    return prompts, default if default in prompts else None
