"""Names and shapes of inputs as the files of a compiled model tell them.

The forms: `.meta` of neo-ai/neo-ai-dlr 457aabf (2022-08), dlr_common.cc; the graph of apache/tvm v0.8,
src/runtime/graph_executor/graph_executor.h (nodes, arg_nodes, attrs.shape with a shape for each node of one result).
"""

from __future__ import annotations

import json
from typing import Any

# -1 and null are sizes that are free.
Shapes = dict[str, list[int | None]]


def shapes_of_meta(data: bytes | None) -> Shapes | None:
    """Of the `.meta` file; None where it tells none."""
    try:
        told: Any = json.loads(data or b"")
        return {str(each["name"]): _sizes(each["shape"]) for each in told["Model"]["Inputs"]} or None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def shapes_of_graph(data: bytes | None) -> Shapes | None:
    """Of all that is put into the graph, weights too; None where it tells none."""
    try:
        told: Any = json.loads(data or b"")
        nodes, shapes = told["nodes"], told["attrs"]["shape"][1]
        rows = told.get("node_row_ptr") or range(len(nodes))
        found = {str(nodes[node]["name"]): _sizes(shapes[rows[node]]) for node in told["arg_nodes"]}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return found or None


def _sizes(told: Any) -> list[int | None]:
    if not isinstance(told, list) or any(each is not None and type(each) is not int for each in told):
        raise ValueError
    return [None if each == -1 else each for each in told]
