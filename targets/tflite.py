"""tflite: LiteRT's container, for text encoders with fixed shapes, through litert_torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.lineage import origin_of, write_lineage
from compiler.model import TEXT_ENCODER_TASKS, Model
from compiler.package import Lowered, Port, Weights
from compiler.pretrained import example_inputs, load_encoder
from compiler.recipe import Recipe
from compiler.target import Stage

NAME = "tflite"
EXTRA = "tflite"
SCHEMES = ("fp32",)
OPTIONS: tuple[str, ...] = ()
VARIANTS: tuple[str, ...] = ()
ENGINES: tuple[str, ...] = ()


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: anything but a text encoder."""
    if model.task not in TEXT_ENCODER_TASKS:
        return f"the target tflite takes text encoders ({', '.join(TEXT_ENCODER_TASKS)}) so far, not {model.task}."
    longest = model.geometry.context_length
    if longest and recipe.shapes.sequence_length > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {recipe.shapes.sequence_length}."
    return None


def plan(model: Model, recipe: Recipe) -> Stage:
    """One stage: trace, convert, write."""
    return Stage(
        "convert to LiteRT",
        "targets.tflite:convert",
        {
            "sequence_length": recipe.shapes.sequence_length,
            "batch": recipe.shapes.batch,
            "origin": origin_of(model, recipe),
        },
        ("litert-torch", "ai-edge-litert", "torch", "transformers"),
    )


def convert(
    model: str, inputs: list[str], out: str, sequence_length: int, batch: int, origin: dict[str, str]
) -> dict[str, Any]:
    """Write `model.tflite` with one signature, int32 inputs of (batch, sequence_length)."""
    import litert_torch
    import torch

    folder = Path(out)
    encoder = load_encoder(Path(model), origin["task"])
    examples = tuple(tensor.to(torch.int32) for tensor in example_inputs(encoder, batch, sequence_length))
    with torch.inference_mode():
        shapes = [tuple(value.shape) for value in encoder.module(*examples)]
    litert_torch.convert(encoder.module, examples).export(str(folder / "model.tflite"))
    read = write_lineage(Path(model), origin, folder, processor=True)
    ports = zip(encoder.output_names, shapes, strict=True)
    return asdict(
        Lowered(
            runtime="litert",
            artifact="model.tflite",
            inputs=tuple(Port(each, "int32", (batch, sequence_length)) for each in encoder.input_names),
            outputs=tuple(Port(each, "float32", shape) for each, shape in ports),
            weights=Weights(32.0, {"fp32": read.parameters}),
        )
    )
