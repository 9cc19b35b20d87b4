"""What was to be expected of a package on a machine, told beside what was measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.history import Seen, read_history
from benchmarks.measurement import Measurement, Predicted
from benchmarks.prediction import predict_memory, predict_seconds, predict_tok_per_s, runtime_for
from benchmarks.profiling import LOCAL, profile_of
from compiler.errors import EdgecError
from compiler.inputs.identity import find_identified
from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Recipe, parse_recipe


def with_predictions(packages: Sequence[Package], measured: Sequence[Measurement]) -> list[Measurement]:
    """The measurements, each with what was to be expected before it was made."""
    history = read_history()
    pairs = zip(packages, measured, strict=True)
    return [replace(each, predicted=predict(package, each, history)) for package, each in pairs]


def predict(package: Package, measurement: Measurement, history: Sequence[Seen]) -> Predicted | None:
    """What a plan says of a package by the machine's own bandwidth and products; None where the model is gone, or unknown.

    `history` is what was measured before. Whatever is wrong with the model by now, what was measured stays.
    """
    try:
        return _predict(package, find_identified(package.model), measurement, history)
    except (EdgecError, OSError, ValueError, TypeError):
        return None


def _predict(package: Package, model: Model, measurement: Measurement, history: Sequence[Seen]) -> Predicted:
    recipe = _recipe_of(package)
    profile, work, digest = profile_of(LOCAL, measurement.environment), measurement.workload, package.model.digest
    history = [each for each in history if each.machine == profile.title]
    runtime, read = (
        runtime_for(recipe.target, model),
        package.lowered.weights.decode_read_bytes or package.nbytes,
    )
    weights = package.lowered.weights
    stored = weights.effective_bits_per_weight if any(each.forced for each in weights.deviations) else None
    memory = predict_memory(
        model, digest, recipe, (read, package.nbytes), runtime, work.context_length or 0, history, stored
    )
    speed = predict_tok_per_s(profile, model, recipe, read, runtime, history, stored) if model.is_decoder else None
    tokens = work.prompt_tokens if model.is_decoder else work.sequence_length
    seconds = predict_seconds(profile, model, recipe, tokens, runtime, history, stored) if tokens else None
    middle = seconds.middle if seconds is not None else None
    return Predicted(
        None,
        memory.middle if memory is not None else None,
        speed.middle if speed is not None else None,
        middle if model.is_decoder else None,
        middle if not model.is_decoder else None,
    )


def _recipe_of(package: Package) -> Recipe:
    """The recipe, with its budget of bits where it has one."""
    recipe = parse_recipe(package.recipe, (package.recipe.partition(":")[0],))
    told = package.recipe_full.get("quantization")
    budget = told.get("target_bpw") if isinstance(told, dict) else None
    if not recipe.scheme.mixed:
        return recipe
    bits = budget or package.lowered.weights.effective_bits_per_weight
    return replace(recipe, quantization=replace(recipe.quantization, target_bpw=bits))
