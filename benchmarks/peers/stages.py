"""Builds in one `edgec build`, one stage at a time: what each stage took, with what its prediction is made from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.peers.timing import edgec_script
from compiler.model import Model
from compiler.needs import stage_need
from compiler.operations import operations
from compiler.quantization import Calibration
from compiler.recipe import parse_recipe
from compiler.size import matrices_of, needed_tensors
from compiler.stages.stage import Stage, each_stage
from targets.registry import load_target


@dataclass(frozen=True)
class StageRecord:
    """What a stage took.

    Attributes:
        model, recipe, label, work: which stage, of what.
        peak_bytes, seconds: what it took.
        weight_bytes, largest_bytes: of the model's weights, and of its largest matrix, as float32.
        vector_bytes: a vector as float32 for each token of the calibration.
        passes: a million million additions and multiplications of one pass of it.
        predicted_peak_bytes, predicted_seconds: what was to be expected; None where nothing was.
    """

    model: str
    recipe: str
    label: str
    work: str
    peak_bytes: int
    seconds: float
    weight_bytes: int
    largest_bytes: int
    vector_bytes: int
    passes: float
    predicted_peak_bytes: int | None
    predicted_seconds: float | None


def planned_stages(model: Model, recipes: Sequence[str], calibration: Calibration) -> dict[tuple[str, str], Stage]:
    """Every stage of the recipes by its work and label."""
    found = {}
    for text in recipes:
        recipe = parse_recipe(text, (text.partition(":")[0],))
        recipe = replace(recipe, quantization=replace(recipe.quantization, calibration=calibration))
        for stage in each_stage(load_target(recipe.target).plan(model, recipe)):
            found[stage.work, stage.label] = stage
    return found


def calibration_of(samples: int, *, given: bool) -> Calibration:
    """As the command line makes it of a text, or where none is given."""
    return Calibration(text="0" * 64, source="text", samples=samples) if given else Calibration(samples=samples)


def measure_stages(
    model: Model, recipes: Sequence[str], out: Path, calibration: Sequence[str], samples: int, sample_tokens: int = 512
) -> list[StageRecord]:
    """Build, and tell what each stage took.

    Raises:
        SystemExit: the build failed.
    """
    command = [
        edgec_script(),
        "build",
        str(model.folder),
        "--task",
        model.task,
        "-o",
        str(out),
        "--jobs",
        "1",
        "--json",
    ]
    done = subprocess.run(
        [*command, *calibration, *(word for recipe in recipes for word in ("-r", recipe))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"edgec build of {model.name} failed:\n{done.stderr[-2000:]}")
    given = calibration_of(samples, given="--calibration" in calibration)
    planned = planned_stages(model, recipes, given)
    needs = {key: stage_need(stage, model) for key, stage in planned.items()}
    found = []
    for told in json.loads(done.stdout)["stages"]:
        if told["cached"]:
            continue
        need = needs.get((told["work"], told["label"]))
        found.append(
            StageRecord(
                model.name,
                told["recipe"],
                told["label"],
                told["work"],
                told["peak_rss_bytes"],
                told["seconds"],
                4 * sum(tensor.elements for tensor in needed_tensors(model)),
                4 * max(each.elements for each in matrices_of(model)),
                samples * sample_tokens * 4 * model.geometry.hidden_size,
                samples * operations(model, sample_tokens) / 1e12,
                need.memory_bytes if need else None,
                need.seconds if need else None,
            )
        )
    return found


def add_records(file: Path | None, records: Sequence[StageRecord]) -> None:
    """Add them to a file of JSON lines, where there is one."""
    if file is not None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(asdict(each)) + "\n" for each in records))
