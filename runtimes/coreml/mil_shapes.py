"""The operators of MIL that move values without computing: shapes, slices, gathers, and compressed constants."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from runtimes.coreml.mil_ops import ints, operator


@operator("reshape")
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    sizes = ints(shape)
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


@operator("transpose")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(ints(perm))


@operator("expand_dims")
def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    for axis in sorted((axis % x.dim() for axis in ints(axes)), reverse=True):
        x = x.squeeze(axis)
    return x


@operator("concat")
def concat(values: tuple[Tensor, ...], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    if interleave is not None and bool(interleave):
        place = int(axis) % values[0].dim()
        return torch.stack(values, place + 1).flatten(place, place + 1)
    return torch.cat(values, int(axis))


@operator("stack")
def stack(values: tuple[Tensor, ...], axis: Tensor) -> Tensor:
    return torch.stack(values, int(axis))


@operator("split")
def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return torch.split(x, ints(split_sizes), int(axis))
    assert num_splits is not None
    return torch.chunk(x, int(num_splits), int(axis))


def _slices(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> tuple[slice | Tensor | int, ...]:
    """The index of a slice with MIL's masks; steps below zero become a vector of places."""
    found: list[slice | Tensor | int] = []
    for axis, size in enumerate(x.shape):
        first, last = int(begin[axis]), int(end[axis])
        step = int(stride[axis]) if stride is not None else 1
        if squeeze_mask is not None and bool(squeeze_mask[axis]):
            found.append(first)
            continue
        start = None if begin_mask is not None and bool(begin_mask[axis]) else first
        stop = None if end_mask is not None and bool(end_mask[axis]) else last
        places = range(size)[slice(start, stop, step)]
        found.append(slice(start, stop, step) if step > 0 else torch.tensor(list(places)))
    return tuple(found)


@operator("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    return _taken(x, _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask))


def _taken(x: Tensor, places: tuple[slice | Tensor | int, ...]) -> Tensor:
    """Axis by axis, last first: several vectors in one index would be taken together."""
    for axis in reversed(range(x.dim())):
        x = x[(slice(None),) * axis + (places[axis],)]
    return x


@operator("slice_by_size")
def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    pairs = zip(ints(begin), ints(size), x.shape, strict=True)
    return x[tuple(slice(first, extent if many == -1 else first + many) for first, many, extent in pairs)]


@operator("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    out = x if in_place else x.clone()
    places = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if all(isinstance(place, slice) for place in places):
        out[places] = update
    else:
        numbers = _taken(torch.arange(x.numel()).reshape(x.shape), places)
        out.view(-1)[numbers] = update.reshape(numbers.shape)
    return out


@operator("gather")
def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
) -> Tensor:
    place = (0 if axis is None else int(axis)) % x.dim()
    if batch_dims is not None and int(batch_dims):
        raise NotImplementedError("gather with batch_dims")
    chosen = torch.where(indices < 0, indices + x.shape[place], indices)
    flat = x.index_select(place, chosen.reshape(-1))
    return flat.reshape(*x.shape[:place], *indices.shape, *x.shape[place + 1 :])


@operator("gather_along_axis")
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    place = 0 if axis is None else int(axis)
    return torch.gather(x, place, torch.where(indices < 0, indices + x.shape[place], indices))


@operator("shape")
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape)


@operator("tile")
def tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(ints(reps))


@operator("fill")
def fill(shape: Tensor, value: Tensor | None = None) -> Tensor:
    return torch.full(ints(shape), 0.0 if value is None else value.item())


@operator("fill_like")
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return torch.full(ref_tensor.shape, 0.0 if value is None else value.item())


@operator("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item())


@operator("cumsum")
def cumsum(
    x: Tensor, axis: Tensor | None = None, exclusive: Tensor | None = None, reverse: Tensor | None = None
) -> Tensor:
    place = 0 if axis is None else int(axis)
    turned = x.flip(place) if reverse is not None and bool(reverse) else x
    summed = turned.cumsum(place)
    if exclusive is not None and bool(exclusive):
        summed = summed - turned
    return summed.flip(place) if reverse is not None and bool(reverse) else summed


@operator("band_part")
def band_part(x: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
    below, above = (-1 if each is None else int(each) for each in (lower, upper))
    out = x if below < 0 else x.triu(-below)
    return out if above < 0 else out.tril(above)


@operator("pad")
def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    amounts = ints(pad)
    around = [each for axis in reversed(range(len(amounts) // 2)) for each in amounts[2 * axis : 2 * axis + 2]]
    if mode == "constant":
        return functional.pad(x, around, value=0.0 if constant_val is None else constant_val.item())
    return functional.pad(x, around, mode={"reflect": "reflect", "replicate": "replicate"}[mode])


def _spread(small: Tensor, like: Tensor) -> Tensor:
    """Each value repeated over its block."""
    for axis, (size, whole) in enumerate(zip(small.shape, like.shape, strict=True)):
        if size != whole:
            small = small.repeat_interleave(whole // size, axis)
    return small


@operator("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    shifted = data.to(torch.float32)
    if offset is not None:
        shifted -= _spread(offset.to(torch.float32), data)
    return shifted.mul_(_spread(scale, data))


@operator("constexpr_affine_dequantize")
def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    form = [1] * quantized_data.dim()
    form[int(axis)] = -1
    shift = zero_point.reshape(form) if zero_point.dim() else zero_point
    return (quantized_data - shift).to(torch.float32) * (scale.reshape(form) if scale.dim() else scale)


@operator("constexpr_lut_to_dense")
def lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | None = None
) -> Tensor:
    if shape is not None:
        return _unpacked(indices, lut, ints(shape))
    if lut.shape[-1] != 1:
        raise NotImplementedError("constexpr_lut_to_dense with vectors")
    tables = lut.squeeze(-1)
    palettes = tables.shape[-1]
    groups = tables.shape[:-1]
    number = torch.arange(groups.numel()).reshape(groups)
    return tables.reshape(-1)[_spread(number, indices) * palettes + indices]


def _unpacked(packed: Tensor, lut: Tensor, shape: list[int]) -> Tensor:
    """iOS 16: one table for the tensor, indices packed from the lowest bit on."""
    bits = (lut.numel() - 1).bit_length()
    every = ((packed[:, None] >> torch.arange(8)) & 1).reshape(-1)
    count = int(torch.tensor(shape).prod())
    indices = (every[: count * bits].reshape(count, bits) << torch.arange(bits)).sum(1)
    return lut[indices].reshape(shape)


@operator("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.to(torch.float32)


@operator("constexpr_sparse_to_dense")
def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    if shape is not None:
        sizes = ints(shape)
        count = int(torch.tensor(sizes).prod())
        chosen = ((mask[:, None] >> torch.arange(8)) & 1).reshape(-1)[:count].reshape(sizes).bool()
    else:
        chosen = mask.bool()
    out = torch.zeros(chosen.shape)
    out[chosen] = nonzero_data.to(torch.float32)
    return out
