"""The options of `edgec build` that say how codes are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from compiler.quantize.settings import STORAGES
from compiler.quantize.texts import keep_text
from compiler.recipe import Recipe

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
) -> Recipe:
    """The recipe with what the options say; recipes that are not ours to quantize stay as they are.

    Raises:
        UnusableInput: a calibration text cannot be used.
    """
    if not recipe.scheme.method:
        return recipe
    old = recipe.quantization
    samples: dict[str, Any] = {"samples": calibration_samples, "sample_tokens": calibration_tokens, "seed": seed}
    text: dict[str, Any] = {}
    if calibration is not None:
        digest, source = keep_text(calibration)
        text = {"text": digest, "source": source}
    given: dict[str, Any] = {"head": head, "embedding": embedding}
    changed = replace(
        old,
        calibration=replace(
            old.calibration, **text, **{name: each for name, each in samples.items() if each is not None}
        ),
        **{name: each for name, each in given.items() if each is not None},
    )
    return replace(recipe, quantization=changed)
