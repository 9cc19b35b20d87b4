"""What an encoder computes with the weights that a package stores, and how far the runtime's own rounding goes from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from compiler.formats.json_file import read_object
from compiler.package import read_package
from compiler.stages.worker import report_progress
from runtimes.verify.metrics import relative_error


def write_stored(model: str, package: str, expected: str, out: str, task: str) -> None:
    """Write `stored.json` and `stored-N.npz`, the outputs by name, for each case that the Reference answered."""
    import torch

    from compiler.pretrained import load_encoder
    from runtimes.registry import stored_matrices
    from runtimes.verify.stored_weights import put_stored_weights, rounded_as_by_the_runtime

    cases = read_object(Path(expected) / "expected.json")["cases"]
    encoder = load_encoder(Path(model), task)
    put_in = put_stored_weights(encoder.module, stored_matrices(read_package(Path(package))))
    pairs: dict[str, list[Any]] = {}
    with torch.inference_mode():
        for number in range(cases):
            with np.load(Path(expected) / f"case-{number}.npz") as case:
                inputs = [torch.from_numpy(case[f"in_{name}"]) for name in encoder.input_names]
            exact = [values.float().numpy() for values in encoder.module(*inputs)]
            np.savez(Path(out) / f"stored-{number}.npz", **dict(zip(encoder.output_names, exact, strict=True)))
            if put_in.rounded:
                with rounded_as_by_the_runtime(put_in):
                    rounded = [values.float().numpy() for values in encoder.module(*inputs)]
                for name, *pair in zip(encoder.output_names, exact, rounded, strict=True):
                    pairs.setdefault(name, []).append(pair)
            report_progress(number + 1, cases)
    found = {
        "explained": max((relative_error(each) for each in pairs.values()), default=0.0),
        "weight_error": put_in.weight_error,
        "unknown": put_in.unknown,
    }
    (Path(out) / "stored.json").write_text(json.dumps(found), encoding="utf-8")
