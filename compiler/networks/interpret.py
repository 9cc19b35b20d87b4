"""A re-authored network, step by step: what every target does that writes one in operators of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import fx, nn


class _Tracer(fx.Tracer):
    """Stops at some parts."""

    def __init__(self, leaves: Collection[type]) -> None:
        super().__init__()
        self._leaves = tuple(leaves)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self._leaves)


def interpret(
    network: nn.Module,
    leaves: Collection[type],
    taken: Callable[[str], Any],
    part: Callable[..., Any],
    function: Callable[..., Any],
) -> tuple[Any, ...]:
    """What `forward` returns, in values of a target's own.

    Args:
        network: its parameters may be on the meta device.
        leaves: classes of parts that are not looked into.
        taken: the value of an argument of `forward` by its name; None for one with a default that is left out.
        part: makes the value of a part: is called with its name, the module, and the arguments that it is called with.
        function: makes the value of a function of torch, or of a tensor's method by its name: is called with that, and the
            arguments that it is called with.

    Raises:
        TypeError: the network uses a tensor outside its parts, which no target has a value for.
    """
    values: dict[fx.Node, Any] = {}
    for node in _Tracer(leaves).trace(network).nodes:
        arguments = fx.map_arg(node.args, values.get)
        named = fx.map_arg(node.kwargs, values.get)
        if node.op == "placeholder":
            values[node] = taken(node.target)
        elif node.op == "get_attr":
            raise TypeError(f"the network uses the tensor {node.target} outside its parts")
        elif node.op == "call_module":
            values[node] = part(node.target, network.get_submodule(node.target), *arguments, **named)
        elif node.op in ("call_function", "call_method"):
            values[node] = function(node.target, *arguments, **named)
        else:
            result = arguments[0]
            return tuple(result) if isinstance(result, tuple | list) else (result,)
    raise TypeError("the network returns nothing")
