"""What a cluster takes for a cell beside its work: cells that do nothing, on devices that are only names.

Each cell waits for a build and asks for one device, as those of `edgec matrix` do. Linear means that ten times the cells take
ten times as long.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers.timing import print_ratio

_DEVICES = 1000
_CELLS = (1000, 10_000)
_WORKERS = 2


def build(number: int) -> int:
    """A build that takes no time."""
    return number


def measure(built: int, device: str) -> str:
    """A measurement that takes no time."""
    return f"{built} {device}"


def schedule(client: Any, cells: int) -> float:
    """Seconds for so many cells, ten to a build."""
    began = time.perf_counter()
    builds = [client.submit(build, number, pure=False, resources={"memory": 1}) for number in range(cells // 10)]
    futures = [
        client.submit(measure, builds[number // 10], device, pure=False, resources={f"device {device}": 1})
        for number in range(cells)
        for device in [str(number % _DEVICES)]
    ]
    found = client.gather(futures)
    assert len(set(found)) == len(found) == cells
    return time.perf_counter() - began


def main() -> None:
    """Print milliseconds a cell, and how they grow."""
    from distributed import Client, LocalCluster

    resources = {"memory": 4.0, **{f"device {number}": 1.0 for number in range(_DEVICES)}}
    with (
        LocalCluster(
            n_workers=_WORKERS,
            threads_per_worker=1,
            processes=True,
            resources=resources,
            dashboard_address=None,
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        schedule(client, 100)
        each = {cells: 1e3 * schedule(client, cells) / cells for cells in _CELLS}
    few, many = (each[cells] for cells in _CELLS)
    print_ratio(f"a cell of {_CELLS[1]} on {_DEVICES} devices, against 5 ms", many, 5.0, "ms", 1.0)
    print_ratio(f"    / a cell of {_CELLS[0]}", many, few, "ms", 1.5)


if __name__ == "__main__":
    main()
