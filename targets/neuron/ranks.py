"""What the cores that share a model tell each other: HLO's collectives among all of them, each core being a replica."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

_ALL_REDUCE, _ALL_GATHER = Primitive("all_reduce"), Primitive("all_gather")


def all_reduce(x: Array, ranks: int) -> Array:
    """The sum of what all ranks have, on each."""
    result: Array = _ALL_REDUCE.bind(x, ranks=ranks)
    return result


def all_gather(x: Array, ranks: int) -> Array:
    """What all ranks have, one after the other along the last axis, on each."""
    result: Array = _ALL_GATHER.bind(x, ranks=ranks)
    return result


@_ALL_REDUCE.def_abstract_eval
def _summed(x: ShapedArray, *, ranks: int) -> ShapedArray:
    return x


@_ALL_GATHER.def_abstract_eval
def _gathered(x: ShapedArray, *, ranks: int) -> ShapedArray:
    return ShapedArray((*x.shape[:-1], x.shape[-1] * ranks), x.dtype)


def _everyone(ranks: int) -> Any:
    groups: Any = np.arange(ranks, dtype=np.int64)[None]
    return ir.DenseElementsAttr.get(groups)


def _lower_sum(context: Any, x: Any, *, ranks: int) -> Any:
    made = stablehlo.AllReduceOp([x.type], [x], _everyone(ranks))
    scalar = ir.RankedTensorType.get([], ir.RankedTensorType(x.type).element_type)
    with ir.InsertionPoint(made.regions[0].blocks.append(scalar, scalar)):
        first, second = made.regions[0].blocks[0].arguments
        stablehlo.return_([stablehlo.add(first, second)])
    return made.results


def _lower_gather(context: Any, x: Any, *, ranks: int) -> Any:
    shape = list(context.avals_out[0].shape)
    result = ir.RankedTensorType.get(shape, ir.RankedTensorType(x.type).element_type)
    axis = len(shape) - 1
    return stablehlo.AllGatherOp([result], [x], axis, _everyone(ranks)).results


mlir.register_lowering(_ALL_REDUCE, _lower_sum)
mlir.register_lowering(_ALL_GATHER, _lower_gather)
