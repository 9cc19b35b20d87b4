"""What a board tells of itself: a Raspberry Pi's firmware, the kernel's files, and what a verdict makes of them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, build_tiny_encoder
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.agent.conditions import Conditions, join, watch_conditions
from benchmarks.agent.observe import watch_memory
from benchmarks.validity import Disturbance, judge

# As vcgencmd of a Raspberry Pi 5 prints it; 0.9 V at 2 A and 5.1 V at 0.5 A are among its rails.
_RAILS = """     VDD_CORE_A current(7)=2.00000000A
   3V3_SYS_A current(1)=0.10000000A
   VDD_CORE_V volt(15)=0.90000000V
    3V3_SYS_V volt(9)=3.30000000V
      EXT5V_V volt(24)=5.10000000V"""


def _board(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


def _firmware(folder: Path, throttled: str, rails: str = "") -> None:
    """A program that answers as vcgencmd does: the real one is on Raspberry Pis only."""
    folder.mkdir(exist_ok=True)
    program = folder / "vcgencmd"
    (folder / "throttled").write_text(f"throttled={throttled}\n")
    (folder / "rails").write_text(rails)
    program.write_text(
        f'#!/bin/sh\ncase "$1" in get_throttled) cat {folder}/throttled;; pmic_read_adc) cat {folder}/rails;; esac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def _seen(root: Path) -> Conditions:
    watch = watch_conditions(root)
    try:
        watch.begin()
        time.sleep(0.4)
        return watch.end()
    finally:
        watch.close()


def test_the_kernels_files_are_read(tmp_path: Path) -> None:
    root = _board(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 2400000,
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1500000,
            "sys/class/thermal/thermal_zone0/temp": 61250,
            "sys/class/thermal/thermal_zone1/temp": 48000,
            "sys/class/devfreq/dmc/cur_freq": 528000000,
            "sys/class/hwmon/hwmon0/power1_input": 4500000,
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
            "proc/meminfo": "MemTotal: 100 kB\nMemAvailable:     2048 kB",
        },
    )
    seen = _seen(root)
    assert seen.governors == ("ondemand",)
    other = replace(seen, governors=("performance",))
    assert join(seen, other).governors == ("ondemand", "performance")
    assert (seen.lowest_mhz, seen.hottest_c, seen.memory_mhz, seen.power_w) == (2400.0, 61.25, 528.0, 4.5)
    assert seen.available_bytes == 2048 * 1024 and seen.flags is None and seen.looks == 1


def test_a_jetsons_power_chip_is_read(tmp_path: Path) -> None:
    """An INA3221 tells volts and amperes of three channels, of which the first is the whole board's."""
    chip = "sys/class/hwmon/hwmon3"
    channels = {f"{chip}/curr{n}_input": 900 // n for n in (1, 2, 3)} | {f"{chip}/in{n}_input": 5000 for n in (1, 2, 3)}
    seen = _seen(_board(tmp_path, {**channels, "sys/class/devfreq/17000000.emc/cur_freq": 2133000000}))
    assert seen.power_w == pytest.approx(4.5) and seen.memory_mhz == 2133


def test_a_battery_that_is_charged_says_nothing_of_power(tmp_path: Path) -> None:
    supply = "sys/class/power_supply/battery"
    figures = {f"{supply}/current_now": -800000, f"{supply}/voltage_now": 4000000}
    assert _seen(_board(tmp_path, {f"{supply}/status": "Discharging", **figures})).power_w == pytest.approx(3.2)
    assert _seen(_board(tmp_path, {f"{supply}/status": "Charging"})).power_w is None


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("0x0", ()),
        ("0x1", ("under-voltage",)),
        ("0x6", ("frequency capped", "throttled")),
        # What happened at any time since the board was started is not what happens now.
        ("0xf0000", ()),
        ("0x50008", ("soft temperature limit",)),
        ("none", None),
    ],
)
def test_the_firmwares_bits_are_told_by_name(
    said: str, flags: tuple[str, ...] | None, path: Path, tmp_path: Path
) -> None:
    _firmware(path, said)
    assert _seen(tmp_path).flags == flags


def test_a_pi_5_tells_what_it_takes(path: Path, tmp_path: Path) -> None:
    _firmware(path, "0x0", _RAILS)
    assert _seen(tmp_path).power_w == pytest.approx((0.9 * 2 + 3.3 * 0.1) * 1.1451 + 0.5879)


def test_a_flag_that_comes_and_goes_is_seen(path: Path, tmp_path: Path) -> None:
    _firmware(path, "0x0")
    watch = watch_conditions(tmp_path)
    watch.begin()
    time.sleep(0.3)
    (path / "throttled").write_text("throttled=0x4\n")
    time.sleep(1.5)
    (path / "throttled").write_text("throttled=0x0\n")
    seen = watch.end()
    watch.begin()
    after = watch.end()
    watch.close()
    assert seen.flags == ("throttled",) and seen.looks >= 1
    assert after.flags == ()


def test_what_is_before_and_after_the_work_says_nothing_of_its_clock(tmp_path: Path) -> None:
    """A board that stood still is slow at first; a round that is over within a second is not judged by that."""
    root = _board(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 600000})
    watch = watch_conditions(root)
    watch.begin()
    seen = watch.end()
    watch.close()
    assert (seen.lowest_mhz, seen.power_w, seen.looks) == (None, None, 0)


def test_two_watches_end_in_any_order() -> None:
    first, second = watch_memory(os.getpid()), watch_conditions()
    first.begin()
    assert (first.end().rss_bytes or 0) > 0
    first.close()
    second.close()


_NUMBER = st.none() | st.floats(0, 1e4)
_FLAG = st.none() | st.sets(st.sampled_from(("under-voltage", "throttled"))).map(lambda each: tuple(sorted(each)))
_CONDITIONS = st.builds(
    Conditions,
    _NUMBER,
    _NUMBER,
    _NUMBER,
    _FLAG,
    _NUMBER,
    _NUMBER,
    st.none() | st.integers(0, 10**12),
    st.integers(1, 99),
)


@given(_CONDITIONS, _CONDITIONS)
def test_joining_stretches_forgets_nothing(first: Conditions, second: Conditions) -> None:
    both = join(first, second)
    assert both.looks == first.looks + second.looks
    for each in (first, second):
        assert set(each.flags or ()) <= set(both.flags or ())
        assert each.hottest_c is None or (both.hottest_c is not None and both.hottest_c >= each.hottest_c)
        assert each.lowest_mhz is None or (both.lowest_mhz is not None and both.lowest_mhz <= each.lowest_mhz)
    powers = [each.power_w for each in (first, second) if each.power_w is not None]
    if powers:
        assert both.power_w is not None and min(powers) * (1 - 1e-9) <= both.power_w <= max(powers) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("conditions", "word", "reason"),
    [
        (Conditions(2400, 2400, flags=()), "valid", ""),
        (Conditions(2000, 2400, flags=()), "suspect", "clock fell by 17%"),
        (Conditions(1000, 2400, flags=()), "invalid", "clock fell by 58%"),
        (Conditions(flags=("soft temperature limit",)), "suspect", "firmware reported: soft temperature limit"),
        (Conditions(flags=("frequency capped",)), "suspect", "frequency capped"),
        (Conditions(flags=("throttled",)), "invalid", "firmware reported: throttled"),
        (Conditions(flags=("under-voltage",)), "invalid", "under-voltage"),
    ],
)
def test_the_verdict_knows_them(conditions: Conditions, word: str, reason: str) -> None:
    rounds = [[0.01] * 5] * 5
    verdict = judge(rounds, Disturbance(0.0, 0.0, 0, None, conditions))
    assert verdict.word == word
    assert reason in "; ".join(verdict.reasons)


def test_a_governor_that_changed_makes_it_suspect() -> None:
    rounds = [[1.0], [1.0], [1.0]]
    for governors, word in ((("performance",), "valid"), (("ondemand", "performance"), "suspect")):
        conditions = Conditions(governors=governors)
        assert judge(rounds, Disturbance(0.0, 0.0, 0, None, conditions)).word == word


@pytest.fixture(scope="module")
def package(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(minilm_folder, tmp_path_factory.mktemp("disturbed"))


def _verdict(edgec: Run, package: Path, **environment: str) -> dict[str, Any]:
    done = edgec("bench", package, "--rounds", 3, "--repetitions", 200, "--threads", 1, "--json", **environment)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)
    verdict: dict[str, Any] = measured["verdict"]
    return verdict


def test_neighbours_that_are_busy_are_seen_in_a_real_run(package: Path, edgec: Run) -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        verdict = _verdict(edgec, package)
    finally:
        for each in neighbours:
            each.kill()
            each.wait()
    assert verdict["word"] != "valid" and any("other programs" in reason for reason in verdict["reasons"])


def test_a_board_that_is_throttled_meanwhile_is_seen_in_a_real_run(package: Path, edgec: Run, path: Path) -> None:
    _firmware(path, "0x4")
    verdict = _verdict(edgec, package, PATH=os.environ["PATH"])
    assert verdict["word"] == "invalid" and "the board's firmware reported: throttled" in verdict["reasons"]
