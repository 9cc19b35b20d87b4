"""A scheduler and workers of `edgec worker` on the loopback, each in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def cluster(
    workers: int, folder: Path, share: bool = True, cores: int | None = None
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Their address, and the workers; all share one cache in the folder, or have one each as on machines of their own.

    With `cores` each has so many processors for itself.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = [
        sys.executable,
        "-P",
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    processes = [subprocess.Popen([*scheduler, "--no-dashboard"], stderr=subprocess.DEVNULL)]
    script = str(Path(sys.executable).with_name("edgec"))
    try:
        for number in range(workers):
            cache = folder / ("cache" if share else f"cache-{number}")
            # Who is killed leaves what it has there.
            scratch = folder / "scratch"
            scratch.mkdir(exist_ok=True)
            environment = {**os.environ, "EDGEC_CACHE": str(cache), "TMPDIR": str(scratch)}
            own = range(number * (cores or 0), (number + 1) * (cores or 0))
            pinned = ["taskset", "-c", ",".join(map(str, own))] if cores else []
            command = [*pinned, script, "worker", address, "--offer", "local", "--memory", "8GB"]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
        for process in processes[1:]:
            assert process.stdout is not None and b"works for" in process.stdout.readline()
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def lines_of(workers: Sequence[subprocess.Popen[bytes]]) -> list[str]:
    """What the workers say that they did, without how long it took; they are ended."""
    found = []
    for worker in workers:
        worker.kill()
        told, _ = worker.communicate(timeout=30)
        found += [line.rpartition(" in ")[0] for line in told.decode().splitlines()]
    return found
