"""edgec tune: recipes are measured until none that is left could be better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, assert_refused
from test_matrix import _work
from test_plan import _planned

from benchmarks.matrix.cell import Result
from benchmarks.measurement import Measurement
from benchmarks.plan import Wishes
from compiler.cli.fleet import tune as tuning
from compiler.cli.fleet.work import MeasureOrder, build_one, measure_one, read_result
from compiler.inputs.open import open_model
from runtimes.devices.profile import find_profile
from runtimes.workload import Workload


@pytest.fixture(scope="module")
def measured(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """A real measurement, whose speed the tests set."""
    store, order = str(tmp_path_factory.mktemp("store")), _work(tiny_models, ["gguf:Q8_0"]).orders[0]
    found = read_result(measure_one(order, build_one(order.build, store), store), store).measurement
    assert found is not None
    return found


def _tune(
    tiny_models: Path,
    measured: Measurement,
    monkeypatch: pytest.MonkeyPatch,
    speed: Any,
    wishes: Wishes,
    budget_s: float = 1e9,
) -> tuple[tuning.Tuned, list[str]]:
    """Tune for a Raspberry Pi's profile, where a recipe runs as fast as `speed` says of its option."""
    asked: list[str] = []
    model = open_model(str(tiny_models / "llama"))
    options = {each.recipe: each for each in _planned(model, "pi-5-8gb").options}

    def measure(order: MeasureOrder, out: Path) -> Result:
        asked.append(order.cell.recipe)
        summary = {**measured.summary, "decode_tok_per_s": speed(options[order.cell.recipe])}
        return Result(order.cell, "measured", measurement=replace(measured, summary=summary, quality=None))

    monkeypatch.setattr(tuning, "_measure", measure)
    monkeypatch.setattr(tuning, "device_profile", lambda device: find_profile("pi-5-8gb"))
    found = tuning.tune(model, "m", "local", wishes, Workload(), tiny_models, budget_s, lambda *told: None)
    return found, asked


def test_an_emulated_board_is_not_tuned_for(tiny_models: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("tune", tiny_models / "llama", "-o", tmp_path / "out", "--device")
    assert_refused(edgec(*words, "qemu:aarch64"), 2, "is emulated")
    assert_refused(edgec(*words, "pi-5-8gb"), 2, "for plan alone", "ssh://user@host")
    assert not (tmp_path / "out").exists()


def test_where_the_plan_is_right_few_are_measured(
    tiny_models: Path, measured: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(context=256, min_quality="unusable")
    found, asked = _tune(tiny_models, measured, monkeypatch, lambda option: option.tok_per_s.high, wishes)
    assert (
        found.best is not None and found.best.option.recipe == asked[0] and found.ended.startswith("none that is left")
    )
    assert len(asked) <= 3 and len(found.left) > 10


def test_where_it_is_wrong_more_are_and_the_best_is_found(
    tiny_models: Path, measured: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(context=256, min_quality="unusable")
    found, asked = _tune(tiny_models, measured, monkeypatch, lambda option: option.tok_per_s.low, wishes)
    speeds = [trial.worth for trial in found.trials]
    assert found.best is not None and found.best.worth == max(speeds) and len(asked) > 3
    reach = {
        each.recipe: each.tok_per_s.high
        for each in _planned(open_model(str(tiny_models / "llama")), "pi-5-8gb").options
        if each.tok_per_s
    }
    assert all(reach[name.split()[0]] <= found.best.worth for name in found.left)


def test_a_wish_that_nothing_holds_gives_none(
    tiny_models: Path, measured: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(context=256, min_quality="unusable", max_memory_bytes=1)
    found, asked = _tune(tiny_models, measured, monkeypatch, lambda option: 1.0, wishes)
    assert found.best is None and not asked


def test_the_budget_begins_nothing_new(
    tiny_models: Path, measured: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(context=256, min_quality="unusable")
    found, asked = _tune(tiny_models, measured, monkeypatch, lambda option: option.tok_per_s.low, wishes, 0.0)
    assert len(asked) == 1 and found.ended == "the budget is used up" and found.left


def test_a_real_run_builds_measures_and_goes_on(tiny_models: Path, edgec_here: Run, tmp_path: Path) -> None:
    words = (
        "tune",
        tiny_models / "llama",
        "--budget",
        "1s",
        "--context",
        64,
        "--min-quality",
        "unusable",
        "-o",
        tmp_path / "out",
    )
    done = edgec_here(*words, "--json")
    told = json.loads(done.stdout)
    # Which of both it is depends on how fast this machine is.
    ends = ("the budget is used up", "none that is left can be better")
    assert len(told["trials"]) == 1 and told["ended"] in ends, done.stderr
    first = told["trials"][0]["result"]
    again = json.loads(edgec_here(*words, "--json").stdout)
    if first["status"] == "measured":
        assert again["trials"][0]["result"] == first


def test_what_cannot_be_tuned(tiny_models: Path, edgec: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    assert_refused(edgec("tune", tiny_models / "llama", "-o", tmp_path / "mine"), 2, "other things")
    assert_refused(edgec("tune", tiny_models / "llama", "-o", tmp_path / "out", "--budget", "soon"), 2, "no time")
    assert not (tmp_path / "out").exists()
