"""An encoder made ready to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.task import find_task
from runtimes.kinds.encoding.inputs import text_arrays
from runtimes.kinds.kind import Outputs, Prepared
from runtimes.kinds.outputs import repeated
from runtimes.session import EncodingSession
from runtimes.workload import Workload


def prepare(session: EncodingSession, package: Package, workload: Workload) -> Prepared:
    """One seeded input of the workload's length, or of the container's where that is fixed."""
    inputs = encoder_inputs(package, workload, session.fixed_sequence_length)
    return repeated(session, inputs, workload, inputs["input_ids"].shape[1] if "input_ids" in inputs else None)


# Ids of ordinary words in every vocabulary; a smaller one ends before.
_FIRST_ID, _LAST_ID = 5, 500


def encoder_inputs(package: Package, workload: Workload, fixed_length: int | None) -> dict[str, NDArray[Any]]:
    """The input; a session takes of it what it needs."""
    generator = np.random.default_rng(0)
    if find_task(package.model.task).takes == "image":
        shape = tuple(size if isinstance(size, int) else 1 for size in package.lowered.main.inputs[0].shape)
        return {"pixel_values": generator.standard_normal(shape, np.float32)}
    config = package.folder / "config.json"
    # A GGUF package has none: llama.cpp's file is all that it needs.
    words = read_object(config).get("vocab_size") if config.is_file() else None
    last = min(_LAST_ID, words) if isinstance(words, int) and words > 0 else _LAST_ID
    ids = generator.integers(min(_FIRST_ID, last - 1), last, fixed_length or workload.sequence_length or 1)
    return text_arrays(ids.tolist())


def reference_outputs(package: Package, model: Path, workload: Workload) -> Outputs:
    """What the fp32 model makes of that input in torch."""
    import torch

    from compiler.pretrained import load_encoder

    shapes = package.lowered.shapes
    inputs = encoder_inputs(package, workload, shapes.longest_sequence)
    encoder = load_encoder(model, package.model.task)
    with torch.inference_mode():
        given = (torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in encoder.input_names)
        found = encoder.module(*given)
    results = found if isinstance(found, tuple | list) else (found,)
    return {name: np.asarray(each, np.float32) for name, each in zip(encoder.output_names, results, strict=True)}
