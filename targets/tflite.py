"""tflite: LiteRT's container, for text encoders with fixed shapes, through litert_torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.lineage import lineage_of, model_of, write_lineage
from compiler.model import Model
from compiler.package import FixedShapes, Graph, Lowered, Port, StoredWeights
from compiler.pretrained import example_inputs, load_encoder
from compiler.recipe import Recipe
from compiler.size import needed_tensors, processor_bytes
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, tasks_of

NAME = "tflite"
SCHEMES = ("fp32",)
# The signature in the file, and the graph in package.json.
GRAPH = "main"
_FLOAT_BYTES = 4


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an input that is longer than the model takes."""
    longest = model.geometry.context_length
    if longest and recipe.shapes.sequence_length > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {recipe.shapes.sequence_length}."
    return None


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes."""
    return sum(_FLOAT_BYTES * tensor.elements for tensor in needed_tensors(model)) + processor_bytes(model)


def plan(model: Model, recipe: Recipe) -> Stage:
    """One stage: trace, convert, write."""
    return Stage(
        "convert to LiteRT",
        "targets.tflite:convert",
        {
            "sequence_length": recipe.shapes.sequence_length,
            "batch": recipe.shapes.batch,
            "lineage": lineage_of(model, recipe),
        },
        ("litert-torch", "ai-edge-litert", "torch", "transformers", "numpy"),
        ensures=("model.tflite",),
    )


def convert(model: str, out: str, sequence_length: int, batch: int, lineage: dict[str, str]) -> dict[str, Any]:
    """Write `model.tflite` with the signature `main`, int32 inputs of (batch, sequence_length), ports by name."""
    import litert_torch
    import torch

    folder = Path(out)
    encoder = load_encoder(Path(model), lineage["task"])
    examples = tuple(tensor.to(torch.int32) for tensor in example_inputs(encoder, batch, sequence_length))
    with torch.inference_mode():
        shapes = [tuple(value.shape) for value in encoder.module(*examples)]

    class Named(torch.nn.Module):
        """What goes in and comes out under names, which the converter writes into the signature."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder.module

        def forward(self, **inputs: Any) -> dict[str, Any]:
            found = self.encoder(*(inputs[name] for name in encoder.input_names))
            return dict(zip(encoder.output_names, found, strict=True))

    # The converter writes this name into the names of tensors: it stays, wherever the class moves.
    Named.__module__, Named.__qualname__ = "edgec", "Encoder"
    named_examples = dict(zip(encoder.input_names, examples, strict=True))
    made = litert_torch.signature(GRAPH, Named().eval(), sample_kwargs=named_examples).convert()
    made.export(str(folder / "model.tflite"))
    read = model_of(Path(model), lineage)
    write_lineage(read, lineage, folder, processor=True)
    taken = tuple(Port(each, "int32", (batch, sequence_length)) for each in encoder.input_names)
    named = zip(encoder.output_names, shapes, strict=True)
    given = tuple(Port(each, "float32", shape) for each, shape in named)
    return asdict(
        Lowered(
            runtime="litert",
            graphs=(Graph(GRAPH, ("model.tflite",), taken, given),),
            weights=StoredWeights(32.0, {"fp32": read.parameters}),
            shapes=FixedShapes(sequence_lengths=(sequence_length,), longest_sequence=sequence_length, batch=batch),
        )
    )


TARGET = Target(
    name=NAME,
    extra="tflite",
    schemes=SCHEMES,
    tasks=tasks_of(ENCODING, "text"),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
)
