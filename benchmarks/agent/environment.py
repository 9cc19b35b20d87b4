"""The machine on which a measurement was made. What it does not tell is null, with the reason beside it."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from compiler.digest import tool_version

_BANDWIDTH_BYTES = 256 * 1024 * 1024
_BANDWIDTH_REPEATS = 5
_PRODUCT_ROWS, _PRODUCTS_S = 1024, 0.3


@dataclass(frozen=True)
class Environment:
    """Attributes as named; `absent` gives the reason for each that is None.

    `allowed_cores` are those that the process may use, by its affinity and its control group's share of time.
    `memory_read_bytes_per_s` is measured: the best of a few passes of `threads` threads over a buffer that no cache holds;
    `fp32_ops_per_s` too, by numpy's product of matrices of 1024 rows, on the threads that numpy takes.
    """

    machine: str
    cpu: str
    physical_cores: int | None
    logical_cores: int | None
    governor: str | None
    frequency_mhz: float | None
    temperature_c: float | None
    memory_bytes: int
    memory_available_bytes: int
    memory_read_bytes_per_s: float | None
    kernel: str
    python: str
    tools: dict[str, str]
    absent: dict[str, str]
    allowed_cores: float | None = None
    fp32_ops_per_s: float | None = None


def read_environment(threads: int, distributions: Sequence[str], *, rates: bool = True) -> Environment:
    """Look at this machine; its `rates` take about a second."""
    absent = {}
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    if governor is None:
        absent["governor"] = "the system shows no cpufreq governor"
    frequency = _frequency_mhz()
    if frequency is None:
        absent["frequency_mhz"] = "neither cpufreq nor /proc/cpuinfo tells it"
    temperature = _temperature_c()
    if temperature is None:
        absent["temperature_c"] = "no thermal zone"
    tools = {name: version for name in sorted(set(distributions)) if (version := tool_version(name))}
    return Environment(
        machine=platform.machine(),
        cpu=_cpu_name(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=os.cpu_count(),
        governor=governor,
        frequency_mhz=frequency,
        temperature_c=temperature,
        memory_bytes=psutil.virtual_memory().total,
        memory_available_bytes=psutil.virtual_memory().available,
        memory_read_bytes_per_s=measure_read_bandwidth(threads) if rates else None,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        tools=tools,
        absent=absent,
        allowed_cores=_allowed_cores(),
        fp32_ops_per_s=measure_fp32() if rates else None,
    )


def _allowed_cores() -> float | None:
    """Cores of the process's affinity, or what its control group lets it have of them (cgroup v2, cpu.max)."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = float(len(os.sched_getaffinity(0)))
    said = (_read(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    if len(said) == 2 and said[0].isdigit() and said[1].isdigit() and int(said[1]):
        cores = min(cores, int(said[0]) / int(said[1]))
    return cores


def measure_read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory together."""
    parts = [np.ones(_BANDWIDTH_BYTES // threads // 8, np.int64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_BANDWIDTH_REPEATS):
            started = time.perf_counter()
            list(pool.map(_read_once, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - started))
    return best


def measure_fp32() -> float:
    """Operations a second of numpy's product of two float32 matrices: the best of a few tenths of a second."""
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal((_PRODUCT_ROWS, _PRODUCT_ROWS), np.float32) for _ in range(2))
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < _PRODUCTS_S:
        started = time.perf_counter()
        np.matmul(first, second)
        best = max(best, 2 * _PRODUCT_ROWS**3 / (time.perf_counter() - started))
    return best


def _read_once(part: np.ndarray) -> int:
    # A reduction of 64-bit words is bound by memory, not by arithmetic, and releases the interpreter lock.
    return int(np.bitwise_or.reduce(part))


def _cpu_name() -> str:
    text = _read(Path("/proc/cpuinfo")) or ""
    for key in ("model name", "Model", "Hardware"):
        if match := re.search(rf"^{key}\s*:\s*(.+)$", text, re.M):
            return match[1].strip()
    # Phones name their cores alone, by the maker's numbers.
    if parts := sorted(set(re.findall(r"^CPU part\s*:\s*(0x[0-9a-f]+)$", text, re.M))):
        return f"{platform.machine()} {' '.join(parts)}"
    return platform.processor() or platform.machine()


def _frequency_mhz() -> float | None:
    if khz := _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")):
        return int(khz) / 1000
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", _read(Path("/proc/cpuinfo")) or "", re.M)
    return float(match[1]) if match else None


def _temperature_c() -> float | None:
    readings = [_read(path) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    values = [int(reading) / 1000 for reading in readings if reading and reading.lstrip("-").isdigit()]
    return max(values, default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
