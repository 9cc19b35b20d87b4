"""The options of `edgec build` that say how codes are found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from compiler.errors import UnusableInput
from compiler.quantization import STORAGES
from compiler.quantize.calibrate.pictures import keep_pictures
from compiler.quantize.calibrate.texts import keep_text
from compiler.recipe import Recipe
from compiler.scheme import MIXED

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class ByteCount(click.ParamType):
    """`90MB`, `1.5GiB` or plain bytes, as an int."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", value, re.IGNORECASE)
        if match is None or not (count := int(float(match[1]) * _UNITS[(match[2] or "").upper()])):
            self.fail(f"{value!r} is not a number of bytes; write 90MB, 1.5GiB or 90000000.", param, ctx)
        return count


_OPTIONS = (
    click.option(
        "--calibration",
        metavar="TEXT",
        help="FILE or hf:DATASET that GPTQ and imatrix calibrate on, or a folder of pictures [the model's own text].",
    ),
    click.option("--calibration-samples", type=click.IntRange(1), help="How many samples of it [128]."),
    click.option("--calibration-tokens", type=click.IntRange(16), help="Tokens of a sample [512]."),
    click.option("--seed", type=int, help="Of the text that the model writes itself [0]."),
    click.option("--head", type=click.Choice(STORAGES), help="How our schemes store the output head [auto: int8]."),
    click.option(
        "--embedding",
        type=click.Choice(STORAGES),
        help="How they store the token embedding [auto: int4, or int8 where it is the head].",
    ),
    click.option(
        "--smaller-groups", is_flag=True, help="Halve the groups of matrices whose rows the scheme's do not divide."
    ),
    click.option("--target-bpw", type=click.FloatRange(1, 32), help="Budget of a mixed scheme, bits per weight."),
    click.option("--max-bytes", type=ByteCount(), help="The same as bytes of the package, such as 90MB."),
)


def quantize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def require_mixed(recipes: Sequence[Recipe], target_bpw: float | None, max_bytes: int | None) -> None:
    """Raise UnusableInput when a budget is given and no recipe would heed it."""
    if (target_bpw is not None or max_bytes is not None) and not any(recipe.scheme.mixed for recipe in recipes):
        raise UnusableInput(
            f"A budget shares bits out among layers, and {recipes[0]} gives all layers the same. Use the scheme {MIXED.name}, "
            f"as in {recipes[0].target}:{MIXED.name}."
        )


def with_quantization(
    recipe: Recipe,
    calibration: str | None,
    calibration_samples: int | None,
    calibration_tokens: int | None,
    seed: int | None,
    head: Any,
    embedding: Any,
    smaller_groups: bool,
    target_bpw: float | None,
    max_bytes: int | None,
) -> Recipe:
    """The recipe with what the options say; recipes that are not ours to quantize stay as they are.

    Raises:
        UnusableInput: a calibration text, or folder of pictures, cannot be used.
    """
    if not recipe.uses_quantization:
        return recipe
    old = recipe.quantization
    samples: dict[str, Any] = {"samples": calibration_samples, "sample_tokens": calibration_tokens, "seed": seed}
    text: dict[str, Any] = {}
    if calibration is not None:
        folder = Path(calibration).expanduser()
        form = "pictures" if folder.is_dir() else "text"
        digest, source = keep_pictures(folder) if form == "pictures" else keep_text(calibration)
        text = {"text": None, "pictures": None, form: digest, "source": source}
    given: dict[str, Any] = {"head": head, "embedding": embedding}
    if smaller_groups:
        given["smaller_groups"] = True
    if recipe.scheme.mixed:
        given |= {"target_bpw": target_bpw, "max_bytes": max_bytes}
    changed = replace(
        old,
        calibration=replace(
            old.calibration, **text, **{name: each for name, each in samples.items() if each is not None}
        ),
        **{name: each for name, each in given.items() if each is not None},
    )
    return replace(recipe, quantization=changed)
