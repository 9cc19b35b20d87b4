"""What a package says of where it comes from: licence, notice, model card, tokenizer and config."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from compiler import __version__
from compiler.model import Model, read_model
from compiler.recipe import Recipe


@dataclass(frozen=True)
class Lineage:
    """What a stage in a child process must be told of the model beside its folder."""

    name: str
    source: str
    task: str
    recipe: str


def lineage_of(model: Model, recipe: Recipe) -> dict[str, str]:
    """The lineage as a stage's argument."""
    return asdict(Lineage(model.name, model.source, model.task, str(recipe)))


def model_of(folder: Path, lineage: Mapping[str, str]) -> Model:
    """The Model in a stage's process, under the name that it has outside."""
    known = Lineage(**lineage)
    return read_model(folder, known.name, known.source, known.task)


def about(model: Model, recipe: str) -> dict[str, str]:
    """What a container's own fields are to say of a package: what is not known is left out."""
    told = {
        "name": model.name,
        "license": model.licence or "",
        "author": ", ".join(model.authors),
        "base_model": ", ".join(model.base_model),
        "recipe": recipe,
        "edgec": __version__,
    }
    return {name: value for name, value in told.items() if value}


def write_lineage(model: Model, lineage: Mapping[str, str], out: Path, *, processor: bool = False) -> None:
    """Write licence, notice and model card into `out`, and with `processor` config and tokenizer."""
    _copy_licence(model, out)
    _write_model_card(model, Lineage(**lineage).recipe, out)
    if processor:
        _copy_processor(model, out)


def _copy_licence(model: Model, folder: Path) -> None:
    """Copy the model's own licence and notice files."""
    for file in sorted(model.folder.iterdir()):
        if file.is_file() and re.fullmatch(r"(LICEN[CS]E|NOTICE)[\w.-]*", file.name):
            shutil.copyfile(file, folder / file.name)


PROCESSOR_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "added_tokens.json", "preprocessor_config.json",
    "tokenizer.model", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip


def copy_chat_files(model: Model, folder: Path) -> None:
    """Copy how a language model generates, and its chat template, where they have files of their own."""
    for name in ("generation_config.json", "chat_template.jinja"):
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)


def _copy_processor(model: Model, folder: Path) -> None:
    """Copy config, tokenizer and image processor, so that the package can be used without the model."""
    for name in PROCESSOR_FILES:
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)


def _write_model_card(model: Model, recipe: str, folder: Path) -> None:
    """Write README.md in the form that the Hugging Face hub reads: licence and base model in the YAML head."""
    head = ["---"]
    if model.licence:
        head.append(f"license: {model.licence}")
    origin = model.source.split("@")[0]
    if "/" in origin:
        head += ["base_model:", f"- {origin}"]
    elif model.base_model:
        head += ["base_model:", *(f"- {name}" for name in model.base_model)]
    head += [f"pipeline_tag: {model.task}", "tags:", "- edgec", "---"]
    body = [
        f"# {model.name}, `{recipe}`",
        "",
        f"{model.architecture} with {model.parameters:,} parameters, made from {model.source} by edgec.",
        f"Licence: {model.licence or 'not stated by the model'}.",
        "`package.json` names every file's SHA-256, the recipe with its defaults, and the tools that were used.",
        "What `edgec verify` found of this package, its quality among it, is in `VERIFICATION.md` beside it.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(head + body), encoding="utf-8")
