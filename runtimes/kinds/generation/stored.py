"""What a decoder computes with the weights that a package stores, and how far the runtime's own rounding goes from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from compiler.formats.json_file import read_object
from compiler.package import read_package
from compiler.stages.worker import report_progress
from runtimes.verify.metrics import measure_logits

# Enough to tell a wrong lowering; the distance to the fp32 model is measured on all.
MOST_TOKENS = 512


def write_stored(model: str, package: str, expected: str, out: str, task: str) -> None:
    """Write `stored.json` and `stored-N.npy`, float32 (tokens, vocabulary), for the first windows of the Reference's."""
    import torch

    from compiler.pretrained import load_pretrained
    from runtimes.registry import stored_matrices
    from runtimes.verify.stored_weights import put_stored_weights, rounded_as_by_the_runtime

    told = read_object(Path(expected) / "expected.json")
    first = told["first_scored"]
    ends = np.cumsum([len(window) for window in told["windows"]])
    windows = told["windows"][: max(1, int((ends <= MOST_TOKENS).sum()))]
    network = load_pretrained(Path(model), task)
    put_in = put_stored_weights(network, stored_matrices(read_package(Path(package))))
    explained = []
    with torch.inference_mode():
        for number, window in enumerate(windows):
            ids = torch.tensor([window])
            exact = network(ids, use_cache=False).logits[0, first:].float().numpy()
            np.save(Path(out) / f"stored-{number}.npy", exact)
            if put_in.rounded:
                with rounded_as_by_the_runtime(put_in):
                    rounded = network(ids, use_cache=False).logits[0, first:].float().numpy()
                explained.append(measure_logits(exact, rounded, np.full(len(exact), -1)).kl)
            report_progress(number + 1, len(windows))
    found = {
        "windows": len(windows),
        "explained": float(np.concatenate(explained).mean()) if explained else 0.0,
        "weight_error": put_in.weight_error,
        "unknown": put_in.unknown,
    }
    (Path(out) / "stored.json").write_text(json.dumps(found), encoding="utf-8")
