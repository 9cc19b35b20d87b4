"""neo: Apache TVM, the open compiler that SageMaker Neo is built on. Compiled here, for this machine or another."""

from __future__ import annotations

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.networks.families import refuse_network
from compiler.recipe import Recipe
from compiler.size import needed_tensors, processor_bytes
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, tasks_of
from targets.neo.cloud.choice import VARIANTS
from targets.neo.cloud.choice import refuse as refuse_in_cloud
from targets.neo.machines import VARIANTS as MACHINES

NAME = "neo"
SCHEMES = ("fp32", "fp16")
# Compiled here; other variants are devices of SageMaker Neo's, which compiles in the cloud.
HERE = MACHINES

_STORED = {"fp32": "float32", "fp16": "float16"}
_BYTES = {"fp32": 4, "fp16": 2}
_CODE_BYTES = 400_000


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an input that is longer than the model takes, or what Neo's published tables leave out."""
    longest = model.geometry.context_length
    if longest and model.takes == "text" and recipe.shapes.sequence_length > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {recipe.shapes.sequence_length}."
    if recipe.scheme.name == "fp16" and refuse_network(model) is not None:
        return "matrices are stored in 16 bits where edgec has a network of its own for the model; use neo:fp32."
    if recipe.variant is None or recipe.variant in HERE:
        return None
    if recipe.scheme.name != "fp32":
        return f"SageMaker Neo is given float32, and compiles {recipe.variant} of that; use neo:fp32@{recipe.variant}."
    return refuse_in_cloud(recipe.variant, model)


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes: weights, and TVM's code."""
    weights = sum(_BYTES[recipe.scheme.name] * tensor.elements for tensor in needed_tensors(model))
    return weights + _CODE_BYTES + processor_bytes(model)


def plan(model: Model, recipe: Recipe) -> Stage:
    """Compile edgec's own network, or where there is none export to ONNX with fixed shapes and compile that."""
    shapes = {"sequence_length": recipe.shapes.sequence_length, "batch": recipe.shapes.batch}
    variant = recipe.variant or HERE[0]
    if variant not in HERE:
        asked = {"variant": variant, "lineage": lineage_of(model, recipe), **shapes}
        tools = ("torch", "onnx", "onnxruntime", "numpy", "transformers")
        function = "targets.neo.cloud.prepare:prepare"
        return Stage("prepare for SageMaker Neo", function, asked, tools, ensures=("model.tar.gz", "job.json"))
    arguments = {
        "variant": variant,
        "stored": _STORED[recipe.scheme.name],
        "lineage": lineage_of(model, recipe),
        **shapes,
    }
    if refuse_network(model) is None:
        compilers = ("apache-tvm", "torch", "numpy", "transformers")
        function = "targets.neo.compile:compile_network"
        # What is compiled for this machine is no other's.
        own = variant == HERE[0]
        return Stage(
            "compile with TVM", function, arguments, compilers, ensures=("compiled.so",), machine_dependent=own
        )
    to_export = {"task": model.task, **shapes}
    exporters = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers")
    export = Stage("export plain ONNX", "targets.neo.compile:export", to_export, exporters, ensures=("model.onnx",))
    return Stage(
        "compile with TVM",
        "targets.neo.compile:compile_export",
        arguments,
        ("apache-tvm", "onnx"),
        {"base": export},
        {"base": ("model.onnx",)},
        ("compiled.so",),
        machine_dependent=variant == HERE[0],
    )


TARGET = Target(
    name=NAME,
    extra="neo",
    schemes=SCHEMES,
    tasks=tasks_of(ENCODING),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
    variants=(*HERE, *VARIANTS),
    finish="targets.neo.cloud.drive:finish",
    # What AWS has for language models: Inferentia2, and the containers that `edgec kit --for sagemaker` fills.
    instead=(("neuron", "bf16"), ("gguf", "Q4_0"), ("onnx", "int4-rtn-g32")),
)
