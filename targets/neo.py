"""neo: Apache TVM, the open compiler that SageMaker Neo is built on. Compiled here, for this machine (`@local`).

The ONNX export is shared with the target onnx in spirit only: TVM knows nothing of ONNX Runtime's fused attention, so
the plain operators are exported.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.lineage import lineage_of, model_of, write_lineage
from compiler.model import Model
from compiler.package import FixedShapes, Graph, Lowered, Platform, Port, StoredWeights
from compiler.pretrained import example_inputs, load_encoder
from compiler.recipe import Recipe
from compiler.size import needed_tensors, processor_bytes
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, tasks_of

NAME = "neo"
SCHEMES = ("fp32",)

_FLOAT_BYTES = 4
_CODE_BYTES = 400_000
_LLVM_TARGET = {"local": "llvm"}


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an input that is longer than the model takes."""
    longest = model.geometry.context_length
    if longest and recipe.shapes.sequence_length > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {recipe.shapes.sequence_length}."
    return None


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes: weights, and TVM's code."""
    weights = sum(_FLOAT_BYTES * tensor.elements for tensor in needed_tensors(model))
    return weights + _CODE_BYTES + processor_bytes(model)


def plan(model: Model, recipe: Recipe) -> Stage:
    """Export to ONNX with fixed shapes, then compile."""
    shapes = {"sequence_length": recipe.shapes.sequence_length, "batch": recipe.shapes.batch}
    tools = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers")
    arguments = {"task": model.task, **shapes}
    export = Stage("export plain ONNX", "targets.neo:export", arguments, tools, ensures=("model.onnx",))
    return Stage(
        "compile with TVM",
        "targets.neo:compile_module",
        {
            "device": recipe.variant or "local",
            "lineage": lineage_of(model, recipe),
            **shapes,
        },
        ("apache-tvm", "onnx"),
        {"base": export},
        {"base": ("model.onnx",)},
        ("compiled.so",),
        machine_dependent=True,
    )


def export(model: str, out: str, sequence_length: int, batch: int, task: str) -> None:
    """Write `model.onnx` in fp32, every shape fixed, attention in plain operators."""
    import torch

    encoder = load_encoder(Path(model), task)
    program: Any = torch.onnx.export(
        encoder.module,
        example_inputs(encoder, batch, sequence_length),
        input_names=list(encoder.input_names),
        output_names=list(encoder.output_names),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    program.save(str(Path(out) / "model.onnx"), external_data=False)


def compile_module(
    model: str,
    base: str,
    out: str,
    device: str,
    sequence_length: int,
    batch: int,
    lineage: dict[str, str],
) -> dict[str, Any]:
    """Compile to `compiled.so`, weights inside, for this machine.

    Raises:
        UnusableInput: TVM lacks an operator.
    """
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    folder = Path(out)
    document = onnx.load(str(Path(base) / "model.onnx"))
    try:
        module = from_onnx(document, keep_params_in_input=False)
    except tvm.error.OpNotImplemented as error:
        lacking = str(error).rpartition(":")[2].strip()
        raise UnusableInput(
            f"TVM cannot compile {Path(model).name}: it has no way for the ONNX operator {lacking}. `edgec inspect` tells "
            "what other targets take."
        ) from error
    executable = relax.build(relax.get_pipeline("zero")(module), target=tvm.target.Target(_LLVM_TARGET[device]))
    executable.export_library(str(folder / "compiled.so"))
    read = model_of(Path(model), lineage)
    write_lineage(read, lineage, folder, processor=True)
    taken = tuple(Port(port.name, "int64", (batch, sequence_length)) for port in document.graph.input)
    given = tuple(Port(port.name, "float32", _shape(port)) for port in document.graph.output)
    return asdict(
        Lowered(
            runtime="tvm",
            graphs=(Graph("main", ("compiled.so",), taken, given),),
            weights=StoredWeights(32.0, {"fp32": read.parameters}),
            shapes=FixedShapes(sequence_lengths=(sequence_length,), longest_sequence=sequence_length, batch=batch),
            platform=Platform(platform.system(), platform.machine()),
        )
    )


def _shape(port: Any) -> tuple[int | str, ...]:
    return tuple(axis.dim_value for axis in port.type.tensor_type.shape.dim)


TARGET = Target(
    name=NAME,
    extra="neo",
    schemes=SCHEMES,
    tasks=tasks_of(ENCODING, "text"),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
    variants=("local",),
)
