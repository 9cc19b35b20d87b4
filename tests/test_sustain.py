"""A run without a rest: what a package holds, and when it was throttled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from conftest import Run, assert_refused

from benchmarks.sustain import Moment, judge_sustained, sustain
from compiler.cli.bench_views import parse_seconds, sparkline
from compiler.errors import UnusableInput
from runtimes.workload import Workload


def _moments(speeds: list[float], flags: dict[int, str] | None = None) -> list[Moment]:
    told = flags or {}
    return [
        Moment(10.0 * (n + 1), speed, 1500.0, 60.0, (told[n],) if n in told else ()) for n, speed in enumerate(speeds)
    ]


def test_heat_is_seen_by_its_lasting() -> None:
    found = judge_sustained("p", "local", "tok/s", _moments([10.0] * 20 + [7.0] * 40))
    assert found.throttled_at_s == 210.0 and "stayed so" in found.reason
    assert (found.first_speed, found.last_speed) == (10.0, 7.0) and found.held == pytest.approx(0.7)


def test_a_neighbour_is_no_throttling() -> None:
    found = judge_sustained("p", "local", "tok/s", _moments([10.0] * 20 + [5.0] * 4 + [10.0] * 40))
    assert found.throttled_at_s is None and found.held == 1.0


def test_what_the_firmware_says_counts_first() -> None:
    found = judge_sustained("p", "local", "tok/s", _moments([10.0] * 30, {12: "throttled", 3: "frequency capped"}))
    assert found.throttled_at_s == 130.0 and "firmware" in found.reason


def test_a_short_run_has_a_beginning_too() -> None:
    found = judge_sustained("p", "local", "tok/s", _moments([9.0]))
    assert found.first_speed == found.last_speed == 9.0 and found.throttled_at_s is None


def test_packages_run_as_long_as_is_asked(minilm_folder: Path, edgec_here: Run, tmp_path: Path) -> None:
    model = tiny.save_encoder("bert", minilm_folder, tmp_path / "model")
    done = edgec_here("build", model, "-r", "tflite:int8", "--sequence-length", 32, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    words = ("--sequence-length", 32, "--repetitions", 200)
    told = edgec_here("bench", tmp_path / "out" / "tflite-int8", "--sustain", "2s", *words, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)[0]
    assert found["unit"] == "inputs/s" and found["moments"][-1]["at_s"] >= 2 and len(found["moments"]) > 2
    assert all(one["at_s"] < two["at_s"] for one, two in zip(found["moments"], found["moments"][1:], strict=False))
    table = edgec_here("bench", tmp_path / "out" / "tflite-int8", "--sustain", "1s", *words)
    assert "without a rest" in table.stdout and "held" in table.stdout


def test_times_people_write() -> None:
    assert [parse_seconds(each) for each in ("600", "600s", "10min", "10m", "1.5h")] == [600, 600, 600, 600, 5400]
    for wrong in ("", "0", "-3s", "ten", "900h", "1e9"):
        with pytest.raises(UnusableInput, match="no time"):
            parse_seconds(wrong)


def test_a_sparkline_goes_from_zero() -> None:
    assert sparkline([8.0, 4.0, 0.1]) == "█▅▁" and len(sparkline([1.0] * 1000)) == 40


def test_a_result_file_is_refused(edgec: Run, tmp_path: Path) -> None:
    assert_refused(edgec("bench", tmp_path, "--sustain", "2s", "-o", tmp_path / "r.jsonl"), 2, "--json")


def test_what_an_emulated_board_holds_is_not_measured() -> None:
    with pytest.raises(UnusableInput, match="is emulated"):
        sustain([], Workload(), 9, device="qemu:aarch64")
