"""A worker of a fleet: a Dask worker that does one thing at a time and says which devices can be measured from it."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Sequence

import psutil

from compiler.cli.fleet.run import MEMORY, offer
from compiler.errors import UnusableInput, missing_extra
from runtimes.devices.registry import require_transport

_PATIENCE_S = "30 s"


def serve(address: str, offers: Sequence[str], memory_bytes: int | None) -> None:
    """Work until the scheduler ends.

    Args:
        address: of the scheduler.
        offers: devices; a measurement on `local` and a build here never run at the same time.
        memory_bytes: what builds may take; None for all that is free.

    Raises:
        UnusableInput: there is no scheduler, or a device has no transport.
    """
    for device in offers:
        require_transport(device)
    free = psutil.virtual_memory().available if memory_bytes is None else memory_bytes
    try:
        asyncio.run(_work(address, {MEMORY: float(free), **{offer(device): 1.0 for device in offers}}))
    except (OSError, ValueError, TimeoutError) as error:
        raise UnusableInput(f"There is no scheduler at {address}. Start one: dask scheduler --port 8786.") from error
    except KeyboardInterrupt:
        return


async def _work(address: str, resources: dict[str, float]) -> None:
    try:
        from distributed import Worker
    except ModuleNotFoundError as error:
        raise missing_extra("distributed", "fleet") from error
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="edgec-worker-") as folder:
        async with Worker(
            address, nthreads=1, resources=resources, local_directory=folder, death_timeout=_PATIENCE_S, memory_limit=0
        ) as worker:
            print(
                f"works for {address}, offers {', '.join(name for name in resources if name != MEMORY) or 'builds'}",
                flush=True,
            )
            await worker.finished()
