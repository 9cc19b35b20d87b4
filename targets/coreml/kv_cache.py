"""The cache of keys and values while a function of a MIL program is built: a state, or a tensor that goes in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types


def incoming(function: Function, name: str | None) -> Any:
    variable = function.inputs.get(name)
    if variable is not None and types.is_state(variable.sym_type):
        return Pieces(variable, True)
    return Pieces(variable, False) if name in CACHES else variable


CACHES = ("keys", "values")


class Pieces:
    """A cache while a function is built: a state that is written in place, or an input whose layers are replaced."""

    def __init__(self, placeholder: Any, state: bool) -> None:
        self._placeholder, self._state = placeholder, state
        self._layers: dict[int, Any] = {}
        self._whole = placeholder

    def store(self, layer: int, axis: int, position: Any, new: Any) -> Any:
        """Emit the update of a layer; the layer (1, a, b, c) as it is afterwards."""
        if self._state:
            shape = self._placeholder.sym_type.wrapped_type().get_shape()
            begin = beginning(4, {0: places(layer), axis: position})
            end = [layer + 1, *shape[1:]]
            ends = beginning(
                4, {a: places(end[a]) for a in range(4) if a != axis} | {axis: _after(position, new, axis)}
            )
            if self._whole is self._placeholder:
                self._whole = mb.read_state(input=self._placeholder)
            updated = mb.slice_update(x=self._whole, update=new, begin=begin, end=ends)
            self._whole = mb.coreml_update_state(state=self._placeholder, value=updated)
            return mb.slice_by_index(x=self._whole, begin=[layer, 0, 0, 0], end=end)
        old = _layer_of(self._placeholder, layer)
        self._layers[layer] = _blend(old, axis, position, new)
        return self._layers[layer]

    def joined(self) -> Any | None:
        """What leaves the function: nothing for a state, all layers for a tensor."""
        if self._state:
            return None
        return mb.concat(values=[self._layers[layer] for layer in sorted(self._layers)], axis=0)


def places(*places: Any) -> Any:
    return np.array(places, np.int32)


def _after(position: Any, new: Any, axis: int) -> Any:
    return mb.add(x=position, y=places(new.shape[axis]))


def beginning(rank: int, parts_by_axis: Mapping[int, Any]) -> Any:
    """An index vector: the given parts, 0 elsewhere."""
    return mb.concat(values=[parts_by_axis.get(axis, places(0)) for axis in range(rank)], axis=0)


def _layer_of(whole: Any, layer: int) -> Any:
    return mb.slice_by_index(x=whole, begin=[layer, 0, 0, 0], end=[layer + 1, *whole.shape[1:]])


def _blend(old: Any, axis: int, position: Any, new: Any) -> Any:
    """`old` with `new` from `position` on, by products with a shifted matrix of ones: no scatter, any position."""
    context, length = old.shape[axis], new.shape[axis]
    shifted = np.zeros((2 * context, length), np.float16)
    shifted[context + np.arange(length), np.arange(length)] = 1
    start = beginning(2, {0: mb.sub(x=places(context), y=position)})
    place = mb.slice_by_size(x=shifted, begin=start, size=[context, length])
    taken = mb.reduce_sum(x=place, axes=[1], keep_dims=True)
    if axis == 3:
        moved = mb.matmul(x=new, y=place, transpose_y=True)
        kept = mb.reshape(x=mb.sub(x=np.float16(1), y=taken), shape=[1, 1, 1, context])
    elif axis == 2:
        moved = mb.matmul(x=place, y=new)
        kept = mb.sub(x=np.float16(1), y=taken)
    else:
        moved = mb.expand_dims(x=mb.matmul(x=place, y=mb.squeeze(x=new, axes=[2])), axes=[2])
        kept = mb.reshape(x=mb.sub(x=np.float16(1), y=taken), shape=[1, context, 1, 1])
    return mb.add(x=mb.mul(x=old, y=kept), y=moved)
