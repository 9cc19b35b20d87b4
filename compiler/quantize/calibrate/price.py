"""What it will take that a model writes its own calibration text, told before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.inputs.identity import digest_model
from compiler.model import Model
from compiler.quantization import Quantization
from compiler.quantize.plan import plan_samples
from compiler.recipe import IMATRIX, Recipe
from compiler.stages.cache import find_entry
from compiler.stages.executor import Executor, Source

_SIDE = 1024
_TRIES = 3
# Of what a plain product of matrices reaches, writing token by token reaches a third: attention, sampling, small products.
_SHARE = 0.33


@dataclass(frozen=True)
class Price:
    """Samples, tokens of each, and the seconds that writing them is likely to take here."""

    samples: int
    tokens: int
    seconds: float


def price_of_writing(model: Model, recipes: Sequence[Recipe], executor: Executor) -> list[Price]:
    """One for each text that the model will write itself; none for what is in the cache, or given by the user."""
    wanted = dict.fromkeys(
        recipe.quantization.calibration for recipe in recipes if model.is_decoder and _looks_at_samples(recipe)
    )
    prices = []
    for calibration in wanted:
        stage = plan_samples(model, Quantization(calibration))
        known = find_entry(executor.key(stage, {"model": Source(model.folder, digest_model(model))}))
        if not calibration.is_given and known is None:
            tokens = min(calibration.sample_tokens, model.geometry.context_length or calibration.sample_tokens)
            work = 2 * model.parameters * calibration.samples * tokens
            prices.append(Price(calibration.samples, tokens, work / (_SHARE * _flops())))
    return prices


def _looks_at_samples(recipe: Recipe) -> bool:
    scheme = recipe.scheme
    return scheme.method == "gptq" or IMATRIX in recipe.options or scheme.rounds_activations


def _flops() -> float:
    """Float operations a second of a plain product of matrices on this machine."""
    matrix = np.ones((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return 2 * _SIDE**3 / best
