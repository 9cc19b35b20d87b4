"""An encoder in a TFLite file: the float32 graph by litert_torch, and the package of it, with our codes where asked."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from types import MethodType
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from compiler.errors import UnusableInput
from compiler.formats.tflite import name_of, read_tflite
from compiler.lineage import model_of, write_lineage
from compiler.package import FixedShapes, Graph, Lowered, Port
from compiler.pretrained import example_inputs, load_encoder
from compiler.quantize.plan import copy_tables
from targets.tflite.account import stored_weights
from targets.tflite.codes import carry
from targets.tflite.halves import store_halves
from targets.tflite.placement import place_files
from targets.tflite.target import FILE, MAIN


def convert(model: str, out: str, sequence_length: int, batch: int, task: str) -> None:
    """Write `model.tflite` with the signature `main`: a stage.

    Token ids are int32 (batch, sequence_length), pictures float32 (batch, channels, height, width); ports go by name.

    Raises:
        UnusableInput: litert_torch has no way for an operator of it.
    """
    import litert_torch
    import torch

    encoder = load_encoder(Path(model), task)
    given = example_inputs(encoder, batch, sequence_length)
    examples = tuple(tensor if tensor.is_floating_point() else tensor.to(torch.int32) for tensor in given)

    class Named(torch.nn.Module):
        """What goes in and comes out under names, which the converter writes into the signature."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder.module

        def forward(self, **inputs: Any) -> dict[str, Any]:
            found = self.encoder(*(inputs[name] for name in encoder.input_names))
            return dict(zip(encoder.output_names, found, strict=True))

    _keep_weights_apart(encoder.module)
    # The converter writes this name into the names of tensors: it stays, wherever the class moves.
    Named.__module__, Named.__qualname__ = "edgec", "Encoder"
    named_examples = dict(zip(encoder.input_names, examples, strict=True))
    try:
        made = litert_torch.signature(MAIN, Named().eval(), sample_kwargs=named_examples).convert()
    except Exception as error:  # of any class: whatever an operator's lowering meets
        if (met := _met(error)) is None:
            raise
        raise UnusableInput(
            f"litert_torch cannot convert {Path(model).name}: it has no way for {met}. `edgec inspect` tells "
            "what other targets take."
        ) from error
    made.export(str(Path(out) / FILE))


def _met(error: BaseException) -> str | None:
    """The operator that was at work when a conversion failed, and the module of the model that it came from; None where it
    failed at something else."""
    import torch

    place, found = error.__traceback__, None
    while place is not None:
        nodes = [each for each in place.tb_frame.f_locals.values() if isinstance(each, torch.fx.Node)]
        found = next((each for each in nodes if each.op == "call_function"), found)
        place = place.tb_next
    if found is None:
        return None
    modules = [path for path, _ in (found.meta.get("nn_module_stack") or {}).values() if path]
    operator = str(found.target)
    return (
        f"the operator {operator} of {modules[-1].removeprefix('encoder.model.')}"
        if modules
        else f"the operator {operator}"
    )


def _keep_weights_apart(module: Any) -> None:
    """Keep the converter from multiplying a norm's factors into the matrix behind it, which would change its values."""
    import torch
    from litert_torch.backend.optimization_barrier import optimization_barrier

    def forward(layer: Any, given: Any) -> Any:
        # Of a barrier with one value litert_torch 0.10 cannot take the result.
        apart, _ = optimization_barrier(given, given)
        return torch.nn.functional.linear(apart, layer.weight, layer.bias)

    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]


def pack(
    model: str,
    base: str,
    out: str,
    scheme: str,
    sequence_length: int,
    batch: int,
    lineage: dict[str, str],
    codes: str | None = None,
) -> dict[str, Any]:
    """Store the float32 file by the scheme, and add tokenizer or image processor, config and lineage: a stage."""
    folder, source = Path(out), Path(base) / FILE
    if codes is not None:
        carry(source, Path(model), Path(codes), folder / FILE)
        copy_tables(Path(codes), folder)
    elif scheme == "fp16":
        store_halves(source, folder / FILE)
    else:
        shutil.copyfile(source, folder / FILE)
    read = model_of(Path(model), lineage)
    write_lineage(read, lineage, folder, processor=True)
    lengths = (sequence_length,) if read.takes == "text" else ()
    document = read_tflite(folder / FILE)
    (signature,) = document.signatureDefs
    tensors = document.subgraphs[signature.subgraphIndex].tensors
    return asdict(
        Lowered(
            runtime="litert",
            graphs=(
                Graph(
                    MAIN,
                    (FILE,),
                    tuple(_port(each, tensors) for each in signature.inputs),
                    tuple(_port(each, tensors) for each in signature.outputs),
                ),
            ),
            weights=stored_weights(document),
            placement=place_files([folder / FILE]),
            shapes=FixedShapes(sequence_lengths=lengths, longest_sequence=max(lengths, default=None), batch=batch),
        )
    )


def _port(entry: Any, tensors: list[Any]) -> Port:
    tensor = tensors[entry.tensorIndex]
    dtype = "int32" if tensor.type == schema.TensorType.INT32 else "float32"
    return Port(name_of(entry), dtype, tuple(int(size) for size in tensor.shape))
