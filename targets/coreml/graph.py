"""From a re-authored network to a function of a MIL program, operator by operator.

The network is traced symbolically; its parts (compiler/networks/parts.py) are leaves, each of which becomes a small group of
MIL operators, and so are the few functions of torch that networks call. MIL's own builder infers types and refuses what is
not valid. Every float is float16.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function
from coremltools.converters.mil.mil.types.symbolic import is_symbolic
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from compiler.networks import kv_cache, parts
from compiler.networks.interpret import interpret
from targets.coreml.kv_cache import Pieces, beginning, incoming, places
from targets.coreml.placement import LARGEST_EXTENT
from targets.coreml.sentence import EMITS as SENTENCE
from targets.coreml.weights import Rows, Weights

Emit = Callable[..., Any]


def lower_function(
    network: nn.Module,
    placeholders: Mapping[str, Any],
    names: Mapping[str, str],
    weights: Weights,
    output_names: Sequence[str],
    opset: Any,
) -> Function:
    """One MIL function of a network.

    Args:
        network: a network whose parameters may be on the meta device; its buffers are real.
        placeholders: MIL's placeholders by the name of the function's input.
        names: the input's name for each argument of `forward`; arguments that have none are not used.
        weights: where the parameters come from.
        output_names: names for what `forward` returns, in order.
        opset: a `coremltools.target`.
    """

    def part(name: str, module: nn.Module, *arguments: Any, **named: Any) -> Any:
        return _PARTS[type(module)](module, _Named(weights, name), *arguments, **named)

    def call(target: Any, *arguments: Any, **named: Any) -> Any:
        return _FUNCTIONS[target](*arguments, **named)

    with Function(dict(placeholders), opset_version=opset) as function:
        results = interpret(network, _PARTS, lambda name: incoming(function, names.get(name)), part, call)
        joined = [each.joined() if isinstance(each, Pieces) else each for each in results]
        variables = [each for each in joined if each is not None]
        for variable, name in zip(variables, output_names, strict=True):
            variable.set_name(name)
        function.set_outputs(variables)
    return function


class _Named:
    """The parameters of one part."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def vector(self, name: str, shape: Sequence[int], form: Sequence[int], rows: Rows = None) -> Any:
        return self._weights.vector(f"{self._prefix}.{name}", tuple(shape), tuple(form), rows)

    def matrix(self, name: str, shape: Sequence[int], form: Sequence[int], rows: Rows = None) -> Any:
        return self._weights.matrix(f"{self._prefix}.{name}", (shape[0], shape[1]), tuple(form), rows)

    def alone(self, name: str) -> bool:
        """Whether no other parameter is made of the same tensor, so that it may be stored in pieces."""
        return self._weights.alone(f"{self._prefix}.{name}")

    def input_scale(self) -> float | None:
        """The step of the part's input in 8 bits; None where it stays a float."""
        return self._weights.input_scales.get(self._prefix)

    def account(self, name: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """Values that the program holds in another arrangement than the model's."""
        return self._weights.account(f"{self._prefix}.{name}", tuple(shape))


def _projection(module: parts.Projection, own: _Named, x: Any) -> Any:
    outputs, inputs = module.weight.shape
    if (step := own.input_scale()) is not None:
        coded = mb.quantize(input=x, scale=np.float16(step), output_dtype="int8")
        x = mb.dequantize(input=coded, scale=np.float16(step))
    bias = {"bias": own.vector("bias", (outputs,), (outputs,))} if module.bias is not None else {}
    if module.layout == "ane" and outputs > LARGEST_EXTENT and own.alone("weight"):
        count = -(-outputs // LARGEST_EXTENT)
        cuts = [outputs * number // count for number in range(count + 1)]
        pieces = []
        for first, last in pairwise(cuts):
            form = (last - first, inputs, 1, 1)
            own_bias = {"bias": own.vector("bias", (outputs,), (last - first,), (first, last))} if bias else {}
            pieces.append(mb.conv(x=x, weight=own.matrix("weight", (outputs, inputs), form, (first, last)), **own_bias))
        return mb.concat(values=pieces, axis=1)
    if module.layout == "ane":
        return mb.conv(x=x, weight=own.matrix("weight", (outputs, inputs), (outputs, inputs, 1, 1)), **bias)
    return mb.linear(x=x, weight=own.matrix("weight", (outputs, inputs), (outputs, inputs)), **bias)


def _layer_norm(module: parts.LayerNorm, own: _Named, x: Any) -> Any:
    size = tuple(module.weight.shape)
    gamma, beta = own.vector("weight", size, size), own.vector("bias", size, size)
    axis = 1 if module.layout == "ane" else 2
    return mb.layer_norm(x=x, axes=[axis], gamma=gamma, beta=beta, epsilon=_epsilon(module.eps))


def _epsilon(value: float) -> Any:
    """float16 has no number near BERT's 1e-12; the smallest that it can tell from 0 takes its place."""
    return np.float16(max(value, 1.2e-7))


def _rms(x: Any, axis: int, eps: float) -> Any:
    """x over its root mean square, as a layer norm of x and -x together, whose mean is 0: squares are then summed inside one
    operator, where float16 does not overflow."""
    both = mb.concat(values=[x, mb.mul(x=x, y=np.float16(-1))], axis=axis)
    normed = mb.layer_norm(x=both, axes=[axis], epsilon=_epsilon(eps))
    return mb.split(x=normed, num_splits=2, axis=axis)[0]


def _rms_norm(module: parts.RmsNorm, own: _Named, x: Any) -> Any:
    size = int(module.weight.shape[0])
    form = (1, size, 1, 1) if module.layout == "ane" else (1, 1, size)
    return mb.mul(x=_rms(x, 1 if module.layout == "ane" else 2, module.eps), y=own.vector("weight", (size,), form))


def _head_norm(module: parts.HeadNorm, own: _Named, x: Any) -> Any:
    size, heads = int(module.weight.shape[0]), module.heads
    if module.layout == "ane":
        by_head = mb.reshape(x=x, shape=[heads, size, 1, x.shape[3]])
        weight = own.vector("weight", (size,), (1, size, 1, 1))
        return mb.reshape(x=mb.mul(x=_rms(by_head, 1, module.eps), y=weight), shape=list(x.shape))
    by_head = mb.reshape(x=x, shape=[*x.shape[:2], heads, size])
    weight = own.vector("weight", (size,), (1, 1, 1, size))
    return mb.reshape(x=mb.mul(x=_rms(by_head, 3, module.eps), y=weight), shape=list(x.shape))


def _embedding(module: parts.Embedding, own: _Named, ids: Any) -> Any:
    shape = tuple(module.weight.shape)
    return _to_layout(module, mb.gather(x=own.matrix("weight", shape, shape), indices=ids, axis=0))


def _to_layout(module: Any, x: Any) -> Any:
    """(B, S, C) in the layout."""
    if module.layout == "plain":
        return x
    return mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1]), axes=[2])


def _segments(module: parts.Segments, own: _Named, ids: Any) -> Any:
    shape = tuple(module.weight.shape)
    table = own.account("weight", shape)
    form = (1, -1, 1, 1) if module.layout == "ane" else (1, 1, -1)
    first, step = (values.astype(np.float16).reshape(form) for values in (table[0], table[1] - table[0]))
    chosen = mb.expand_dims(x=mb.cast(x=ids, dtype="fp16"), axes=[1, 2] if module.layout == "ane" else [2])
    return mb.add(x=mb.mul(x=chosen, y=step), y=first)


def _positions(module: parts.Positions, own: _Named, ids: Any) -> Any:
    rows, channels = module.weight.shape
    ane = module.layout == "ane"
    table = own.account("weight", (rows, channels))[module.offset :].astype(np.float16)
    table = table.T[None, :, None] if ane else table[None]
    if not is_symbolic(ids.shape[1]):
        return mb.const(val=np.ascontiguousarray(table[..., : ids.shape[1]] if ane else table[:, : ids.shape[1]]))
    length = mb.gather(x=mb.shape(x=ids), indices=places(1), axis=0)
    axis = 3 if ane else 1
    end = beginning(table.ndim, {a: places(n) for a, n in enumerate(table.shape)} | {axis: length})
    return mb.slice_by_index(x=np.ascontiguousarray(table), begin=[0] * table.ndim, end=end)


def _additive_mask(module: parts.AttentionMask, own: _Named, mask: Any) -> Any:
    seen = mb.expand_dims(x=mb.cast(x=mask, dtype="fp16"), axes=[2, 3] if module.layout == "ane" else [1, 2])
    return mb.mul(x=mb.sub(x=seen, y=np.float16(1)), y=np.float16(-parts.MASKED_SCORE))


def _patches(module: parts.Patches, own: _Named, picture: Any) -> Any:
    hidden, side = int(module.weight.shape[0]), module.size
    weight = own.vector("weight", module.weight.shape, module.weight.shape)
    bias = own.vector("bias", (hidden,), (hidden,))
    patches = mb.conv(x=picture, weight=weight, bias=bias, strides=[side, side], pad_type="valid")
    count = int(module.positions.shape[0]) - 1
    flat = mb.reshape(x=patches, shape=[picture.shape[0], hidden, 1, count])
    first = mb.tile(x=own.vector("first", (hidden,), (1, hidden, 1, 1)), reps=[picture.shape[0], 1, 1, 1])
    table = own.account("positions", (count + 1, hidden)).astype(np.float16)
    joined = mb.add(x=mb.concat(values=[first, flat], axis=3), y=np.ascontiguousarray(table.T[None, :, None]))
    return joined if module.layout == "ane" else mb.transpose(x=mb.squeeze(x=joined, axes=[2]), perm=[0, 2, 1])


def _tokens_out(module: parts.TokensOut, own: _Named, x: Any) -> Any:
    return mb.transpose(x=mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1]) if module.layout == "ane" else x


def _first_token(module: parts.FirstToken, own: _Named, x: Any) -> Any:
    if module.layout == "ane":
        return mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[*x.shape[:3], 1])
    return mb.slice_by_index(x=x, begin=[0, 0, 0], end=[x.shape[0], 1, x.shape[2]])


def _one_out(module: parts.OneOut, own: _Named, x: Any) -> Any:
    return mb.squeeze(x=x, axes=[2, 3] if module.layout == "ane" else [1])


def _rotary(module: kv_cache.Rotary, own: _Named, position: Any) -> tuple[Any, Any]:
    ane = module.layout == "ane"
    found = []
    for table in (module.cos, module.sin):
        values = table.numpy().astype(np.float16)
        values = np.ascontiguousarray(values.T[None, :, None] if ane else values[None, None])
        axis = 3 if ane else 2
        size = [module.length if a == axis else n for a, n in enumerate(values.shape)]
        found.append(mb.slice_by_size(x=values, begin=beginning(4, {axis: position}), size=size))
    return found[0], found[1]


def _causal(module: kv_cache.Causal, own: _Named, position: Any) -> Any:
    ane = module.layout == "ane"
    values = module.table().numpy().astype(np.float16)
    values = np.ascontiguousarray(values[None, :, None] if ane else values.T[None, None])
    axis = 1 if ane else 3
    start = mb.sub(x=places(module.context), y=position)
    size = [module.context if a == axis else n for a, n in enumerate(values.shape)]
    return mb.slice_by_size(x=values, begin=beginning(4, {axis: start}), size=size)


_PARTS: Mapping[type, Emit] = {
    parts.Projection: _projection,
    parts.LayerNorm: _layer_norm,
    parts.RmsNorm: _rms_norm,
    parts.HeadNorm: _head_norm,
    parts.Embedding: _embedding,
    parts.Segments: _segments,
    parts.Positions: _positions,
    parts.AttentionMask: _additive_mask,
    parts.Patches: _patches,
    parts.TokensOut: _tokens_out,
    parts.FirstToken: _first_token,
    parts.OneOut: _one_out,
    kv_cache.Rotary: _rotary,
    kv_cache.Causal: _causal,
    **SENTENCE,
}


def _store(whole: Pieces, layer: int, axis: int, position: Any, new: Any) -> tuple[Pieces, Any]:
    return whole, whole.store(layer, axis, position, new)


def _attend(query: Any, keys: Any, values: Any, hidden: Any, cap: float | None) -> Any:
    """Head by head of keys and values, as the engine takes no more than four axes."""
    count = keys.shape[1]
    queries, every_key = _split(query, query.shape[1] // count, 1), _split(keys, 1, 1)
    every_value = _split(values, 1, 1)
    mixed = []
    for head in range(count):
        scores = mb.matmul(x=queries[head], y=_transpose(every_key[head], 2, 3))
        if cap is not None:
            scores = mb.mul(x=mb.tanh(x=mb.mul(x=scores, y=np.float16(1 / cap))), y=np.float16(cap))
        scores = mb.softmax(x=mb.add(x=scores, y=hidden), axis=3)
        mixed.append(mb.matmul(x=scores, y=every_value[head]))
    return mb.concat(values=mixed, axis=1) if len(mixed) > 1 else mixed[0]


def _number(value: Any) -> Any:
    """A Python number as the float16 that operators with tensors take."""
    return np.float16(value) if isinstance(value, int | float) else value


def _split(x: Any, sizes: int | Sequence[int], dim: int) -> Any:
    extent = x.shape[dim]
    each = [sizes] * (extent // sizes) if isinstance(sizes, int) else list(sizes)
    if len(each) == 1:
        return (x,)
    return mb.split(x=x, split_sizes=each, axis=dim)


_PRODUCTS = {"bchq,bkhc->bkhq", "bkhq,bchk->bchq"}


def _einsum(equation: str, first: Any, second: Any) -> Any:
    if equation not in _PRODUCTS:
        raise ValueError(f"MIL has no einsum {equation}")
    return mb.einsum(values=(second, first), equation="nchw,nwhu->nchu")


def _transpose(x: Any, first: int, second: int) -> Any:
    perm = list(range(x.rank))
    perm[first], perm[second] = perm[second], perm[first]
    return mb.transpose(x=x, perm=perm)


def _unflatten(x: Any, axis: int, sizes: Sequence[int]) -> Any:
    shape = list(x.shape)
    axis %= len(shape)
    return mb.reshape(x=x, shape=[_extent(n) for n in (*shape[:axis], *sizes, *shape[axis + 1 :])])


def _flatten(x: Any, first: int) -> Any:
    shape = list(x.shape)
    return mb.reshape(x=x, shape=[*(_extent(n) for n in shape[:first]), int(np.prod(shape[first:]))])


def _extent(size: Any) -> int:
    return -1 if is_symbolic(size) else int(size)


def _gelu(x: Any, approximate: str = "none") -> Any:
    return mb.gelu(x=x, mode="EXACT" if approximate == "none" else "TANH_APPROXIMATION")


_FUNCTIONS: Mapping[Any, Emit] = {
    operator.getitem: lambda x, index: x[index],
    operator.add: lambda x, y: mb.add(x=_number(x), y=_number(y)),
    operator.sub: lambda x, y: mb.sub(x=_number(x), y=_number(y)),
    operator.mul: lambda x, y: mb.mul(x=_number(x), y=_number(y)),
    operator.truediv: lambda x, y: mb.mul(x=x, y=np.float16(1 / y)),
    torch.split: _split,
    torch.chunk: lambda x, chunks, dim: (x,) if chunks == 1 else mb.split(x=x, num_splits=chunks, axis=dim),
    torch.cat: lambda values, dim: mb.concat(values=list(values), axis=dim) if len(values) > 1 else values[0],
    torch.einsum: _einsum,
    torch.softmax: lambda x, dim: mb.softmax(x=x, axis=dim),
    torch.matmul: lambda x, y: mb.matmul(x=x, y=y),
    torch.tanh: lambda x: mb.tanh(x=x),
    torch.sigmoid: lambda x: mb.sigmoid(x=x),
    torch.argmax: lambda x, dim: mb.reduce_argmax(x=x, axis=dim, keep_dims=False),
    functional.gelu: _gelu,
    functional.relu: lambda x, inplace=False: mb.relu(x=x),
    functional.silu: lambda x, inplace=False: mb.silu(x=x),
    kv_cache.store: _store,
    kv_cache.attend: _attend,
    "transpose": _transpose,
    "unflatten": _unflatten,
    "flatten": _flatten,
    "squeeze": lambda x, axis: mb.squeeze(x=x, axes=[axis]),
}
