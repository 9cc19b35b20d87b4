"""One graph rewrite: query, key and value projections of one input become the packed `com.microsoft.Attention`.

ONNX Runtime's kernel then multiplies once with the packed matrix and keeps heads apart from the start; its int8 form
(`QAttention`) exists too, which `MultiHeadAttention` has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Projection:
    """x @ weight + bias, as three names in the graph."""

    source: str
    weight: str
    bias: str


def pack_attention(document: Any) -> int:
    """Replace each `MultiHeadAttention` whose inputs are projections of one tensor; return how many were replaced."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = document.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    replaced = 0
    for node in graph.node:
        if node.op_type != "MultiHeadAttention":
            continue
        projections = [_projection(name, producers, constants) for name in node.input[:3]]
        known = [projection for projection in projections if projection is not None]
        if len(known) < 3 or len({projection.source for projection in known}) > 1:
            continue
        weight = np.concatenate([numpy_helper.to_array(constants[p.weight]) for p in known], axis=1)
        bias = np.concatenate([numpy_helper.to_array(constants[p.bias]) for p in known])
        names = (f"{node.output[0]}_qkv_weight", f"{node.output[0]}_qkv_bias")
        graph.initializer.append(numpy_helper.from_array(weight, names[0]))
        graph.initializer.append(numpy_helper.from_array(bias, names[1]))
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
    _prune(graph)
    return replaced


def _projection(name: str, producers: dict[str, Any], constants: dict[str, Any]) -> _Projection | None:
    """Follow a value back through reshapes and transposes to `MatMul` and `Add` with constants."""
    bias = ""
    while node := producers.get(name):
        if node.op_type in ("Reshape", "Transpose"):
            name = node.input[0]
        elif node.op_type == "Add" and not bias:
            constant = [item for item in node.input if item in constants]
            if len(constant) != 1:
                return None
            bias = constant[0]
            name = next(item for item in node.input if item != bias)
        elif node.op_type == "MatMul" and bias and node.input[1] in constants:
            return _Projection(node.input[0], node.input[1], bias)
        else:
            return None
    return None


def _prune(graph: Any) -> None:
    """Drop nodes and constants that nothing reads any more."""
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        alive = [node for node in graph.node if any(name in used for name in node.output)]
        if len(alive) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(alive)
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
