"""Runs a matrix: on this machine one step after the other, or on a cluster of Dask's (`--cluster`).

On a cluster devices are resources of the workers that offer them (`edgec worker --offer`), one of each, so that one
measurement at a time runs there; builds take memory, of which a worker has so much. What a worker that dies had finished is in
the store, and is not done again.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.matrix.cell import Cell, Result
from benchmarks.matrix.file import Matrix, cells_of
from benchmarks.matrix.store import Store
from compiler.cli.fleet.work import (
    LOCAL,
    BuildOrder,
    Built,
    MeasureOrder,
    build_one,
    known_build,
    measure_one,
    read_result,
)
from compiler.digest import digest_code
from compiler.errors import UnusableInput, missing_extra

MEMORY = "memory"
_LOOK_S = 5.0
# How long a device may be offered by nobody.
_PATIENCE_LOOKS = 24

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """All that a matrix asks for.

    Attributes:
        orders: of cells, in the order of the file.
        memory_bytes: that a build of each model takes at most, by its name.
    """

    orders: tuple[MeasureOrder, ...]
    memory_bytes: dict[str, int]


def plan_work(matrix: Matrix, digests: dict[str, str], again: bool = False) -> Work:
    """The orders of every cell; `digests` by the model's name, `again` as in MeasureOrder. What builds take is not told."""
    builds = {
        (model, recipe): BuildOrder(
            _resolved(model), digests[model], recipe, matrix.shapes, matrix.quantization, matrix.verify, matrix.allow
        )
        for model in matrix.models
        for recipe in matrix.recipes
    }
    orders = [
        MeasureOrder(Cell(model, recipe, device), builds[model, recipe], matrix.workload, again)
        for model, recipe, device in cells_of(matrix)
    ]
    return Work(tuple(orders), {})


def _resolved(model: str) -> str:
    """A folder by its whole path: workers have folders of their own."""
    return str(Path(model).resolve()) if Path(model).exists() else model


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
        _require_shared(client, address)
        _require_memory(client, work, Store(address))
        builds: dict[BuildOrder, Any] = {}
        cells: dict[MeasureOrder, Any] = {}
        for order in work.orders:
            if order.build not in builds:
                needed = work.memory_bytes[order.cell.model]
                known = known_build(order.build, Store(address))
                builds[order.build] = known or client.submit(
                    build_there, order.build, address, pure=False, resources={MEMORY: needed}
                )
            cells[order] = client.submit(
                measure_alone, order, builds[order.build], address, pure=False, resources={offer(order.cell.device): 1}
            )
        try:
            _await(client, cells, builds, work, tell)
        except (CancelledError, OSError) as error:
            raise UnusableInput(
                f"The scheduler at {cluster} is gone. Start it, and run the same command: what is done is in the store."
            ) from error
        return [_result(cells[order], order, address) for order in work.orders]


def measure_alone(order: MeasureOrder, built: Built, address: str) -> str:
    """Measure a cell while no other worker measures on its device."""
    from distributed import Lock

    where = platform.node() if order.cell.device == LOCAL else ""
    with Lock(f"{offer(order.cell.device)} {where}"):
        return measure_one(order, built, address, _say)


def build_there(order: BuildOrder, address: str) -> Built:
    """Build on a worker, which says so."""
    return build_one(order, address, _say)


def _say(done: str) -> None:
    """For whoever looks at a worker's terminal."""
    print(done, flush=True)


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
    try:
        codes = client.run(digest_code)
    except (ImportError, AttributeError) as error:
        raise UnusableInput("A worker has no edgec. Start workers with edgec worker ADDRESS.") from error
    if other := sorted(worker for worker, code in codes.items() if code != digest_code()):
        raise UnusableInput(f"The worker {other[0]} runs another edgec than this one. Install the same release there.")
    offered = {name for each in workers.values() for name in each["resources"]}
    hosts = {each["host"] for each in workers.values() if offer(LOCAL) in each["resources"]}
    if LOCAL in devices and len(hosts) > 1:
        raise UnusableInput(
            f"local is offered by {len(hosts)} machines, whose figures do not compare. Offer it on one, and the others by ssh."
        )
    if missing := [device for device in devices if offer(device) not in offered]:
        raise UnusableInput(
            f"No worker offers the device {missing[0]}. Start one where it can be reached: edgec worker ADDRESS --offer "
            f"{missing[0]}."
        )


def _require_memory(client: Any, work: Work, store: Store) -> None:
    """Raise UnusableInput where no worker has the memory for a build that is to do, which would wait for ever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    most = max(each["resources"].get(MEMORY, 0.0) for each in workers)
    for order in work.orders:
        needed = work.memory_bytes[order.cell.model]
        if needed > most and known_build(order.build, store) is None:
            raise UnusableInput(
                f"A build of {order.cell.model.rpartition('/')[2]} takes about {needed / 1e9:.1f} GB, and no worker has more "
                f"than {most / 1e9:.1f} GB for builds. Start one where there is more: edgec worker ADDRESS --memory 16GB."
            )


def _require_shared(client: Any, address: str) -> None:
    """Raise UnusableInput where a worker does not see the store."""
    name = f"probe-{secrets.token_hex(4)}"
    Store(address).write(name, name)
    seen = client.run(_sees, address, name)
    Store(address).remove(name)
    if blind := sorted(worker for worker, sees in seen.items() if not sees):
        raise UnusableInput(
            f"The worker {blind[0]} does not see the store {address}. Name one with --store that all workers see: a folder of "
            "a network drive, or s3://bucket/path."
        )


def _sees(address: str, name: str) -> bool:
    try:
        return Store(address).read(name) == name
    except (OSError, UnusableInput):
        return False


def _await(client: Any, cells: dict[MeasureOrder, Any], builds: dict[BuildOrder, Any], work: Work, tell: Told) -> None:
    """Wait for all cells; those that no worker can do any more are given up."""
    from distributed import wait

    missed: dict[MeasureOrder, int] = {}
    while pending := {order: future for order, future in cells.items() if not future.done()}:
        tell(f"{len(pending)} cells to do", len(cells) - len(pending), len(cells))
        try:
            wait(list(pending.values()), timeout=_LOOK_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            workers = [each["resources"] for each in client.scheduler_info(n_workers=-1)["workers"].values()]
            for order, future in pending.items():
                build, needed = builds[order.build], work.memory_bytes[order.cell.model]
                waits = not isinstance(build, Built) and not build.done()
                able = any(offer(order.cell.device) in each for each in workers)
                able = able and (not waits or any(each.get(MEMORY, 0.0) >= needed for each in workers))
                missed[order] = 0 if able else missed.get(order, 0) + 1
                if missed[order] > _PATIENCE_LOOKS:
                    future.cancel()
    tell("done", len(cells), len(cells))


def _result(future: Any, order: MeasureOrder, address: str) -> Result:
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        try:
            return read_result(future.result(), address)
        except UnusableInput as error:
            return Result(order.cell, "failed", str(error))
    if future.status == "error":
        raised = future.exception()
        if isinstance(raised, KilledWorker):
            reason = "workers died again and again while they had it, which want of memory does."
        else:
            reason = f"a worker ended it with an error that edgec does not know ({type(raised).__name__})."
        return Result(order.cell, "failed", reason)
    return Result(order.cell, "failed", "no worker offers its device, or has the memory for its build, any more.")


@contextmanager
def _client(cluster: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise missing_extra("distributed", "fleet") from error
    try:
        client = Client(cluster, timeout=8)
    except (OSError, ValueError, TimeoutError) as error:
        raise UnusableInput(f"There is no cluster at {cluster}. Start one: dask scheduler --port 8786.") from error
    try:
        yield client
    finally:
        client.close()
