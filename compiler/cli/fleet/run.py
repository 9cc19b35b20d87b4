"""Runs a matrix: on this machine one step after the other, or on a cluster of Dask's (`--cluster`).

On a cluster devices are resources of the workers that offer them (`edgec worker --offer`), one of each, so that one
measurement at a time runs there; builds take memory, of which a worker has so much. What a worker that dies had finished is in
the store, and is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.matrix.cell import Cell, Result
from benchmarks.matrix.file import Matrix, cells_of
from compiler.cli.fleet.work import BuildOrder, Built, MeasureOrder, build_one, measure_one, read_result, result_key
from compiler.digest import digest_code
from compiler.errors import UnusableInput, missing_extra

MEMORY = "memory"
# Of a build, over the bytes of the weights, beside what libraries take.
_OF_WEIGHTS, _LIBRARIES_BYTES = 3, 1_500_000_000
_MOST_DEATHS = 3
_LOOK_S = 5.0
# How long a device may be offered by nobody.
_PATIENCE_LOOKS = 24

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """All that a matrix asks for.

    Attributes:
        orders: of cells, in the order of the file.
        weight_bytes: of each model, by its name.
    """

    orders: tuple[MeasureOrder, ...]
    weight_bytes: dict[str, int]


def plan_work(matrix: Matrix, digests: dict[str, str], weight_bytes: dict[str, int]) -> Work:
    """The orders of every cell; `digests` and `weight_bytes` by the model's name."""
    builds = {
        (model, recipe): BuildOrder(
            model, digests[model], recipe, matrix.shapes, matrix.quantization, matrix.verify, matrix.allow
        )
        for model in matrix.models
        for recipe in matrix.recipes
    }
    orders = [
        MeasureOrder(Cell(model, recipe, device), builds[model, recipe], matrix.workload)
        for model, recipe, device in cells_of(matrix)
    ]
    return Work(tuple(orders), weight_bytes)


def run_here(work: Work, address: str, tell: Told) -> list[Result]:
    """Build and measure on this machine, one after the other."""
    total, built = len(work.orders), dict[BuildOrder, Built]()
    found = []
    for number, order in enumerate(work.orders):
        if order.build not in built:
            tell(f"build {order.cell.model.rpartition('/')[2]} {order.cell.recipe}", number, total)
            built[order.build] = build_one(order.build, address)
        tell(order.cell.title, number, total)
        found.append(read_result(measure_one(order, built[order.build], address), address))
    tell("done", total, total)
    return found


def run_on_cluster(work: Work, address: str, cluster: str, tell: Told) -> list[Result]:
    """The same on a cluster's workers.

    Raises:
        UnusableInput: the cluster cannot be reached, a worker has another edgec, or a device is offered by nobody.
    """
    with _client(cluster) as client:
        require_workers(client, sorted({order.cell.device for order in work.orders}))
        builds: dict[BuildOrder, Any] = {}
        cells: dict[str, Any] = {}
        for order in work.orders:
            if order.build not in builds:
                needed = _LIBRARIES_BYTES + _OF_WEIGHTS * work.weight_bytes[order.build.model]
                builds[order.build] = client.submit(
                    build_one, order.build, address, pure=False, retries=0, resources={MEMORY: needed}
                )
            cells[result_key(order)] = client.submit(
                measure_one, order, builds[order.build], address, pure=False, resources={offer(order.cell.device): 1}
            )
        _await(client, cells, work, tell)
        return [_result(cells[result_key(order)], order, address) for order in work.orders]


def offer(device: str) -> str:
    """The name of a device among the resources of a worker."""
    return f"device {device}"


def require_workers(client: Any, devices: Sequence[str]) -> None:
    """Raise UnusableInput where a worker runs another edgec, or a device is offered by none."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise UnusableInput(
            "The cluster has no workers. Start one on each machine: edgec worker ADDRESS --offer DEVICE."
        )
    codes = client.run(digest_code)
    if other := sorted(worker for worker, code in codes.items() if code != digest_code()):
        raise UnusableInput(f"The worker {other[0]} runs another edgec than this one. Install the same release there.")
    offered = {name for each in workers.values() for name in each["resources"]}
    if missing := [device for device in devices if offer(device) not in offered]:
        raise UnusableInput(
            f"No worker offers the device {missing[0]}. Start one where it can be reached: edgec worker ADDRESS --offer "
            f"{missing[0]}."
        )


def _await(client: Any, cells: dict[str, Any], work: Work, tell: Told) -> None:
    """Wait for all cells; those of a device that nobody offers any more are given up."""
    from distributed import wait

    titles = {result_key(order): order for order in work.orders}
    missed: dict[str, int] = {}
    while pending := {key: future for key, future in cells.items() if not future.done()}:
        tell(f"{len(pending)} cells to do", len(cells) - len(pending), len(cells))
        try:
            wait(list(pending.values()), timeout=_LOOK_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            offered = {
                name for each in client.scheduler_info(n_workers=-1)["workers"].values() for name in each["resources"]
            }
            for key, future in pending.items():
                device = titles[key].cell.device
                missed[key] = missed.get(key, 0) + 1 if offer(device) not in offered else 0
                if missed[key] > _PATIENCE_LOOKS:
                    future.cancel()
    tell("done", len(cells), len(cells))


def _result(future: Any, order: MeasureOrder, address: str) -> Result:
    if future.status == "finished":
        return read_result(future.result(), address)
    reason = "no worker offers its device any more."
    if future.status == "error":
        reason = f"its worker died {_MOST_DEATHS} times while it had it, which want of memory does."
    return Result(order.cell, "failed", reason)


@contextmanager
def _client(cluster: str) -> Iterator[Any]:
    try:
        import dask
        from distributed import Client
    except ModuleNotFoundError as error:
        raise missing_extra("distributed", "fleet") from error
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": _MOST_DEATHS}):
            client = Client(cluster, timeout=20)
    except (OSError, ValueError, TimeoutError) as error:
        raise UnusableInput(f"There is no cluster at {cluster}. Start one: dask scheduler --port 8786.") from error
    try:
        yield client
    finally:
        client.close()
