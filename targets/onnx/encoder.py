"""An encoder as one ONNX file, exported so that ONNX Runtime runs its fused attention kernels.

The plain export spells attention out in a dozen operators that ONNX Runtime's own optimizer no longer recognises. Here
transformers is given an attention function that traces to one `com.microsoft.MultiHeadAttention` node with the padding
mask as it is (ContribOperators.md of ONNX Runtime), for every architecture that uses transformers' attention interface.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.errors import CheckFailed
from compiler.lineage import about, model_of, write_lineage
from compiler.package import FixedShapes, Graph, Lowered, Port, StoredWeights
from compiler.pretrained import Encoder, example_inputs, load_encoder
from targets.onnx.codes import carry
from targets.onnx.fuse import fold_biases, pack_attention, skip_reshapes, unpack_attention
from targets.onnx.metadata import describe
from targets.onnx.weights import read_weights

_ATTENTION = "edgec_fused"


def _register_attention() -> None:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    def fused(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **rest: Any
    ) -> tuple[Any, None]:
        batch, heads, sequence, size = query.shape
        flat = [tensor.transpose(1, 2).reshape(batch, -1, heads * size) for tensor in (query, key, value)]
        inputs = flat if attention_mask is None else [*flat, None, attention_mask]
        output = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            inputs,
            {"num_heads": heads, "scale": float(scaling if scaling is not None else size**-0.5)},
            dtype=query.dtype,
            shape=flat[0].shape,
            version=1,
        )
        return output.reshape(batch, sequence, heads, size), None

    def padding_mask(*args: Any, attention_mask: Any = None, **rest: Any) -> Any:
        return None if attention_mask is None else attention_mask.to(torch.int32)

    AttentionInterface.register(_ATTENTION, fused)
    AttentionMaskInterface.register(_ATTENTION, padding_mask)


def export(model: str, out: str, task: str) -> None:
    """Write `model.onnx` in fp32 with free batch and sequence sizes."""
    import torch

    _register_attention()
    encoder = load_encoder(Path(model), task, _ATTENTION)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    axes = {0: batch} if encoder.image_shape else {0: batch, 1: sequence}
    program: Any = torch.onnx.export(
        encoder.module,
        example_inputs(encoder, 2, 40),
        input_names=list(encoder.input_names),
        output_names=list(encoder.output_names),
        dynamic_shapes=(tuple(axes for _ in encoder.input_names),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    path = Path(out) / "model.onnx"
    program.save(str(path), external_data=False)
    _require_fused_attention(path, encoder)
    _tidy(path)


def _require_fused_attention(path: Path, encoder: Encoder) -> None:
    """A model whose attention did not come through transformers' interface must not pass as fused."""
    import onnx

    operators = {node.op_type for node in onnx.load(str(path)).graph.node}
    if "MultiHeadAttention" not in operators:
        raise CheckFailed(
            "attention",
            "The exported graph has no fused attention: the architecture does not use transformers' attention.",
        )


def _tidy(path: Path) -> None:
    """Pack what the exporter leaves apart, and drop the names of source files that it writes into the graph."""
    import onnx

    document = onnx.load(str(path))
    pack_attention(document)
    skip_reshapes(document)
    for node in document.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in (*document.graph.value_info, *document.graph.input, *document.graph.output):
        del value.metadata_props[:]
    del document.metadata_props[:]
    del document.graph.metadata_props[:]
    del document.graph.value_info[:]
    onnx.save(document, str(path))


def pack(model: str, base: str, out: str, scheme: str, lineage: dict[str, str]) -> dict[str, Any]:
    """Store the exported graph by `scheme` and add tokenizer, config and lineage."""
    _STORE[scheme](Path(base) / "model.onnx", Path(out) / "model.onnx")
    return _finish(Path(model), Path(out), scheme, lineage)


def pack_codes(model: str, base: str, codes: str, out: str, scheme: str, lineage: dict[str, str]) -> dict[str, Any]:
    """Put our codes into the exported graph, which lies in the folder `base`."""
    import onnx

    folder, artifact = Path(out), Path(out) / "model.onnx"
    document = onnx.load(str(Path(base) / "model.onnx"))
    unpack_attention(document)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        opened = Path(temporary) / "model.onnx"
        onnx.save(document, str(opened))
        carry(opened, Path(model), Path(codes), artifact)
    shutil.copyfile(Path(codes) / "layers.json", folder / "layers.json")
    return _finish(Path(model), folder, scheme, lineage)


def _finish(model: Path, folder: Path, scheme: str, lineage: dict[str, str]) -> dict[str, Any]:
    """Write tokenizer, config and lineage beside the graph, and describe it."""
    artifact = folder / "model.onnx"
    source = model_of(model, lineage)
    write_lineage(source, lineage, folder, processor=True)
    describe(artifact, about(source, lineage["recipe"]))
    weights = read_weights(artifact, scheme)
    return asdict(
        Lowered(
            runtime="onnxruntime",
            graphs=(Graph("main", ("model.onnx",), _ports(artifact, "input"), _ports(artifact, "output")),),
            shapes=FixedShapes(longest_sequence=source.geometry.context_length),
            weights=StoredWeights(weights.effective_bits_per_weight, weights.types, weights.deviations),
        )
    )


def _store_fp32(exported: Path, artifact: Path) -> None:
    import onnx

    document = onnx.load(str(exported))
    # Not for int8: its kernels add a bias while they scale their sums back, so there is nothing to save.
    fold_biases(document)
    onnx.save(document, str(artifact))


def _store_fp16(exported: Path, artifact: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    document = convert_float_to_float16(onnx.load(str(exported)), keep_io_types=True, disable_shape_infer=True)
    onnx.save(document, str(artifact))


def _store_int8(exported: Path, artifact: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        exported,
        artifact,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": 1},
    )


_STORE = {"fp32": _store_fp32, "fp16": _store_fp16, "int8": _store_int8}


def _ports(artifact: Path, side: str) -> tuple[Port, ...]:
    import onnx

    names: Mapping[int, str] = {1: "float32", 7: "int64", 10: "float16"}
    graph = onnx.load(str(artifact), load_external_data=False).graph
    ports = []
    for value in getattr(graph, side):
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        ports.append(Port(value.name, names[tensor.elem_type], shape))
    return tuple(ports)
