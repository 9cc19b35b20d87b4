"""From a re-authored network to an HLO module, by way of JAX.

The network (layout `plain`) is traced symbolically; its parts (compiler/networks/parts.py) are leaves, each of which becomes
a small group of JAX's operators, and so are the few functions of torch that networks call. Parameters are parameters of the
module too, so that nothing has their values but the files beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax
from torch import nn
from torch.nn import functional

from compiler.formats.hlo import (
    alias,
    forget_sources,
    lay_out_by_rows,
    name_tensors,
    parse_module,
    renumber,
    use_replica_groups,
    write_module,
)
from compiler.networks import kv_cache
from compiler.networks.interpret import interpret
from targets.neuron import arithmetic
from targets.neuron.parts import EMITS, Emit, Weights


@dataclass(frozen=True)
class Argument:
    """An input, a state or a parameter of a module: its name, element type as numpy has it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a module takes and gives, in this order.

    Attributes:
        inputs: what each call brings.
        states: what stays: each is given back under its name, in its own place.
        parameters: of the network; matrices in the type that they are multiplied in.
        outputs: names of the results before the states.
        dtype: in which matrices are multiplied.
    """

    inputs: tuple[Argument, ...]
    states: tuple[Argument, ...]
    parameters: tuple[Argument, ...]
    outputs: tuple[str, ...]
    dtype: str


def lower_network(network: nn.Module, signature: Signature, ranks: int, head_by_rank: bool, name: str) -> bytes:
    """The HLO module of a network whose parameters may be on the meta device.

    The arguments of `forward` that have the names of inputs are those; `keys` and `values` are lists of states, one a layer.
    """
    arguments = (*signature.inputs, *signature.states, *signature.parameters)
    functions: dict[Any, Emit] = {**_FUNCTIONS, torch.matmul: partial(arithmetic.matmul, dtype=signature.dtype)}

    def computed(*given: Array) -> tuple[Array, ...]:
        values = dict(zip((each.name for each in arguments), given, strict=True))
        weights = Weights(values, ranks, head_by_rank)
        taken: dict[str, Any] = {each.name: values[each.name] for each in signature.inputs}
        # `forward` of a decoder calls its ids tokens.
        taken["tokens"] = taken.get("input_ids")
        for cache in ("keys", "values"):
            taken[cache] = [values[each.name] for each in signature.states if each.name.startswith(f"{cache}_")]

        def part(name: str, module: nn.Module, *of: Any, **named: Any) -> Any:
            return EMITS[type(module)](module, weights.part(name), *of, **named)

        def call(target: Any, *of: Any, **named: Any) -> Any:
            return functions[target](*of, **named)

        results = interpret(network, EMITS, taken.get, part, call)
        outputs = [each for each in results if not isinstance(each, list)]
        caches = [each for each in results if isinstance(each, list)]
        return (*outputs, *(each for layers in caches for each in layers))

    shapes = [jax.ShapeDtypeStruct(each.shape, jnp.dtype(each.dtype)) for each in arguments]
    computation: Any = jax.jit(computed, keep_unused=True).lower(*shapes).compiler_ir("hlo")
    module = parse_module(computation.as_serialized_hlo_module_proto(), name)
    module.name = name
    name_tensors(
        module, [each.name for each in arguments], [*signature.outputs, *(each.name for each in signature.states)]
    )
    first_result, first_parameter = len(signature.outputs), len(signature.inputs)
    alias(module, {first_result + n: first_parameter + n for n in range(len(signature.states))})
    forget_sources(module)
    lay_out_by_rows(module)
    use_replica_groups(module)
    renumber(module)
    return write_module(module)


def _split(x: Array, sizes: int | Sequence[int], dim: int) -> list[Array]:
    every = [sizes] * (x.shape[dim] // sizes) if isinstance(sizes, int) else list(sizes)
    found, start = [], 0
    for size in every:
        found.append(lax.slice_in_dim(x, start, start + size, axis=dim))
        start += size
    return found


def _unflatten(x: Array, axis: int, sizes: Sequence[int]) -> Array:
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def _store(cache: list[Array], layer: int, axis: int, position: Array, new: Array) -> tuple[list[Array], Array]:
    """States are lists of a layer's each, (1, kv_heads, context, head_dim)."""
    start = [jnp.zeros((), jnp.int32)] * 4
    start[axis] = position[0]
    updated = lax.dynamic_update_slice(cache[layer], new.astype(cache[layer].dtype), start)
    return [*cache[:layer], updated, *cache[layer + 1 :]], updated


def _attend(query: Array, keys: Array, values: Array, hidden: Array, cap: float | None) -> Array:
    """All query heads of one head of keys and values at once."""
    kv_heads, group = keys.shape[1], query.shape[1] // keys.shape[1]
    length, width = query.shape[2:]
    grouped = query.reshape(1, kv_heads, group * length, width)
    scores = arithmetic.product(grouped, keys, (3, 3), (0, 1))
    if cap is not None:
        scores = jnp.tanh(scores * (1 / cap)) * cap
    scores = scores.reshape(1, kv_heads, group, length, -1) + hidden[:, :, None]
    shares = arithmetic.softmax(scores, 4).reshape(1, kv_heads, group * length, -1)
    return arithmetic.product(shares, values, (3, 2), (0, 1)).reshape(query.shape)


_FUNCTIONS: Mapping[Any, Emit] = {
    operator.getitem: operator.getitem,
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.truediv: operator.truediv,
    torch.split: _split,
    torch.cat: lambda values, dim: jnp.concatenate(values, dim) if len(values) > 1 else values[0],
    torch.softmax: lambda x, dim: arithmetic.softmax(x, dim),
    torch.tanh: jnp.tanh,
    torch.sigmoid: arithmetic.sigmoid,
    functional.gelu: arithmetic.gelu,
    functional.relu: lambda x, inplace=False: jnp.maximum(x, 0),
    functional.silu: lambda x, inplace=False: arithmetic.silu(x),
    kv_cache.store: _store,
    kv_cache.attend: _attend,
    "transpose": jnp.swapaxes,
    "unflatten": _unflatten,
    "flatten": lambda x, first: x.reshape(*x.shape[:first], -1),
    "squeeze": lambda x, axis: jnp.squeeze(x, axis),
}
