"""The parts of a sentence vector as operators of a MIL program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from compiler.networks import parts
from compiler.networks.sentence import LargestValues, LengthOne, TokenWeights

# Places in a text are counted in these, so that their sum stays within float16.
_PLACE = 2.0**-10
_LEAST = 1e-4


def _seen(mask: Any) -> Any:
    """The mask as floats; attention has cast it already."""
    casts = [each for each in mask.child_ops if each.op_type == "cast" and each.dtype.val == "fp16"]
    return casts[0].outputs[0] if casts else mb.cast(x=mask, dtype="fp16")


def _token_weights(module: TokenWeights, own: Any, mask: Any) -> Any:
    seen = _seen(mask)
    if module.pooling == "cls":
        moved = mb.pad(x=seen, pad=[0, 0, 1, 0], mode="constant", constant_val=np.float16(0))
        before = mb.slice_by_index(x=moved, begin=[0, 0], end=[0, -1], end_mask=[True, False])
        weights = mb.mul(x=seen, y=mb.sub(x=np.float16(1), y=before))
    elif module.pooling == "lasttoken":
        moved = mb.pad(x=seen, pad=[0, 0, 0, 1], mode="constant", constant_val=np.float16(0))
        after = mb.slice_by_index(x=moved, begin=[0, 1], end=[0, 0], end_mask=[True, True])
        weights = mb.mul(x=seen, y=mb.sub(x=np.float16(1), y=after))
    elif module.pooling == "weightedmean":
        places = mb.mul(x=mb.cumsum(x=seen, axis=1), y=np.float16(_PLACE))
        weights = _over_sum(mb.mul(x=seen, y=places), _LEAST)
    elif module.pooling == "mean_sqrt_len_tokens":
        count = mb.maximum(x=mb.reduce_sum(x=seen, axes=[1], keep_dims=True), y=np.float16(1))
        weights = mb.mul(x=seen, y=mb.rsqrt(x=count))
    else:
        weights = _over_sum(seen, 1.0)
    return mb.expand_dims(x=weights, axes=[1])


def _over_sum(x: Any, least: float) -> Any:
    total = mb.maximum(x=mb.reduce_sum(x=x, axes=[1], keep_dims=True), y=np.float16(least))
    return mb.real_div(x=x, y=total)


def _largest_values(module: LargestValues, own: Any, x: Any, mask: Any) -> Any:
    hidden = mb.mul(x=mb.sub(x=_seen(mask), y=np.float16(1)), y=np.float16(-parts.MASKED_SCORE))
    return mb.reduce_max(x=mb.add(x=x, y=mb.expand_dims(x=hidden, axes=[2])), axes=[1], keep_dims=False)


def _length_one(module: LengthOne, own: Any, x: Any) -> Any:
    """Over the largest value first: squares in float16 overflow, or fall below what it can tell from 0."""
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[1], keep_dims=True), y=np.float16(_LEAST))
    scaled = mb.real_div(x=x, y=largest)
    total = mb.reduce_sum(x=mb.mul(x=scaled, y=scaled), axes=[1], keep_dims=True)
    return mb.mul(x=scaled, y=mb.rsqrt(x=mb.maximum(x=total, y=np.float16(_LEAST))))


EMITS: Mapping[type, Callable[..., Any]] = {
    TokenWeights: _token_weights,
    LargestValues: _largest_values,
    LengthOne: _length_one,
}
