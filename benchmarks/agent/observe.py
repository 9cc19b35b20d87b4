"""What the system tells of a process and of the machine. A figure that it does not give is None, never 0."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.agent.conditions import Conditions
from benchmarks.agent.watch import Watch

_POLL_S = 0.005


@dataclass(frozen=True)
class Resident:
    """Resident memory of a process: all of it, the anonymous part, and the part that maps files."""

    rss_bytes: int | None
    anon_bytes: int | None
    file_bytes: int | None


def _status(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}


def resident_of(pid: int) -> Resident:
    """The process's memory now (/proc/PID/status)."""
    status = _status(pid)
    return Resident(status.get("VmRSS"), status.get("RssAnon"), status.get("RssFile"))


def resident_bytes(pid: int) -> int | None:
    """Its resident set now."""
    return resident_of(pid).rss_bytes


def peak_rss_bytes(pid: int) -> int | None:
    """Its largest resident set so far, as the kernel kept it (VmHWM)."""
    return _status(pid).get("VmHWM")


def watch_memory(pid: int) -> Watch[Resident]:
    """A watch of a process's memory; the largest of each kind is kept, None where the system tells nothing."""

    def look(before: Any, inside: bool) -> list[int | None]:
        now = resident_of(pid)
        found = (now.rss_bytes, now.anon_bytes, now.file_bytes)
        return [_larger(*pair) for pair in zip(before or (None, None, None), found, strict=True)]

    return Watch(look, lambda found: Resident(*(found or (None, None, None))), _POLL_S)


def _larger(first: int | None, second: int | None) -> int | None:
    known = [value for value in (first, second) if value is not None]
    return max(known, default=None)


@dataclass(frozen=True)
class MachineTimes:
    """Counters since boot: CPU seconds busy and stolen over all cores, pages swapped, times that a core was throttled."""

    at_s: float
    busy_s: float | None
    stolen_s: float | None
    swapped_pages: int | None
    throttled: int | None


def machine_times() -> MachineTimes:
    """The counters now (/proc/stat, /proc/vmstat, sysfs)."""
    busy = stolen = None
    swapped = None
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        busy, stolen = (user + nice + system + irq + softirq) / _ticks(), steal / _ticks()
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text("ascii").splitlines())
        swapped = int(counters["pswpin"]) + int(counters["pswpout"])
    except (OSError, ValueError, KeyError, IndexError):
        pass
    counts = [_integer(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_count")]
    known = [count for count in counts if count is not None]
    return MachineTimes(time.monotonic(), busy, stolen, swapped, sum(known) if known else None)


def process_cpu_s(pid: int) -> float | None:
    """CPU seconds of a process and its threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _ticks()
    except (OSError, IndexError, ValueError):
        return None


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Observed:
    """What happened while something ran; None where the system does not tell.

    Attributes:
        wall_s: how long it took.
        other_s: CPU seconds of other processes.
        stolen_s: CPU seconds that the hypervisor took.
        swapped_pages: pages swapped in or out.
        throttled: times that a core was throttled.
        conditions: what the board's sensors told.
    """

    wall_s: float
    other_s: float | None
    stolen_s: float | None
    swapped_pages: int | None
    throttled: int | None
    conditions: Conditions | None = None


class Observation:
    """Counters of the machine and of one process, from here to `end`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._machine, self._own_s = machine_times(), process_cpu_s(pid)

    def end(self) -> Observed:
        """What they counted."""
        before, after = self._machine, machine_times()
        busy = _difference(before.busy_s, after.busy_s)
        own = _difference(self._own_s, process_cpu_s(self._pid))
        swapped = _difference(before.swapped_pages, after.swapped_pages)
        throttled = _difference(before.throttled, after.throttled)
        return Observed(
            after.at_s - before.at_s,
            None if busy is None or own is None else max(0.0, busy - own),
            _difference(before.stolen_s, after.stolen_s),
            None if swapped is None else int(swapped),
            None if throttled is None else int(throttled),
        )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
