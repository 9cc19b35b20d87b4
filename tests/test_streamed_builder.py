"""GenAI's builder writes the same bytes whether it holds all weights or streams them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from compiler.model import Model

# The stock builder first, then the same with streamed weights: the patch stays in the process.
_BOTH = """
import hashlib, json, runpy, sys
from pathlib import Path
from targets.onnx.decoder import _tell_rotary_bases_apart
from targets.onnx.streaming import stream_weights
model, out, *recipes = sys.argv[1:]
def made(name, recipe):
    folder = Path(out) / f"{name}-{recipe}"
    precision, _, block = recipe.partition(":")
    words = ["-i", model, "-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(Path(out) / "cache")]
    sys.argv = ["builder", *words, *(["--extra_options", f"block_size={block}"] if block else [])]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("model.onnx*"))}
_tell_rotary_bases_apart()
held = {recipe: made("held", recipe) for recipe in recipes}
import builders.base
def never(self): raise AssertionError("the stock quantizer was called")
builders.base.Model.to_nbits = never
stream_weights()
print(json.dumps([held, {recipe: made("streamed", recipe) for recipe in recipes}]))
"""


@pytest.mark.parametrize(
    ("family", "dtype", "recipes"),
    [
        ("llama", "bfloat16", ["fp16", "int8", "int4:32"]),
        ("gemma3", "float32", ["int4:128"]),
    ],
)
def test_streamed_weights_have_the_builders_bytes(
    family: str, dtype: str, recipes: list[str], smollm2: Model, tmp_path: Path
) -> None:
    model = tiny.save_decoder(family, smollm2.folder, tmp_path / "model", dtype)
    done = subprocess.run(
        [sys.executable, "-c", _BOTH, str(model), str(tmp_path), *recipes],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    held, streamed = json.loads(done.stdout.splitlines()[-1])
    assert held == streamed
    assert all(len(files) == 2 for files in held.values()) and len({str(files) for files in held.values()}) == len(held)
