"""Graph rewrites for encoders that leave the function as it is and the runtime less to do.

`pack_attention`: query, key and value projections of one input become the packed `com.microsoft.Attention`. ONNX Runtime's
kernel then keeps heads apart from the start; its int8 form (`QAttention`) exists too, which `MultiHeadAttention` has not.

`skip_reshapes`: the attention operators give (batch, sequence, hidden) already, so what splits and joins it again goes.

`fold_biases`: where z = y + (xW + b) and y comes from a LayerNormalization, b moves into that norm's own bias, and what it
adds to the other readers of y is taken off their biases: y' = y + b gives y'U + (c - bU) = yU + c. A post-norm transformer
loses two passes over its activations in each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ATTENTION = ("Attention", "MultiHeadAttention")


@dataclass(frozen=True)
class _Projection:
    """x @ weight + bias: names in the graph, and the node that adds the bias (the operator itself when it does both)."""

    source: str
    weight: str
    bias: str
    adds_bias: Any


class _Graph:
    """An index of a graph that is being rewritten."""

    def __init__(self, document: Any) -> None:
        self.graph = document.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {output: node for node in self.graph.node for output in node.output}

    def array(self, name: str) -> Any:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def add_constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(value, name)
        self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def readers(self, name: str) -> list[Any]:
        return [node for node in self.graph.node if name in node.input]

    def is_output(self, name: str) -> bool:
        return any(output.name == name for output in self.graph.output)

    def biased(self, name: str) -> tuple[str, str, Any] | None:
        """(value, constant vector, node) when `name` is value + vector."""
        node = self.producers.get(name)
        if node is None or node.op_type != "Add":
            return None
        vectors = [item for item in node.input if item in self.constants and len(self.constants[item].dims) == 1]
        if len(vectors) != 1:
            return None
        return next(item for item in node.input if item != vectors[0]), vectors[0], node

    def prune(self) -> None:
        """Drop nodes and constants that nothing reads any more."""
        while True:
            used = {name for node in self.graph.node for name in node.input}
            used |= {output.name for output in self.graph.output}
            alive = [node for node in self.graph.node if any(name in used for name in node.output)]
            if len(alive) == len(self.graph.node):
                break
            del self.graph.node[:]
            self.graph.node.extend(alive)
        constants = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(constants)


def pack_attention(document: Any) -> int:
    """Replace each `MultiHeadAttention` whose inputs are projections of one tensor; return how many were replaced."""
    import numpy as np
    import onnx

    graph = _Graph(document)
    replaced = 0
    for node in graph.graph.node:
        if node.op_type != "MultiHeadAttention":
            continue
        projections = [_behind_reshapes(graph, name) for name in node.input[:3]]
        known = [projection for projection in projections if projection is not None]
        if len(known) < 3 or len({projection.source for projection in known}) > 1:
            continue
        weight = np.concatenate([graph.array(projection.weight) for projection in known], axis=1)
        bias = np.concatenate([graph.array(projection.bias) for projection in known])
        names = (
            graph.add_constant(f"{node.output[0]}_qkv_weight", weight),
            graph.add_constant(f"{node.output[0]}_qkv_bias", bias),
        )
        mask = [node.input[4]] if len(node.input) > 4 else []
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        node.CopyFrom(
            onnx.helper.make_node(
                "Attention",
                [known[0].source, *names, *mask],
                list(node.output),
                name=node.name,
                domain="com.microsoft",
                num_heads=attributes["num_heads"],
                scale=attributes["scale"],
            )
        )
        replaced += 1
    graph.prune()
    return replaced


def unpack_attention(document: Any) -> None:
    """Undo `pack_attention` as far as its product goes: one product, a split, and `MultiHeadAttention` with the bias.

    `Attention` multiplies in its own kernel, which takes float weights only; a product of its own can be quantized.
    """
    import onnx

    nodes = []
    for node in document.graph.node:
        if node.op_type != "Attention":
            nodes.append(node)
            continue
        product, parts = f"{node.output[0]}_qkv", [f"{node.output[0]}_{part}" for part in "qkv"]
        nodes.append(onnx.helper.make_node("MatMul", list(node.input[:2]), [product], name=f"{node.name}_qkv"))
        nodes.append(onnx.helper.make_node("Split", [product], parts, axis=-1, num_outputs=3))
        mask = [node.input[3]] if len(node.input) > 3 else [""]
        attention = onnx.helper.make_node(
            "MultiHeadAttention",
            [*parts, node.input[2], *mask],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
        )
        attention.attribute.extend(node.attribute)
        nodes.append(attention)
    del document.graph.node[:]
    document.graph.node.extend(nodes)


def _behind_reshapes(graph: _Graph, name: str) -> _Projection | None:
    """The projection with a bias that `name` is, reshapes and transposes aside."""
    while (node := graph.producers.get(name)) is not None and node.op_type in ("Reshape", "Transpose"):
        name = node.input[0]
    biased = graph.biased(name)
    if biased is None:
        return None
    value, bias, adds = biased
    product = graph.producers.get(value)
    if product is None or product.op_type != "MatMul" or product.input[1] not in graph.constants:
        return None
    return _Projection(product.input[0], product.input[1], bias, adds)


def skip_reshapes(document: Any) -> int:
    """Let products read the attention's output directly; return how many now do."""
    graph = _Graph(document)
    skipped = 0
    for node in graph.graph.node:
        if node.op_type != "MatMul":
            continue
        name = node.input[0]
        while (producer := graph.producers.get(name)) is not None and producer.op_type == "Reshape":
            name = producer.input[0]
        if producer is not None and producer.op_type in _ATTENTION and name != node.input[0]:
            node.input[0] = name
            skipped += 1
    graph.prune()
    return skipped


def fold_biases(document: Any) -> int:
    """Fold biases into the norms before them, as the head of this file says; return how many additions went."""
    graph = _Graph(document)
    folded = 0
    for norm in graph.graph.node:
        if norm.op_type == "LayerNormalization" and len(norm.input) == 3 and norm.input[2] in graph.constants:
            folded += _fold_into(graph, norm)
    graph.prune()
    return folded


def _fold_into(graph: _Graph, norm: Any) -> int:
    import numpy as np

    name = norm.output[0]
    if graph.is_output(name):
        return 0
    residuals, projections = [], []
    for reader in graph.readers(name):
        if reader.op_type == "Add" and not any(item in graph.constants for item in reader.input):
            residuals.append(reader)
        elif (projection := _projection_of(graph, reader, name)) is not None:
            projections.append(projection)
        else:
            return 0
    if len(residuals) != 1:
        return 0
    other = next((item for item in residuals[0].input if item != name), None)
    biased = graph.biased(other) if other is not None else None
    if other is None or biased is None or len(graph.readers(other)) != 1 or graph.is_output(other):
        return 0
    value, bias_name, _ = biased
    bias = graph.array(bias_name).astype(np.float64)
    shifted = graph.array(norm.input[2]).astype(np.float64) + bias
    norm.input[2] = graph.add_constant(f"{name}_bias", shifted.astype(np.float32))
    for number, projection in enumerate(projections):
        moved = bias @ graph.array(projection.weight).astype(np.float64)
        left = (graph.array(projection.bias).astype(np.float64) - moved).astype(np.float32)
        position = list(projection.adds_bias.input).index(projection.bias)
        projection.adds_bias.input[position] = graph.add_constant(f"{name}_reader{number}_bias", left)
    residuals[0].input[list(residuals[0].input).index(other)] = value
    return 1


def _projection_of(graph: _Graph, reader: Any, name: str) -> _Projection | None:
    """The reader of `name` as a projection with a bias of its own; None when it is something else."""
    if reader.op_type == "Attention" and reader.input[0] == name and reader.input[1] in graph.constants:
        return _Projection(name, reader.input[1], reader.input[2], reader)
    if reader.op_type == "MatMul" and reader.input[0] == name and reader.input[1] in graph.constants:
        after = graph.readers(reader.output[0])
        if len(after) == 1 and (biased := graph.biased(after[0].output[0])) is not None:
            return _Projection(name, reader.input[1], biased[1], after[0])
    return None
