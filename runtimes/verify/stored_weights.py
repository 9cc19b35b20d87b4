"""The model with the weights that a package stores, in torch: what the package ought to compute.

Converters rename, fuse, reorder and turn matrices. Which matrix of the model a stored one is, its rows tell: they are the
model's, rounded, and rows of other matrices are far away. What a runtime rounds beside the weights is done here too, so
that it is known how much of a difference that explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from runtimes.stored.matrix import EXACT, Rounding, StoredMatrix
from runtimes.verify.rounded_attention import RoundedAttention

# Beyond this distance, over the norm of what is stored, two rows are no likely pair: unrelated rows are at 1.4, those of
# two bits at 0.5.
_ALIKE = 0.75
_SAMPLED_ROWS = 16
_PROJECTED = 64
_ROWS_AT_ONCE = 1024
_TINY = 1e-12
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Place:
    """A matrix of the torch model.

    Attributes:
        name: of the parameter.
        values: a view of it, (rows, columns).
        marks: where its rows point, as the model has them.
        looked_up: rows of it are looked up.
        module: whose it is; None for one of several experts.
    """

    name: str
    values: torch.Tensor
    marks: torch.Tensor
    looked_up: bool
    module: torch.nn.Module | None


@dataclass
class PutIn:
    """What became of a package's matrices.

    Attributes:
        rounded: the modules whose input the runtime rounds, and to what.
        unknown: names of quantized matrices that are none of the model's.
        squared_error, squared: of all values that were put in: what they are off by, and the model's own.
    """

    rounded: dict[torch.nn.Module, Rounding] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    squared_error: float = 0.0
    squared: float = 0.0

    @property
    def weight_error(self) -> float:
        """The norm of what rounding changed over the norm of the model's weights."""
        return (self.squared_error / self.squared) ** 0.5 if self.squared else 0.0


def put_stored_weights(model: torch.nn.Module, matrices: Iterable[StoredMatrix]) -> PutIn:
    """Give a float32 model the values that a package stores, in place; what a package has no matrix for stays."""
    _untie(model)
    places, done = list(_places(model)), PutIn()
    with torch.no_grad():
        for matrix in matrices:
            uses = [looked_up for looked_up, is_so in ((True, matrix.looked_up), (False, matrix.multiplied)) if is_so]
            found = [_put(matrix, [place for place in places if place.looked_up == use], done) for use in uses]
            if matrix.quantized and not any(found):
                done.unknown.append(matrix.name)
    return done


def _untie(model: torch.nn.Module) -> None:
    """Give every module parameters of its own: a container may store a tied table twice, each in another type."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.data_ptr() in seen:
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(parameter.data_ptr())


def _places(model: torch.nn.Module) -> Iterator[_Place]:
    for prefix, module in model.named_modules():
        looked_up = isinstance(module, torch.nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False):
            values, title = parameter.detach(), f"{prefix}.{name}"
            if values.ndim == 2:
                found = [values.T if type(module).__name__ == "Conv1D" else values]
            elif values.ndim == 3:
                found = list(values)
            else:
                found = [values.reshape(len(values), -1)] if values.ndim == 4 else []
            for each in found:
                yield _Place(title, each, _marks(each), looked_up, module if values.ndim != 3 else None)


def _put(matrix: StoredMatrix, places: Sequence[_Place], done: PutIn) -> bool:
    """Put a matrix where it belongs; False where it belongs nowhere."""
    stored = torch.from_numpy(matrix.values)
    for values in (stored, stored.T):
        alike = [place for place in places if place.values.shape[1] == values.shape[1]]
        named = [place for place in alike if place.name == matrix.name and place.values.shape == values.shape]
        rows = torch.arange(len(values))
        found = [(place, rows, rows) for place in named]
        if not found:
            found = _whole(values, alike) or _row_by_row(values, alike)
            # Rows are paired about their mean; that the mean is the model's too is asked here.
            if any(_distance(values[chosen], place.values[rows]) >= _ALIKE for place, rows, chosen in found):
                continue
        for place, rows, chosen in found:
            new = values[chosen]
            own = place.values[rows]
            done.squared_error += float((new - own).square().sum(dtype=torch.float64))
            done.squared += float(own.square().sum(dtype=torch.float64))
            place.values[rows] = new
            if place.module is not None and matrix.rounding != EXACT and not place.looked_up:
                done.rounded[place.module] = matrix.rounding
        if found:
            return True
    return False


_Found = list[tuple[_Place, torch.Tensor, torch.Tensor]]


def _whole(values: torch.Tensor, places: Sequence[_Place]) -> _Found:
    """The place whose rows these are, in order."""
    rows = torch.arange(len(values))
    sample = rows[:: max(1, len(values) // _SAMPLED_ROWS)]
    errors = [
        (_error(values[sample], place.values[sample]), place) for place in places if place.values.shape == values.shape
    ]
    error, place = min(errors, key=lambda each: each[0], default=(1.0, None))
    return [(place, rows, rows)] if place is not None and error < _ALIKE else []


def _row_by_row(values: torch.Tensor, places: Sequence[_Place]) -> _Found:
    """The places whose rows these are, in another order, or those of several one after the other."""
    same = [place for place in places if place.values.shape == values.shape]
    marks = _marks(values)
    sample = torch.arange(0, len(values), max(1, len(values) // _SAMPLED_ROWS))
    for among in (same, places):
        nearest = _nearest(marks[sample], among) if among else sample[:0]
        owners = [among[number] for number in sorted(set(_split(nearest, among)[0].tolist()))] if among else []
        if owners and _error(values[sample], _rows(nearest, among)) < _ALIKE:
            break
    else:
        return []
    found = _in_a_row(values, marks, owners[0]) if len(owners) == 1 else None
    nearest = _nearest(marks, owners) if found is None else found
    if len(set(nearest.tolist())) != len(values) or _error(values, _rows(nearest, owners)) >= _ALIKE:
        return []
    of, own = _split(nearest, owners)
    return [
        (place, own[chosen], chosen)
        for number, place in enumerate(owners)
        for chosen in [torch.nonzero(of == number).flatten()]
    ]


def _in_a_row(values: torch.Tensor, marks: torch.Tensor, place: _Place) -> torch.Tensor | None:
    """The rows that these are where they follow one another: a part of a matrix."""
    first = int(_nearest(marks[:1], [place]))
    found = torch.arange(first, first + len(values))
    return found if found[-1] < len(place.values) and _error(values, place.values[found]) < _ALIKE else None


def _rows(numbers: torch.Tensor, places: Sequence[_Place]) -> torch.Tensor:
    """Rows of several places one after the other."""
    of, own = _split(numbers, places)
    return torch.stack([places[place].values[row] for place, row in zip(of.tolist(), own.tolist(), strict=True)])


def _split(rows: torch.Tensor, places: Sequence[_Place]) -> tuple[torch.Tensor, torch.Tensor]:
    """For rows of several places one after the other: which place, and which row of it."""
    ends = torch.tensor([len(place.values) for place in places]).cumsum(0)
    of = torch.bucketize(rows, ends, right=True)
    starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
    return of, rows - starts[of]


def _marks(values: torch.Tensor) -> torch.Tensor:
    """Where rows point, in fewer dimensions: (rows, at most 64), each of length 1."""
    columns, values = values.shape[1], _centred(values)
    if columns > _PROJECTED:
        values = values @ torch.randn(columns, _PROJECTED, generator=torch.Generator().manual_seed(columns))
    return torch.nn.functional.normalize(values, dim=1)


def _nearest(marks: torch.Tensor, places: Sequence[_Place]) -> torch.Tensor:
    """For each of these rows, the one of the places that points the most its way."""
    every = torch.cat([place.marks for place in places]).T
    return torch.cat([(part @ every).argmax(1) for part in marks.split(_ROWS_AT_ONCE)])


def _centred(values: torch.Tensor) -> torch.Tensor:
    """Rows about their own mean: those of a matrix of positive values all point one way else."""
    return values - values.mean(1, keepdim=True)


def _error(stored: torch.Tensor, own: torch.Tensor) -> float:
    return _distance(_centred(stored), _centred(own))


def _distance(stored: torch.Tensor, own: torch.Tensor) -> float:
    norm = float(own.norm())
    return float((stored - own).norm()) / norm if norm else float(stored.norm() > 0)


@contextmanager
def rounded_as_by_the_runtime(done: PutIn) -> Iterator[None]:
    """Round what goes into products as the runtime does."""
    hooks = []
    for module, rounding in done.rounded.items():
        hooks.append(module.register_forward_pre_hook(_rounding_hook(rounding)))
        if rounding.results or rounding.result_spans:
            hooks.append(module.register_forward_hook(_result_hook(rounding)))
    attention = next((each for each in done.rounded.values() if each.attention), None)
    try:
        with RoundedAttention(partial(round_as, rounding=attention)) if attention else nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _rounding_hook(rounding: Rounding) -> Any:
    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (round_as(inputs[0], rounding), *inputs[1:])

    return hook


def _result_hook(rounding: Rounding) -> Any:
    if rounding.result_spans:
        low, high = torch.tensor(rounding.result_spans).T
        return lambda module, inputs, result: _in_steps(result, low, high)
    return lambda module, inputs, result: round_as(result, rounding)


def round_as(values: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Float32 values as they are after rounding, in the same shape."""
    if rounding.to in _FLOATS:
        return values.to(_FLOATS[rounding.to]).float()
    if rounding.span is not None:
        return _in_steps(values, *(torch.tensor(end) for end in rounding.span))
    if not rounding.group:
        return _in_integers(values.reshape(1, -1), rounding).reshape(values.shape)
    padding = -values.shape[-1] % rounding.group
    groups = torch.nn.functional.pad(values, (0, padding)).unflatten(-1, (-1, rounding.group))
    return _in_integers(groups, rounding).flatten(-2)[..., : values.shape[-1]]


def _in_integers(groups: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Values along the last axis share a scale."""
    if rounding.to == "int8":
        step = groups.abs().amax(-1, keepdim=True).clamp(min=_TINY) / 127
        return (groups / step).round() * step
    return _in_steps(groups, groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0))


def _in_steps(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Values as the nearest of 256 steps from `low` to `high`."""
    step = (high - low).clamp(min=_TINY) / 255
    zero = (-low / step).round()
    return ((values / step).round() + zero).clamp(0, 255).sub(zero) * step
