"""What the system tells of a process and of the machine. A figure that it does not give is None, never 0."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

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


class PeakWatch:
    """Polls a process's memory from this one while it is open; the largest of each kind stays in `peak`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = Resident(None, None, None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.is_set():
            now = resident_of(self.pid)
            self.peak = Resident(
                _larger(self.peak.rss_bytes, now.rss_bytes),
                _larger(self.peak.anon_bytes, now.anon_bytes),
                _larger(self.peak.file_bytes, now.file_bytes),
            )
            time.sleep(_POLL_S)


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
    import os

    return os.sysconf("SC_CLK_TCK")


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
