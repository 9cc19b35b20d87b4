"""What a board tells of itself while something runs: clocks, heat, throttling, power, free memory.

A Raspberry Pi's firmware tells whether it holds the processor back (`vcgencmd get_throttled`, bits 0 to 3; bits 16 to 19 say
the same of any time since it was started, and cannot show a second event), and the Pi 5's power chip tells volts and amperes.
Elsewhere the kernel's own files are read: cpufreq, thermal zones, devfreq, hwmon, batteries.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.agent.watch import Watch

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_GOVERNORS = "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
_PAUSE_S = 1.0
_PATIENCE_S = 2.0
# What a Pi 5 takes by its power chip's rails: pi-top's fit to a meter at the plug. It leaves out what hangs on USB.
_PLUG_FACTOR, _PLUG_W = 1.1451, 0.5879


@dataclass(frozen=True)
class Conditions:
    """What was seen through a stretch of time; None where there is no such sensor.

    Attributes:
        lowest_mhz, highest_mhz: the clock of the fastest core, at its lowest and its highest while the work went on.
        hottest_c: the hottest thermal zone.
        flags: what a Raspberry Pi's firmware said at any look: names of its bits 0 to 3.
        memory_mhz: the lowest clock of the memory.
        power_w: the mean of what it took meanwhile.
        available_bytes: the least free memory.
        governors: what decided on the clocks, before, meanwhile and after.
        looks: how often was looked meanwhile; before and after it only flags, heat and memory are.
    """

    lowest_mhz: float | None = None
    highest_mhz: float | None = None
    hottest_c: float | None = None
    flags: tuple[str, ...] | None = None
    memory_mhz: float | None = None
    power_w: float | None = None
    available_bytes: int | None = None
    looks: int = 0
    governors: tuple[str, ...] = ()


def watch_conditions(root: Path = Path("/")) -> Watch[Conditions]:
    """A watch of the board whose files are below `root`."""
    firmware = shutil.which("vcgencmd")

    def look(before: Any, inside: bool) -> dict[str, Any]:
        now = _look(root, firmware, inside)
        return asdict(now) if before is None else asdict(join(Conditions(**before), now))

    def read(found: Any) -> Conditions:
        if found is None:
            return Conditions()
        flags = None if found["flags"] is None else tuple(found["flags"])
        return Conditions(**{**found, "flags": flags, "governors": tuple(found["governors"])})

    return Watch(look, read, _PAUSE_S)


def join(first: Conditions, second: Conditions) -> Conditions:
    """Two stretches as one."""
    looks = first.looks + second.looks
    powers = [(each.power_w, each.looks) for each in (first, second) if each.power_w is not None]
    flags = None
    if first.flags is not None or second.flags is not None:
        seen = {*(first.flags or ()), *(second.flags or ())}
        flags = tuple(name for name in _FLAGS if name in seen)
    return Conditions(
        _least(first.lowest_mhz, second.lowest_mhz),
        _most(first.highest_mhz, second.highest_mhz),
        _most(first.hottest_c, second.hottest_c),
        flags,
        _least(first.memory_mhz, second.memory_mhz),
        sum(power * count for power, count in powers) / max(1, sum(count for _, count in powers)) if powers else None,
        None if (least := _least(first.available_bytes, second.available_bytes)) is None else int(least),
        looks,
        tuple(sorted({*first.governors, *second.governors})),
    )


def _look(root: Path, firmware: str | None, inside: bool) -> Conditions:
    sys = root / "sys"
    # Cores that have nothing to do are slow, and all are before the work begins.
    clock = _most(*_numbers(sys, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")) if inside else None
    heat = _most(*_numbers(sys, "class/thermal/thermal_zone*/temp"))
    memory = _least(
        *(each for kind in ("dmc", "emc", "mif") for each in _numbers(sys, f"class/devfreq/*{kind}*/cur_freq"))
    )
    clock_mhz = None if clock is None else clock / 1e3
    return Conditions(
        clock_mhz,
        clock_mhz,
        None if heat is None else heat / 1e3,
        _flags(firmware),
        None if memory is None else memory / 1e6,
        _power_w(sys, firmware) if inside else None,
        _available(root),
        int(inside),
        tuple(sorted({_text(file) or "" for file in sys.glob(_GOVERNORS)} - {""})),
    )


def _flags(firmware: str | None) -> tuple[str, ...] | None:
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", _said(firmware, "get_throttled"))
    if found is None:
        return None
    bits = int(found[1], 16)
    return tuple(name for place, name in enumerate(_FLAGS) if bits >> place & 1)


def _power_w(sys: Path, firmware: str | None) -> float | None:
    """Watts by the Pi 5's power chip, a sensor of power, or a battery that gives it."""
    rails = re.findall(r"(\w+)_([AV])\s+\w+\(\d+\)=([\d.]+)[AV]", _said(firmware, "pmic_read_adc"))
    amperes = {name: float(value) for name, unit, value in rails if unit == "A"}
    volts = {name: float(value) for name, unit, value in rails if unit == "V"}
    if amperes.keys() & volts.keys():
        inside = sum(amperes[name] * volts[name] for name in amperes.keys() & volts.keys())
        return inside * _PLUG_FACTOR + _PLUG_W
    # An INA3221, as Jetsons have it: the first channel is the whole board's.
    milliamperes, millivolts = (_numbers(sys, f"class/hwmon/hwmon*/{kind}1_input") for kind in ("curr", "in"))
    if len(milliamperes) == len(millivolts) == 1:
        return milliamperes[0] * millivolts[0] / 1e6
    sensors = _numbers(sys, "class/hwmon/hwmon*/power1_input")
    if len(sensors) == 1:
        # Of several nothing tells which is the whole supply's, and which are its rails'.
        return sensors[0] / 1e6
    for supply in sorted(sys.glob("class/power_supply/*")):
        if _text(supply / "status") == "Discharging":
            microwatts = _numbers(supply, "power_now")
            if microwatts:
                return microwatts[0] / 1e6
            current, voltage = _numbers(supply, "current_now"), _numbers(supply, "voltage_now")
            if current and voltage:
                return abs(current[0]) * voltage[0] / 1e12
    return None


def _available(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo") or "", re.M)
    return int(found[1]) * 1024 if found else None


def _said(program: str | None, word: str) -> str:
    """What a program prints; nothing where there is none, or it hangs."""
    if program is None:
        return ""
    try:
        done = subprocess.run([program, word], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _numbers(folder: Path, pattern: str) -> list[float]:
    texts = [_text(file) for file in sorted(folder.glob(pattern))]
    return [float(text) for text in texts if text and re.fullmatch(r"-?\d{1,18}", text)]


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)
