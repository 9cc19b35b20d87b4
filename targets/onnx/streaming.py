"""GenAI's builder with weights that are cast and quantized while they are written, a strip at a time.

As it is, the builder casts whole matrices to float32, and for int4 and int8 holds all of them in one protobuf message: three
times a bfloat16 model's bytes and more. Here an initializer knows how to write itself, and the codes come from the same
function of ONNX Runtime's, column by column, so that the files have the same bytes (onnxruntime_genai/models/builders/base.py:
save_model, make_initializer and to_nbits).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from compiler.memory import give_back_memory, give_back_pages

_STRIP_BYTES = 8 << 20
Arrays = Callable[[], Iterable[NDArray[Any]]]


class StreamedTensor(ir.LazyTensor):
    """A tensor whose bytes are made when it is written, and never are all in memory.

    Attributes:
        arrays: its bytes, in order.
        source: the weights that it is made of; None where that is not known.
    """

    __slots__ = ("arrays", "source")

    def __init__(
        self, name: str, dtype: ir.DataType, shape: Iterable[int], arrays: Arrays, source: torch.Tensor | None = None
    ) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.arrays, self.source = arrays, source

    def _whole(self) -> ir.TensorProtocol:
        data = b"".join(np.ascontiguousarray(each).tobytes() for each in self.arrays())
        return ir.Tensor(np.frombuffer(data, self.dtype.numpy()).reshape(self.shape.numpy()), dtype=self.dtype)

    def tofile(self, file: BinaryIO) -> None:
        """Write its bytes, as `ir.save` does with each tensor of an external data file."""
        for array in self.arrays():
            np.ascontiguousarray(array).tofile(file)
        give_back_memory()
        if self.source is not None:
            give_back_pages(self.source.data_ptr(), self.source.nbytes)


def stream_weights() -> None:
    """Have the builder of this process write weights so. What it quantizes in another way than by default stays as it is."""
    # The builder's package puts its own folder on the path and imports what is in it from there.
    importlib.import_module("onnxruntime_genai.models")
    base: Any = importlib.import_module("builders.base")

    given_initializer, given_quantizer = base.Model.make_initializer, base.Model.to_nbits

    def make_initializer(self: Any, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
        given_initializer(self, tensor, name, to=to, raw=raw)
        if to is not None and not raw and isinstance(tensor, torch.Tensor) and tensor.dim():
            source, dtype = tensor.detach(), base.to_torch_dtype(to)
            self.values[name].const_value = StreamedTensor(name, to, source.shape, _cast(source, dtype), source)

    def to_nbits(self: Any) -> ir.Model:
        return _quantized(self) if _is_plain(self) else given_quantizer(self)

    base.Model.make_initializer, base.Model.to_nbits = make_initializer, to_nbits


def _cast(source: torch.Tensor, dtype: torch.dtype) -> Arrays:
    # NumPy has no bfloat16, so bytes are passed on.
    return lambda: (strip.view(torch.uint8).numpy() for strip in _strips(source, 0, dtype))


def _strips(source: torch.Tensor, axis: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A matrix cast, in pieces along an axis of some megabytes each."""
    count = source.shape[axis]
    step = max(1, _STRIP_BYTES * count // max(1, 4 * source.numel()))
    for begin in range(0, count, step):
        yield source.narrow(axis, begin, min(step, count - begin)).to(dtype).contiguous()


def _is_plain(builder: Any) -> bool:
    """Whether it quantizes products alone, by one number of bits and ONNX Runtime's own rounding."""
    asked = builder.quant_attrs
    special = ("int4_customized_weight_config", "exact_quant_overrides", "exact_quant_override_names")
    return (
        getattr(builder, "quantization_algo", "default") == "default"
        and builder.quant_type is None
        and not any(getattr(builder, name, None) for name in special)
        and asked["is_symmetric"]
        and not asked["use_qdq"]
        and not asked["nodes_to_exclude"]
        and all(
            isinstance(node.inputs[1].const_value, StreamedTensor)
            for node in builder.model.graph
            if node.op_type == "MatMul" and node.inputs[1].const_value is not None
        )
    )


def _quantized(builder: Any) -> ir.Model:
    """The builder's graph with MatMulNBits in the place of each product with weights; codes come when they are written."""
    graph = builder.model.graph
    for node in [each for each in graph if each.op_type == "MatMul" and each.inputs[1].const_value is not None]:
        made = _product(builder, node)
        old, new = node.outputs[0], made.outputs[0]
        new.name, new.dtype, new.shape = old.name, old.dtype, old.shape
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, new)
        for place, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[place] = new
        graph.insert_before(node, made)
        graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if not value.uses():
            del graph.initializers[value.name]
    return builder.model


def _product(builder: Any, node: ir.Node) -> ir.Node:
    """MatMulNBits for a MatMul: codes uint8 (columns, groups, bytes of a group), scales float32 (columns, groups)."""
    asked: Any = builder.quant_attrs
    weight: Any = node.inputs[1]
    bits, block = asked["bits"], asked["matmul_block_size"]
    (rows, columns), groups = weight.shape.numpy(), -(-weight.shape.numpy()[0] // block)
    codes, scales = _codes_and_scales(weight.const_value.source, bits, block)
    inputs = [node.inputs[0]]
    for name, dtype, shape, arrays in (
        (f"{weight.name}_Q{bits}", ir.DataType.UINT8, (columns, groups, block * bits // 8), codes),
        (f"{weight.name}_scales", ir.DataType.FLOAT, (columns, groups), scales),
    ):
        value = builder.make_value(name, dtype, shape)
        value.const_value = StreamedTensor(name, dtype, shape, arrays, weight.const_value.source)
        builder.model.graph.register_initializer(value)
        inputs.append(value)
    attributes = {
        "K": rows, "N": columns, "accuracy_level": asked["accuracy_level"], "bits": bits, "block_size": block,
    }  # fmt: skip
    named = f"{node.name}_Q{bits}"
    return ir.node("MatMulNBits", inputs, attributes=attributes, domain="com.microsoft", name=named)


def _codes_and_scales(source: torch.Tensor, bits: int, block: int) -> tuple[Arrays, Arrays]:
    """What writes the codes of a matrix (rows, columns), and what writes its scales; they are made together, codes first."""
    quantizer = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block, True, bits=bits))
    kept: list[NDArray[np.float32]] = []

    def codes() -> Iterator[NDArray[np.uint8]]:
        found = []
        for strip in _strips(source, 1, torch.float32):
            packed, scale, _ = quantizer.qbits_block_quant(strip.numpy())
            found.append(scale)
            yield packed
        kept.append(np.concatenate(found))

    def scales() -> Iterator[NDArray[np.float32]]:
        if not kept:
            for _ in codes():
                pass
        yield kept.pop()

    return codes, scales
