"""From a re-authored encoder to a function of TVM's Relax: its parts become kernels that schedules.py knows.

Layout `plain`. Tokens are as many as fill the rows of a tile: those that are added are masked, and left out of the results.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from tvm import relax, topi

from compiler.networks import encoder, parts, sentence
from compiler.networks.interpret import interpret
from targets.neo import kernels
from targets.neo.machines import Machine

_ROWS = 8
# Outputs (batch, tokens); others with something for each token have three axes.
_BY_TOKEN = ("start_logits", "end_logits")
# Tensor of a parameter by its name, float32.
Read = Callable[[str], NDArray[np.float32]]


@dataclass(frozen=True)
class Building:
    """A function while it grows.

    Attributes:
        builder: TVM's.
        read: a parameter's values.
        machine: it is compiled for.
        stored: in which matrices are stored, float32 or float16.
        tokens: that the input has; the network computes `rows` of them.
        rows: tokens, filled up.
    """

    builder: Any
    read: Read
    machine: Machine
    stored: str
    tokens: int
    rows: int

    def emit(self, value: Any) -> Any:
        """An operator of Relax."""
        return self.builder.emit(value)

    def call(self, kernel: Callable[..., Any], *arguments: Any) -> Any:
        """A kernel."""
        return self.builder.emit_te(kernel, *arguments, primfunc_name_hint=kernel.__name__)

    def constant(self, values: NDArray[Any] | float) -> Any:
        """Values in the program."""
        held = np.ascontiguousarray(values) if isinstance(values, np.ndarray) else np.asarray(values, np.float32)
        # Else TVM makes int32 of int64.
        return relax.const(held, str(held.dtype))

    def product(self, x: Any, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Any:
        """x W^T + b for a weight (outputs, inputs)."""
        outputs = len(weight)
        columns = self.machine.width_for(outputs)
        packed = kernels.pack(np.ascontiguousarray(weight.T, self.stored), columns)
        made = self.call(kernels.packed_product, x, self.constant(packed))
        if bias is not None:
            made = self.emit(relax.op.add(made, self.constant(np.pad(bias, (0, -outputs % columns)))))
        if outputs % columns:
            made = self.emit(relax.op.strided_slice(made, [made.ty.ndim - 1], [0], [outputs]))
        return made


def lower_network(
    network: nn.Module,
    read: Read,
    inputs: Mapping[str, tuple[tuple[int, ...], str]],
    outputs: Sequence[str],
    machine: Machine,
    stored: str,
) -> Any:
    """A module of Relax with the function `main`.

    Args:
        network: its parameters may be on the meta device.
        read: a parameter's values by name.
        inputs: shape and dtype of each argument of `forward`; a text (batch, tokens), or a picture.
        outputs: names of the results.
        machine: it is compiled for.
        stored: dtype of stored matrices.
    """
    builder = relax.BlockBuilder()
    first = next(iter(inputs.values()))[0]
    tokens = first[1] if len(first) == 2 else _patches_of(network) + 1
    building = Building(builder, read, machine, stored, tokens, -(-tokens // _ROWS) * _ROWS)
    variables = {name: relax.Var(name, relax.TensorType(shape, dtype)) for name, (shape, dtype) in inputs.items()}

    def part(name: str, module: nn.Module, *arguments: Any, **named: Any) -> Any:
        return _PARTS[type(module)](building, module, name, *arguments, **named)

    def call(target: Any, *arguments: Any, **named: Any) -> Any:
        return _FUNCTIONS[target](building, *arguments, **named)

    with builder.function("main", list(variables.values())):
        with builder.dataflow():
            given = {name: _filled_up(building, each) for name, each in variables.items()}
            found = zip(outputs, interpret(network, _PARTS, given.get, part, call), strict=True)
            results = [builder.emit_output(_cut(building, name, each)) for name, each in found]
        builder.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))
    return builder.get()


def _patches_of(network: nn.Module) -> int:
    return next(int(each.positions.shape[0]) - 1 for each in network.modules() if isinstance(each, parts.Patches))


def _filled_up(building: Building, x: Any) -> Any:
    """Ids, masks and token types (batch, tokens) with zeros behind them."""
    more = building.rows - building.tokens
    if x.ty.ndim != 2 or not more:
        return x
    zeros = building.constant(np.zeros((int(x.ty.shape[0]), more), str(x.ty.dtype)))
    return building.emit(relax.op.concat([x, zeros], 1))


def _cut(building: Building, name: str, x: Any) -> Any:
    """Without the tokens that were added, where a result has something for each token."""
    if building.rows == building.tokens or (x.ty.ndim < 3 and name not in _BY_TOKEN):
        return building.emit(x)
    return building.emit(relax.op.strided_slice(x, [1], [0], [building.tokens]))


def _projection(building: Building, module: parts.Projection, name: str, x: Any) -> Any:
    bias = building.read(f"{name}.bias") if module.bias is not None else None
    return building.product(x, building.read(f"{name}.weight"), bias)


def _attention(building: Building, module: encoder.Attention, name: str, x: Any, mask: Any) -> Any:
    """Queries, keys and values in one product; keys are turned, the rest is read where it lies."""
    heads, width = module.heads, module.head_dim
    each = ("query", "key", "value")
    weight = np.concatenate([building.read(f"{name}.{part}.weight") for part in each])
    bias = np.concatenate([building.read(f"{name}.{part}.bias") for part in each])
    mixed = building.product(x, weight, bias)
    channels = heads * width
    if mask is None:
        hidden = np.where(np.arange(building.rows) < building.tokens, 0, parts.MASKED_SCORE).astype(np.float32)
        mask = building.constant(np.tile(hidden, (int(x.ty.shape[0]), 1)))
    keys = building.call(kernels.keys_turned, mixed, heads, width, channels)
    scores = building.call(kernels.attention_scores, mixed, keys, mask, width**-0.5)
    shares = building.emit(relax.op.nn.softmax(scores, -1))
    found = building.call(kernels.attention_mix, shares, mixed, width, 2 * channels)
    shape = (int(found.ty.shape[0]), int(found.ty.shape[1]), channels)
    return _projection(building, module.output, f"{name}.output", building.emit(relax.op.reshape(found, shape)))


def _layer_norm(building: Building, module: parts.LayerNorm, name: str, x: Any) -> Any:
    weight, bias = (building.constant(building.read(f"{name}.{part}")) for part in ("weight", "bias"))
    return building.emit(relax.op.nn.layer_norm(x, weight, bias, axes=[-1], epsilon=module.eps))


def _embedding(building: Building, module: parts.Embedding, name: str, ids: Any) -> Any:
    """An index beyond the table takes its last row: TVM would read what lies behind it."""
    table = building.read(f"{name}.weight")
    found = building.emit(relax.op.take(building.constant(table.astype(building.stored)), ids, 0, mode="clip"))
    return found if building.stored == "float32" else building.emit(relax.op.astype(found, "float32"))


def _segments(building: Building, module: parts.Segments, name: str, ids: Any) -> Any:
    table = building.read(f"{name}.weight")
    chosen = building.emit(relax.op.astype(building.emit(relax.op.expand_dims(ids, 2)), "float32"))
    step = building.emit(relax.op.multiply(chosen, building.constant(table[1] - table[0])))
    return building.emit(relax.op.add(step, building.constant(table[0])))


def _positions(building: Building, module: parts.Positions, name: str, ids: Any) -> Any:
    table = building.read(f"{name}.weight")[module.offset :][: building.rows]
    return building.constant(np.pad(table, ((0, building.rows - len(table)), (0, 0)))[None])


def _mask(building: Building, module: parts.AttentionMask, name: str, mask: Any) -> Any:
    seen = building.emit(relax.op.astype(mask, "float32"))
    hidden = building.emit(relax.op.subtract(building.constant(1.0), seen))
    return building.emit(relax.op.multiply(hidden, building.constant(parts.MASKED_SCORE)))


def _patches(building: Building, module: parts.Patches, name: str, picture: Any) -> Any:
    """Patches do not overlap, so the convolution is a product of matrices."""
    batch, channels, height, width = (int(n) for n in picture.ty.shape)
    side, weight = module.size, building.read(f"{name}.weight")
    if height % side or width % side:
        # As a convolution does, what fills no patch is left out.
        height, width = height // side * side, width // side * side
        picture = building.emit(relax.op.strided_slice(picture, [2, 3], [0, 0], [height, width]))
    cut = (batch, channels, height // side, side, width // side, side)
    rows = (batch, building.tokens - 1, channels * side * side)
    parted = building.emit(relax.op.permute_dims(building.emit(relax.op.reshape(picture, cut)), [0, 2, 4, 1, 3, 5]))
    flat = building.emit(relax.op.reshape(parted, rows))
    patches = building.product(flat, weight.reshape(len(weight), -1), building.read(f"{name}.bias"))
    first = np.tile(building.read(f"{name}.first"), (batch, 1, 1))
    joined = [building.constant(first), patches]
    if more := building.rows - building.tokens:
        joined.append(building.constant(np.zeros((batch, more, len(weight)), np.float32)))
    table = building.read(f"{name}.positions")
    table = np.pad(table, ((0, building.rows - len(table)), (0, 0)))[None]
    return building.emit(relax.op.add(building.emit(relax.op.concat(joined, 1)), building.constant(table)))


def _token_weights(building: Building, module: sentence.TokenWeights, name: str, mask: Any) -> Any:
    emit, constant, op = building.emit, building.constant, relax.op
    seen = emit(op.astype(mask, "float32"))
    batch, rows = (int(n) for n in mask.ty.shape)
    none = constant(np.zeros((batch, 1), np.float32))

    def over(x: Any, least: float) -> Any:
        return emit(op.divide(x, emit(op.maximum(emit(op.sum(x, 1, keepdims=True)), constant(least)))))

    if module.pooling in ("cls", "lasttoken"):
        first, last = (0, rows - 1) if module.pooling == "cls" else (1, rows)
        kept = emit(op.strided_slice(seen, [1], [first], [last]))
        beside = emit(op.concat([none, kept] if module.pooling == "cls" else [kept, none], 1))
        weights = emit(op.multiply(seen, emit(op.subtract(constant(1.0), beside))))
    elif module.pooling == "weightedmean":
        places = np.arange(1, rows + 1, dtype=np.float32)[None] / building.tokens
        weights = over(emit(op.multiply(seen, constant(places))), sentence.LEAST_COUNT)
    elif module.pooling == "mean_sqrt_len_tokens":
        count = emit(op.maximum(emit(op.sum(seen, 1, keepdims=True)), constant(1.0)))
        weights = emit(op.multiply(seen, emit(op.rsqrt(count))))
    else:
        weights = over(seen, 1.0)
    return emit(op.expand_dims(weights, 1))


def _largest(building: Building, module: sentence.LargestValues, name: str, x: Any, mask: Any) -> Any:
    hidden = building.emit(relax.op.expand_dims(_mask(building, parts.AttentionMask("plain"), name, mask), 2))
    return building.emit(relax.op.max(building.emit(relax.op.add(x, hidden)), 1))


def _length_one(building: Building, module: sentence.LengthOne, name: str, x: Any) -> Any:
    emit, op, least = building.emit, relax.op, building.constant(sentence.LEAST_SQUARES)
    largest = emit(op.maximum(emit(op.max(emit(op.abs(x)), 1, keepdims=True)), least))
    scaled = emit(op.divide(x, largest))
    total = emit(op.maximum(emit(op.sum(emit(op.multiply(scaled, scaled)), 1, keepdims=True)), least))
    return emit(op.multiply(scaled, emit(op.rsqrt(total))))


def _slice_first(building: Building, module: Any, name: str, x: Any) -> Any:
    return building.emit(relax.op.strided_slice(x, [1], [0], [1]))


Emit = Callable[..., Any]
_PARTS: Mapping[type, Emit] = {
    encoder.Attention: _attention,
    parts.Projection: _projection,
    parts.LayerNorm: _layer_norm,
    parts.Embedding: _embedding,
    parts.Segments: _segments,
    parts.Positions: _positions,
    parts.AttentionMask: _mask,
    parts.Patches: _patches,
    parts.TokensOut: lambda building, module, name, x: x,
    parts.FirstToken: _slice_first,
    parts.OneOut: lambda building, module, name, x: building.emit(relax.op.squeeze(x, [1])),
    sentence.TokenWeights: _token_weights,
    sentence.LargestValues: _largest,
    sentence.LengthOne: _length_one,
}


def _value_by_value(function: Callable[[Any], Any], name: str) -> Emit:
    def emit(building: Building, x: Any, *rest: Any, **named: Any) -> Any:
        return building.builder.emit_te(function, x, primfunc_name_hint=name)

    return emit


def _exact_gelu(x: Any) -> Any:
    return topi.multiply(topi.multiply(x, 0.5), topi.add(topi.fast_erf(topi.multiply(x, 0.5**0.5)), 1.0))


def _tanh_gelu(x: Any) -> Any:
    inner = topi.multiply(
        x, topi.add(topi.multiply(topi.multiply(x, x), 0.044715 * (2 / np.pi) ** 0.5), (2 / np.pi) ** 0.5)
    )
    return topi.multiply(topi.multiply(x, 0.5), topi.add(topi.fast_tanh(inner), 1.0))


def _by_tanh(x: Any) -> Any:
    return topi.add(topi.multiply(topi.fast_tanh(topi.multiply(x, 0.5)), 0.5), 0.5)


# TVM's polynomials become vectors, errors below 4e-7; the library's functions are called value by value.
_tanh = _value_by_value(topi.fast_tanh, "tanh")
_sigmoid = _value_by_value(_by_tanh, "sigmoid")
_silu = _value_by_value(lambda x: topi.multiply(x, _by_tanh(x)), "silu")
_gelu_exact, _gelu_tanh = _value_by_value(_exact_gelu, "gelu"), _value_by_value(_tanh_gelu, "gelu_tanh")


def _gelu(building: Building, x: Any, approximate: str = "none") -> Any:
    return (_gelu_exact if approximate == "none" else _gelu_tanh)(building, x)


def _either(operation: Callable[[Any, Any], Any]) -> Emit:
    def emit(building: Building, x: Any, y: Any) -> Any:
        given = [each if isinstance(each, relax.Expr) else building.constant(float(each)) for each in (x, y)]
        return building.emit(operation(*given))

    return emit


def _split(building: Building, x: Any, size: int, dim: int) -> list[Any]:
    extent = int(x.ty.shape[dim])
    return [
        building.emit(relax.op.strided_slice(x, [dim], [start], [start + size])) for start in range(0, extent, size)
    ]


_FUNCTIONS: Mapping[Any, Emit] = {
    operator.getitem: lambda building, x, index: x[index],
    operator.add: _either(relax.op.add),
    operator.sub: _either(relax.op.subtract),
    operator.mul: _either(relax.op.multiply),
    operator.truediv: _either(relax.op.divide),
    torch.split: _split,
    torch.cat: lambda building, values, dim: (
        values[0] if len(values) == 1 else building.emit(relax.op.concat(values, dim))
    ),
    torch.matmul: lambda building, x, y: building.emit(relax.op.matmul(x, y)),
    torch.tanh: _tanh,
    torch.sigmoid: _sigmoid,
    functional.gelu: _gelu,
    functional.relu: lambda building, x, inplace=False: building.emit(relax.op.nn.relu(x)),
    functional.silu: lambda building, x, inplace=False: _silu(building, x),
    "squeeze": lambda building, x, axis: building.emit(relax.op.squeeze(x, [axis])),
}
