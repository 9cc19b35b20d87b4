"""The stages that compile for TVM: of edgec's own network where there is one, else of an ONNX export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.support import cc

from compiler.errors import UnusableInput
from compiler.lineage import model_of, write_lineage
from compiler.model import Model
from compiler.package import FixedShapes, Graph, Lowered, Platform, Port, StoredWeights
from targets.neo import kernels
from targets.neo.machines import Machine, machine_of
from targets.neo.network import lower_network
from targets.neo.schedules import schedule

ARTIFACT = "compiled.so"
_TRANSFORM = relax.transform


def compile_network(
    model: str, out: str, variant: str, stored: str, sequence_length: int, batch: int, lineage: dict[str, str]
) -> dict[str, Any]:
    """Compile edgec's own network of an encoder to `compiled.so`, weights inside."""
    import torch

    from compiler.networks.encoder import build_encoder
    from compiler.networks.encoder_family import describe_encoder, encoder_sources
    from compiler.networks.families import encoder_family
    from compiler.networks.sentence import with_sentence
    from compiler.networks.weights import read_source

    source = model_of(Path(model), lineage)
    family = encoder_family(source)
    config = describe_encoder(source, family)
    with torch.device("meta"):
        network = build_encoder(config, "plain").eval()
    shapes = {name: tuple(values.shape) for name, values in network.named_parameters()}
    infos, sources = with_sentence(source, encoder_sources(source, family, config))

    def read(name: str) -> NDArray[np.float32]:
        return np.array(read_source(infos, sources[name], shapes[name]))

    shape, dtype = ((batch, *config.image[0]), "float32") if config.image else ((batch, sequence_length), "int64")
    inputs: dict[str, tuple[tuple[int, ...], str]] = dict.fromkeys(network.input_names, (shape, dtype))
    machine = machine_of(variant)
    module = lower_network(network, read, inputs, source.outputs, machine, stored)
    length = None if config.image else sequence_length
    weights = _account(network, "fp32" if stored == "float32" else "fp16")
    return _compiled(module, machine, Path(out), source, lineage, stored, weights, length, batch)


def _account(network: Any, short: str) -> StoredWeights:
    """Tables and matrices that are multiplied lie there as asked; all else is float32."""
    from compiler.networks import parts

    names = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, parts.Projection | parts.Embedding | parts.Patches)
    }
    counts = {short: 0, "fp32": 0}
    for name, values in network.named_parameters():
        counts[short if name in names else "fp32"] += values.numel()
    bits = sum({"fp32": 32.0, "fp16": 16.0}[kind] * count for kind, count in counts.items())
    return StoredWeights(bits / sum(counts.values()), {kind: count for kind, count in counts.items() if count})


def export(model: str, out: str, sequence_length: int, batch: int, task: str) -> None:
    """Write `model.onnx` in fp32, every shape fixed, attention in plain operators."""
    import torch

    from compiler.pretrained import example_inputs, load_encoder

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


def compile_export(
    model: str,
    base: str,
    out: str,
    variant: str,
    stored: str,
    sequence_length: int,
    batch: int,
    lineage: dict[str, str],
) -> dict[str, Any]:
    """Compile an ONNX export to `compiled.so`, weights inside.

    Raises:
        UnusableInput: TVM lacks an operator.
    """
    import onnx
    from tvm.relax.frontend.onnx import from_onnx

    source, machine = model_of(Path(model), lineage), machine_of(variant)
    document = onnx.load(str(Path(base) / "model.onnx"))
    try:
        module = from_onnx(document, keep_params_in_input=False)
    except tvm.error.OpNotImplemented as error:
        lacking = str(error).rpartition(":")[2].strip()
        raise UnusableInput(
            f"TVM cannot compile {source.name}: it has no way for the ONNX operator {lacking}. `edgec inspect` tells what "
            "other targets take."
        ) from error
    length = sequence_length if source.takes == "text" else None
    weights = StoredWeights(32.0, {"fp32": source.parameters})
    return _compiled(module, machine, Path(out), source, lineage, stored, weights, length, batch)


def _compiled(
    module: Any,
    machine: Machine,
    folder: Path,
    source: Model,
    lineage: Mapping[str, str],
    stored: str,
    weights: StoredWeights,
    length: int | None,
    batch: int,
) -> dict[str, Any]:
    """Write the library and what belongs beside it."""
    main = module["main"]
    taken = tuple(_port(each.name, each.ty) for each in main.params)
    executable = relax.build(optimized(module, machine, stored), target=tvm.target.Target(dict(machine.llvm)))
    link = {} if machine.linker is None else {"fcompile": cc.cross_compiler(machine.linker)}
    executable.export_library(str(folder / ARTIFACT), **link)
    write_lineage(source, lineage, folder, processor=True)
    result = main.ret_ty
    types = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    given = tuple(_port(name, each) for name, each in zip(source.outputs, types, strict=True))
    lengths = (length,) if length else ()
    return asdict(
        Lowered(
            runtime="tvm",
            graphs=(Graph("main", (ARTIFACT,), taken, given),),
            weights=weights,
            shapes=FixedShapes(sequence_lengths=lengths, longest_sequence=length, batch=batch),
            platform=Platform(machine.system, machine.machine, machine.instructions),
        )
    )


def _port(name: str, kind: Any) -> Port:
    return Port(name, str(kind.dtype), tuple(int(size) for size in kind.shape))


def optimized(module: Any, machine: Machine, stored: str) -> Any:
    """The module with operators as loops, what follows products fused into them, and loops arranged for the machine."""
    passes = [
        _TRANSFORM.DecomposeOpsForInference(),
        _TRANSFORM.CanonicalizeBindings(),
        _TRANSFORM.FastMathTransform(),
        _TRANSFORM.FoldConstant(),
        _TRANSFORM.LegalizeOps(
            {"relax.matmul": _packing(machine, stored), "relax.nn.conv2d": _filters(machine, stored)}
        ),
        _TRANSFORM.RewriteDataflowReshape(),
        _TRANSFORM.AnnotateTIROpPattern(),
        _TRANSFORM.FuseOps(),
        _TRANSFORM.FuseTIR(),
        _TRANSFORM.DeadCodeElimination(),
    ]
    return schedule(tvm.transform.Sequential(passes)(module), machine)


def _packing(machine: Machine, stored: str) -> Any:
    """How products with matrices that the program holds become tiles."""

    def legalize(builder: Any, call: Any) -> Any:
        x, weight = call.args
        if not isinstance(weight, relax.Constant) or weight.ty.ndim != 2:
            return _TRANSFORM.legalize_ops.linear_algebra._matmul(builder, call)
        outputs = int(weight.ty.shape[1])
        packed = relax.const(kernels.pack(weight.data.numpy().astype(stored), machine.width_for(outputs)))
        made = builder.emit_te(kernels.packed_product, x, packed, primfunc_name_hint="packed_product")
        if outputs % machine.width_for(outputs):
            made = builder.emit(relax.op.strided_slice(made, [made.ty.ndim - 1], [0], [outputs]))
        return made

    return legalize


def _filters(machine: Machine, stored: str) -> Any:
    """How convolutions with filters that the program holds become tiles: channels side by side, places one below another."""

    def legalize(builder: Any, call: Any) -> Any:
        x, weight = call.args
        attributes = call.attrs
        plain = (
            isinstance(weight, relax.Constant)
            and attributes.groups == 1
            and attributes.data_layout == "NCHW"
            and attributes.kernel_layout == "OIHW"
            and [int(each) for each in attributes.dilation] == [1, 1]
        )
        if not plain:
            return _TRANSFORM.legalize_ops.nn._nn_conv2d(builder, call)
        top, left, bottom, right = (int(each) for each in attributes.padding)
        if top or left or bottom or right:
            x = builder.emit(relax.op.nn.pad(x, [0, 0, 0, 0, top, bottom, left, right]))
        outputs = int(weight.ty.shape[0])
        packed = relax.const(kernels.pack_filters(weight.data.numpy().astype(stored), machine.width_for(outputs)))
        strides = tuple(int(each) for each in attributes.strides)
        return builder.call_te(
            kernels.packed_convolution, x, packed, strides, outputs, primfunc_name_hint="packed_convolution"
        )

    return legalize
