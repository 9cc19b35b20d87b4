"""Attention whose products are made of rounded numbers, in torch, whichever way transformers computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
# Batch, heads, queries, keys: products of activations that are no attention have fewer axes.
_AXES = 4


class RoundedAttention(TorchFunctionMode):
    """While it is entered, `rounded` is applied to queries, keys, shares and values before they are multiplied."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._rounded = rounded

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **named)
        if func in _PRODUCTS and args[0].ndim == _AXES:
            return func(*(self._rounded(each) for each in args), **named)
        return func(*args, **named)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """torch's function of that name, without dropout."""
        if enable_gqa:
            group = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scaled = self._rounded(query * (scale or query.shape[-1] ** -0.5))
        scores = torch.einsum("bhqc,bhkc->bhqk", scaled, self._rounded(key))
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, float("-inf"))
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if hidden else scores + attn_mask
        shares = self._rounded(torch.softmax(scores, -1))
        return torch.einsum("bhqk,bhkc->bhqc", shares, self._rounded(value))
