"""Core ML packages lowered in this process, and sessions of the evaluator over them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compiler.model import read_model
from runtimes.coreml.calls import LanguageCalls
from runtimes.coreml.evaluator import EvaluatorCaller
from targets.coreml.decoder import lower_decoder
from targets.coreml.encoder import lower_encoder

CONTEXT = 96


def origin(folder: Path, recipe: str = "coreml:fp16") -> dict[str, str]:
    return {"name": folder.name, "source": folder.name, "task": read_model(folder).task, "recipe": recipe}


def lower(folder: Path, out: Path, codes: Path | None = None, **changes: Any) -> dict[str, Any]:
    """One package in this process."""
    out.mkdir(parents=True)
    inputs = [str(codes)] if codes else []
    shared = {"layout": "ane", "ios": 18, "origin": origin(folder)}
    if read_model(folder).is_decoder:
        own = {"context_length": CONTEXT, "part_bytes": 10**9, "bits": 16.0, "greedy": False}
        return lower_decoder(str(folder), inputs, str(out), **{**shared, **own, **changes})
    return lower_encoder(str(folder), inputs, str(out), **{**shared, "sequence_lengths": [32], "batch": 1, **changes})


def language_session(out: Path, names: tuple[str, ...] = ("model.mlpackage",)) -> LanguageCalls:
    package: Any = SimpleNamespace(folder=out)
    return LanguageCalls(package, [EvaluatorCaller(out / name) for name in names])
