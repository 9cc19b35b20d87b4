"""Core ML packages lowered in this process, and sessions of the evaluator over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.model import read_model
from compiler.package import Lowered, ModelIdentity, Package
from compiler.records import from_json
from runtimes.coreml.calls import DecoderCalls
from runtimes.coreml.evaluator import EvaluatorCaller
from targets.coreml.decoder import lower_decoder
from targets.coreml.encoder import lower_encoder

CONTEXT = 96


def lineage(folder: Path, recipe: str = "coreml:fp16") -> dict[str, str]:
    return {"name": folder.name, "source": folder.name, "task": read_model(folder).task, "recipe": recipe}


def lower(folder: Path, out: Path, codes: Path | None = None, **changes: Any) -> Package:
    """One package in this process, without its manifest."""
    out.mkdir(parents=True)
    shared = {"layout": "ane", "ios": 18, "lineage": lineage(folder), "codes": str(codes) if codes else None}
    if read_model(folder).is_decoder:
        own = {"context_length": CONTEXT, "part_bytes": 10**9, "bits": 16.0, "greedy": False}
        told = lower_decoder(str(folder), str(out), **{**shared, **own, **changes})
    else:
        told = lower_encoder(str(folder), str(out), **{**shared, "sequence_lengths": [32], "batch": 1, **changes})
    identity = ModelIdentity(folder.name, folder.name, "0" * 64, "", read_model(folder).task, 0, None, ())
    return Package(out, identity, "coreml:fp16", {}, from_json(Lowered, told), {}, {})


def decoder_session(package: Package) -> DecoderCalls:
    return DecoderCalls(package, [EvaluatorCaller(package.folder / name) for name in package.lowered.main.files])
