"""The options of `edgec build` that say how codes are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from compiler.errors import UnusableInput
from compiler.quantize.settings import STORAGES
from compiler.quantize.texts import keep_text
from compiler.recipe import Recipe

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_OPTIONS = (
    click.option(
        "--calibration", metavar="TEXT", help="FILE or hf:DATASET that GPTQ calibrates on [the model's own text]."
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
    click.option("--target-bpw", type=click.FloatRange(2, 16), help="Mixed precision to so many bits per weight."),
    click.option("--max-bytes", metavar="SIZE", help="Mixed precision to so many bytes of package, e.g. 90MB."),
)


def quantize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_quantization(
    recipe: Recipe,
    calibration: str | None,
    calibration_samples: int | None,
    calibration_tokens: int | None,
    seed: int | None,
    head: Any,
    embedding: Any,
    target_bpw: float | None,
    max_bytes: str | None,
) -> Recipe:
    """The recipe with what the options say; recipes that are not ours to quantize stay as they are.

    Raises:
        UnusableInput: a size or a calibration text cannot be used.
    """
    if not recipe.scheme.method:
        return recipe
    old = recipe.quantization
    samples: dict[str, Any] = {"samples": calibration_samples, "sample_tokens": calibration_tokens, "seed": seed}
    text: dict[str, Any] = {}
    if calibration is not None:
        digest, source = keep_text(calibration)
        text = {"text": digest, "source": source}
    given: dict[str, Any] = {"head": head, "embedding": embedding, "target_bits_per_weight": target_bpw}
    if max_bytes is not None:
        given["max_bytes"] = parse_bytes(max_bytes)
    changed = replace(
        old,
        calibration=replace(
            old.calibration, **text, **{name: each for name, each in samples.items() if each is not None}
        ),
        **{name: each for name, each in given.items() if each is not None},
    )
    return replace(recipe, quantization=changed)


def parse_bytes(text: str) -> int:
    """`90MB`, `1.5GiB` or a plain number as bytes.

    Raises:
        UnusableInput: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B?)", text.strip(), re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS:
        raise UnusableInput(f"{text!r} is not a size. Write for instance 90MB or 1.5GiB.")
    return int(float(match[1]) * _UNITS[unit])
