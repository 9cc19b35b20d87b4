"""Model: a Hugging Face model as it came. Config, tokenizer files, and tensors that are read lazily."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.config_types import require_types
from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.formats.safetensors import TensorInfo, find_tensors
from compiler.sentence import OUTPUT, SentenceVector, read_sentence_vector
from compiler.task import FUNCTION, GENERATION, TASKS, VECTORS, Input, find_task, task_of_architecture
from compiler.tensorflow_function import read_signature

# By their paths in the folder; all that a converter of ours may read.
MODEL_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config|"
    r"chat_template|modules|quantize_config|config_sentence_transformers|sentence_[\w-]+_config|"
    r"model\.safetensors\.index)\.json|\d+_[\w-]+/(config\.json|model\.safetensors)|"
    r"(additional_chat_templates/[\w.-]+|chat_template)\.jinja|merges\.txt|vocab\.txt|"
    r"(tokenizer|sentencepiece\.bpe|spiece)\.model|"
    r"function\.pb|[\w.-]*\.safetensors|README\.md|LICEN[CS]E[\w.-]*|NOTICE[\w.-]*"
)


@dataclass(frozen=True)
class Geometry:
    """The sizes that bytes and speed follow from; None where the model has no such thing."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int | None

    def kv_cache_bytes(self, tokens: int, bytes_per_element: int = 2) -> int:
        """Bytes of keys and values for `tokens` positions, batch 1, no sliding window."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * bytes_per_element


@dataclass(frozen=True)
class Model:
    """A Hugging Face model.

    Attributes:
        folder: where its files are.
        name: for people and for file names, e.g. `SmolLM2-135M-Instruct`.
        source: where it came from, without a path of this machine: `org/name@commit`, or the name.
        architecture: the class name in config.json, e.g. `LlamaForCausalLM`.
        task: the name of one of `compiler.task.TASKS`.
        config: config.json.
        geometry: its sizes.
        tensors: every tensor and where it lies.
        licence: its SPDX id or the hub's licence word; None when the model does not say.
        base_model: hub ids that it was made from.
        sentence: how it makes one vector of a text, where it is for feature-extraction and says so.
        authors: whom its card names, or whose it is on the hub.
    """

    folder: Path
    name: str
    source: str
    architecture: str
    task: str
    config: Mapping[str, Any]
    geometry: Geometry
    tensors: tuple[TensorInfo, ...]
    licence: str | None
    base_model: tuple[str, ...]
    sentence: SentenceVector | None = None
    authors: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what comes out of an encoder or a function."""
        if self.kind == FUNCTION:
            return tuple(port.name for port in read_signature(self.config, self.name)[1])
        return find_task(self.task).outputs + ((OUTPUT,) if self.sentence else ())

    @property
    def kind(self) -> str:
        """How it is used: the kind of its task."""
        return find_task(self.task).kind

    @property
    def takes(self) -> Input:
        """What goes in."""
        return find_task(self.task).takes

    @property
    def is_decoder(self) -> bool:
        """Whether it writes text token by token, and so has a cache of keys and values."""
        return self.kind == GENERATION

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def matrix_weights(self) -> int:
        """Weights that quantization applies to: those of tensors with two dimensions or more."""
        return sum(tensor.elements for tensor in self.tensors if len(tensor.shape) > 1)


def read_model(folder: Path, name: str | None = None, source: str | None = None, task: str | None = None) -> Model:
    """Read a local Hugging Face folder; no tensor is loaded.

    Raises:
        UnusableInput: the folder lacks config.json or usable weights, or wants to run code of its own.
    """
    if not folder.is_dir():
        raise UnusableInput(f"There is no model folder {folder}.")
    _require_regular(folder)
    config = _read_config(folder)
    if "auto_map" in config and not _is_native(config.get("model_type")):
        raise UnusableInput(
            f"{folder.name} wants to run code of its own (auto_map in config.json), and edgec never does. Use a "
            "revision of the model that a released transformers reads without trust_remote_code."
        )
    if (asked := _code_from_hub(config)) is not None:
        raise UnusableInput(
            f"config.json of {folder.name} asks for code from the hub ({asked}), and edgec never runs code of a model. Remove "
            "that line from config.json."
        )
    named = config.get("architectures") or ["unknown"]
    architecture = str(named[0])
    task = find_task(task or _task_of(architecture, folder)).name
    _require_sense(config, task, folder)
    card, tensors = _model_card(folder), find_tensors(folder)
    if find_task(task).kind == FUNCTION:
        read_signature(config, folder.name)
        geometry = _NO_GEOMETRY
    else:
        geometry = _geometry(config, folder)
    _require_sizes(geometry, config, tensors, folder)
    name = name or folder.absolute().name or folder.resolve().name
    if not name.isprintable():
        raise UnusableInput(
            f"The model's name {name!r} has characters that cannot stand in files. Give another with --name."
        )
    return Model(
        folder=folder,
        name=name,
        source=source or name,
        architecture=architecture,
        task=task,
        config=config,
        geometry=geometry,
        tensors=tensors,
        licence=card.get("license", [None])[0],
        base_model=tuple(card.get("base_model", ())),
        sentence=read_sentence_vector(folder, geometry.hidden_size) if task == VECTORS else None,
        authors=tuple(card.get("authors") or card.get("author") or (source or "").split("/")[:-1][:1]),
    )


def model_files(folder: Path) -> list[Path]:
    """The model's own files in `folder`, sorted by name: what its digest is taken over."""
    return sorted(file for file in _named_files(folder) if file.is_file())


def _named_files(folder: Path) -> list[Path]:
    """Whatever bears the name of a model's file, in the folder and in those within it."""
    files = [*folder.iterdir(), *folder.glob("*/*")]
    return [file for file in files if MODEL_FILES.fullmatch(file.relative_to(folder).as_posix())]


def _require_regular(folder: Path) -> None:
    """Refuse a folder in which a file of the model is a pipe, a device or a link to nothing: its readers would wait."""
    for path in _named_files(folder):
        if not path.is_file():
            what = "a link to nothing" if path.is_symlink() and not path.exists() else "no regular file"
            raise UnusableInput(f"{path.name} of {folder.name} is {what}. Put the file itself there.")


# Models whose layers share one set of weights, so that their tensors do not tell how many there are.
_SHARED_LAYERS = ("albert",)
_MOST_LAYERS, _MOST_LABELS = 1000, 1_000_000


def _require_sizes(
    geometry: Geometry, config: Mapping[str, Any], tensors: tuple[TensorInfo, ...], folder: Path
) -> None:
    """Hold the sizes of config.json to the tensors, before anything is made by them."""
    numbers = {int(found[1]) for tensor in tensors if (found := re.search(r"\.(\d{1,9})\.", tensor.name))}
    shared = config.get("model_type") in _SHARED_LAYERS
    layers = _MOST_LAYERS if shared or not numbers else max(numbers) + 1
    largest = max((size for tensor in tensors for size in tensor.shape), default=0)
    told = {"layers": (geometry.layers, layers), "hidden size": (geometry.hidden_size, largest)}
    for name in ("num_hidden_groups", "inner_group_num"):
        if type(config.get(name)) is int:
            told[name] = (config[name], _MOST_LAYERS)
    if isinstance(depths := config.get("depths"), list):
        told["depths"] = (sum(each for each in depths if type(each) is int), _MOST_LAYERS)
    if type(config.get("num_labels")) is int:
        told["num_labels"] = (config["num_labels"], _MOST_LABELS)
    told |= {"attention heads": (geometry.heads, largest), "vocabulary": (geometry.vocabulary, largest)}
    for name, (said, room) in told.items():
        if said > room:
            raise UnusableInput(
                f"config.json of {folder.name} says {name} {said:,}, and its tensors have room for {room:,}. The config is "
                "not that of these weights, or a part of them is missing."
            )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = read_object(path)
    except FileNotFoundError:
        raise UnusableInput(
            f"{folder} has no config.json, so it is not a Hugging Face model folder. Point to the folder that holds "
            "config.json and model.safetensors."
        ) from None
    require_types(config, folder.name)
    return config


def _code_from_hub(config: Mapping[str, Any]) -> str | None:
    """The setting that names a kernel of the hub in the place of an implementation of transformers' own; None mostly."""
    for key, value in config.items():
        if isinstance(value, dict) and (inner := _code_from_hub(value)) is not None:
            return f"{key}.{inner}"
        if key.endswith("_implementation") and re.search(r"[/:@]", str(value)):
            return f"{key} = {value!r:.60}"
    return None


def _is_native(model_type: object) -> bool:
    """Whether transformers has classes of its own for that type, so that the model's code is not needed."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return False
    return model_type in CONFIG_MAPPING_NAMES


# Settings that only models of pictures, or of sounds, have.
_SENSES = {
    "pictures": ("image_size", "patch_size", "num_channels"),
    "sounds": ("conv_dim", "num_mel_bins", "sampling_rate"),
}


def _require_sense(config: Mapping[str, Any], task: str, folder: Path) -> None:
    """Refuse a model of pictures or sounds for a task that takes text: the names of bare models look alike."""
    takes = find_task(task).takes
    for sense, settings in _SENSES.items():
        found = [name for name in settings if name in config]
        if found and "vision_config" not in config and not (takes == "image" and sense == "pictures"):
            raise UnusableInput(
                f"{folder.name} is a model of {sense} (config.json has {found[0]}), and {task} takes {takes}. Of pictures "
                "edgec takes models for image-classification, of sounds none."
            )


def _task_of(architecture: str, folder: Path) -> str:
    found = task_of_architecture(architecture)
    if found is None:
        raise UnusableInput(
            f"The task of {folder.name} cannot be told from its architecture {architecture}. Name it with --task, one of: "
            f"{', '.join(task.name for task in TASKS)}."
        )
    return found.name


# Of a function, whose layers edgec does not know.
_NO_GEOMETRY = Geometry(0, 0, 0, 0, 0, 0, None)


def _geometry(config: Mapping[str, Any], folder: Path) -> Geometry:
    def first(*names: str, default: int | None = None) -> int | None:
        for name in names:
            if isinstance(config.get(name), int):
                return config[name]
        return default

    hidden = first("hidden_size", "n_embd", "dim", "d_model")
    layers = first("num_hidden_layers", "n_layer", "n_layers")
    heads = first("num_attention_heads", "n_head", "n_heads")
    if (depths := _stages_of(config)) is not None:
        return Geometry(len(depths), config["hidden_sizes"][-1], 1, 1, 1, 0, None)
    if not hidden or not layers or not heads:
        raise UnusableInput(
            f"config.json of {folder.name} does not tell hidden size, layers and attention heads in a way known to "
            "edgec; only plain text decoders, text encoders, ViT and convolutional classifiers are taken."
        )
    return Geometry(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=first("num_key_value_heads", default=heads) or heads,
        head_dim=first("head_dim", default=hidden // heads) or hidden // heads,
        vocabulary=first("vocab_size", default=0) or 0,
        context_length=positions_of(config),
    )


def is_convolutional(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a convolutional network such as ResNet."""
    return _stages_of(config) is not None


def _stages_of(config: Mapping[str, Any]) -> list[int] | None:
    """Blocks of each stage of a convolutional network such as ResNet; None of any other."""
    depths, sizes = config.get("depths"), config.get("hidden_sizes")
    if "num_attention_heads" in config or not isinstance(depths, list) or not isinstance(sizes, list) or not sizes:
        return None
    whole = all(type(each) is int and 0 < each < 1 << 20 for each in (*depths, *sizes))
    return depths if whole and depths else None


# Their first position is the one after the padding token's id (transformers, create_position_ids_from_input_ids).
_OFFSET_POSITIONS = (
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The longest input in tokens that a config.json tells of; None when it does not."""
    names = ("max_position_embeddings", "n_positions", "n_ctx")
    positions = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    if positions and config.get("model_type") in _OFFSET_POSITIONS:
        padding = config.get("pad_token_id")
        return positions - 1 - (padding if isinstance(padding, int) else 1)
    return positions


_CARD_KEYS = ("license", "base_model", "author", "authors")
_CARD_BYTES = 1 << 20  # More than any model card has.


def _model_card(folder: Path) -> dict[str, list[str]]:
    """What the YAML head of README.md says under a few keys, as lists; only what these need of YAML."""
    readme = folder / "README.md"
    text = b""
    if readme.is_file():
        with readme.open("rb") as stream:
            text = stream.read(_CARD_BYTES)
    head = re.match(r"---\s*\n(.*?)\n---", text.decode("utf-8", "replace"), re.S)
    values: dict[str, list[str]] = {}
    key = ""
    for line in (head[1] if head else "").splitlines():
        if pair := re.match(r"(\w+):\s*(.*?)\s*$", line):
            key = pair[1]
            values[key] = [pair[2].strip("'\"")] if pair[2] else []
        elif item := re.match(r"\s*-\s+(.+?)\s*$", line):
            values.setdefault(key, []).append(item[1].strip("'\""))
    return {name: values[name] for name in _CARD_KEYS if values.get(name)}
