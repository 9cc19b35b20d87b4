"""What a package says of where it comes from: licence, notice and model card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from compiler.model import Model


def copy_licence(model: Model, folder: Path) -> None:
    """Copy the model's own licence and notice files."""
    for file in sorted(model.folder.iterdir()):
        if file.is_file() and re.fullmatch(r"(LICEN[CS]E|NOTICE)[\w.-]*", file.name):
            shutil.copyfile(file, folder / file.name)


_PROCESSOR_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "added_tokens.json", "preprocessor_config.json",
)  # fmt: skip


def copy_processor(model: Model, folder: Path) -> None:
    """Copy config, tokenizer and image processor, so that the package can be used without the model."""
    for name in _PROCESSOR_FILES:
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)


def write_model_card(model: Model, recipe: str, folder: Path) -> None:
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
        "",
    ]
    (folder / "README.md").write_text("\n".join(head + body), encoding="utf-8")
