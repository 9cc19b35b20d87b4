"""How kernels run: tiles in registers and on all cores for products, rows on all cores for the rest.

TVM's own rules leave loops of products as they are, a hundred times slower. A function that no rule here suits stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx

from targets.neo.kernels import CONVOLVED, MIXED, PRODUCTS
from targets.neo.machines import Machine

# Below so many values a loop is not worth waking the other cores.
_ALONE = 16_384


def schedule(module: Any, machine: Machine) -> Any:
    """The module with every function of loops arranged for the machine."""
    functions = {}
    for name, function in module.functions.items():
        functions[name] = _arranged(function, machine) if isinstance(function, tirx.PrimFunc) else function
    return tvm.IRModule(functions, attrs=module.attrs)


def _arranged(function: Any, machine: Machine) -> Any:
    named = function.attrs is not None and "global_symbol" in function.attrs
    made = s_tir.Schedule(function if named else function.with_attr("global_symbol", "main"))
    blocks = made.get_child_blocks(made.get_sblock("root"))
    product = next((each for each in blocks if made.get(each).name_hint.startswith(PRODUCTS)), None)
    try:
        if product is not None:
            _tile(made, blocks, product, machine)
        elif any(made.get(each).init is not None for each in blocks):
            _by_rows(made, blocks, machine)
        else:
            _spread(made, blocks, machine)
    except (s_tir.schedule.ScheduleError, tvm.error.InternalError, ValueError, IndexError):
        # No rule suits it: it stays as TVM has it.
        return function
    arranged = made.mod["main" if not named else str(function.attrs["global_symbol"])]
    return (arranged if named else arranged.without_attr("global_symbol")).with_attr("tirx.is_scheduled", True)


def _extent(made: Any, loop: Any) -> int:
    return int(made.get(loop).extent)


def _tile(made: Any, blocks: Sequence[Any], product: Any, machine: Machine) -> None:
    """Sums of `rows` x `columns` in registers, with what follows them done tile by tile."""
    last = blocks[-1]
    for block in blocks[:-1]:
        if made.get(block).name_hint != made.get(product).name_hint:
            made.compute_inline(block)
    name = made.get(product).name_hint
    loops = made.get_loops(last)
    if name.startswith(MIXED):
        # batch, tokens, heads, width
        made.reorder(loops[0], loops[2], loops[1], loops[3])
    elif name.startswith(CONVOLVED):
        # batch, channels, rows, places
        made.reorder(loops[0], loops[2], loops[3], loops[1])
    loops = made.get_loops(last)
    row, column = loops[-2], loops[-1]
    columns = _columns(_extent(made, column), machine)
    rows = next(count for count in range(machine.rows, 0, -1) if _extent(made, row) % count == 0)
    lanes = math.gcd(columns, machine.lanes)
    row_tile, row_in = made.split(row, [None, rows])
    column_tile, column_vector, lane = made.split(column, [None, columns // lanes, lanes])
    made.reorder(*loops[:-2], column_tile, row_tile, row_in, column_vector, lane)
    outer = made.fuse(*loops[:-2], column_tile, row_tile)
    made.parallel(outer)
    made.compute_at(product, outer, preserve_unit_loops=True)
    summed = sum(each.iter_type == each.CommReduce for each in made.get(product).iter_vars)
    own_row, own_column, *summed_over = made.get_loops(product)[-2 - summed :]
    own_vector, own_lane = made.split(own_column, [None, lanes])
    made.reorder(*summed_over, own_row, own_vector, own_lane)
    made.unroll(own_row)
    made.unroll(own_vector)
    made.vectorize(own_lane)
    beginning = made.decompose_reduction(product, summed_over[0])
    first, second, third = made.get_loops(beginning)[-3:]
    made.unroll(first)
    made.unroll(second)
    made.vectorize(third)
    made.unroll(row_in)
    made.unroll(column_vector)
    made.vectorize(lane)


def _columns(extent: int, machine: Machine) -> int:
    """Columns of a tile: the widest that divides them, down to one vector."""
    return next(
        (n for n in range(machine.columns, 0, -machine.lanes) if extent % n == 0), math.gcd(extent, machine.columns)
    )


def _by_rows(made: Any, blocks: Sequence[Any], machine: Machine) -> None:
    """Rows on all cores, each row's sums kept in as many lanes as fill two vectors."""
    *before, last = blocks
    width = 2 * machine.lanes
    steps: list[Any] = []
    for block in before:
        extent = _extent(made, made.get_loops(block)[-1])
        if made.get(block).init is not None and extent % width == 0:
            _, lane = made.split(made.get_loops(block)[-1], [None, width])
            steps += [made.rfactor(lane, factor_axis=len(made.get(block).writes[0].buffer.shape)), block]
        else:
            steps.append(block)
    if made.get(last).init is not None:
        made.parallel(made.fuse(*made.get_loops(last)[:-1]))
        return
    loops = made.get_loops(last)
    row = made.fuse(*loops[:-1])
    made.parallel(row)
    _vectorize(made, last, machine)
    for block in reversed(steps):
        made.compute_at(block, row, preserve_unit_loops=True)
    for block in steps:
        if made.get(block).init is None:
            _vectorize(made, block, machine)
        elif made.get(block).name_hint.endswith("_rf"):
            lane, outer = made.get_loops(block)[-2:]
            made.reorder(outer, lane)
            made.vectorize(lane)
            made.vectorize(made.get_loops(made.decompose_reduction(block, outer))[-1])


def _vectorize(made: Any, block: Any, machine: Machine) -> None:
    loop = made.get_loops(block)[-1]
    if _extent(made, loop) % machine.lanes == 0:
        _, lane = made.split(loop, [None, machine.lanes])
        made.vectorize(lane)


def _spread(made: Any, blocks: Sequence[Any], machine: Machine) -> None:
    """Values one by one: vectors of them, on all cores where there are many."""
    *before, last = blocks
    for block in before:
        made.compute_inline(block)
    loops = made.get_loops(last)
    total = math.prod(_extent(made, loop) for loop in loops)
    if not loops or total % machine.lanes:
        return
    outer, lane = made.split(made.fuse(*loops), [None, machine.lanes])
    made.vectorize(lane)
    if total >= _ALONE:
        made.parallel(outer)
