"""What a build needs is told before any work, and a build that cannot fit is refused then."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny
from conftest import Run, assert_refused

from compiler import needs
from compiler.errors import UnusableInput
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.needs import Cost, build_need, costs, stage_need, with_needs
from compiler.pace import pace, remember_pace
from compiler.recipe import parse_recipe
from compiler.stages.executor import LocalExecutor, Source, _jobs_within_memory
from compiler.stages.stage import Stage, each_stage
from compiler.target import reason_against
from targets.registry import TARGET_NAMES, load_target, schemes_of

_Usage = namedtuple("_Usage", ("total", "used", "free"))
_Memory = namedtuple("_Memory", ("total", "available"))


@pytest.fixture(scope="module")
def model(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(tiny.save_decoder("llama", minilm_folder, tmp_path_factory.mktemp("needs") / "tiny-llama")))


def _planned(model: Model, text: str) -> Stage:
    recipe = parse_recipe(text, TARGET_NAMES)
    return load_target(recipe.target).plan(model, recipe)


@pytest.mark.parametrize(
    "recipe",
    ["gguf:Q4_K_M", "gguf:int4-gptq-g32", "onnx:int4-rtn-g32", "coreml:int4-gptq-g32", "tflite:int8", "tflite:fp16"],
)
def test_stages_of_language_models_are_known(model: Model, recipe: str) -> None:
    found = build_need(_planned(model, recipe), model)
    assert found is not None and found.memory_bytes > 100e6 and found.seconds > 0


def test_figures_name_functions_that_there_are() -> None:
    assert len(costs()) > 10
    for name in costs():
        module, _, function = name.split(" ")[0].partition(":")
        file = Path(needs.__file__).parents[1] / f"{module.replace('.', '/')}.py"
        assert f"def {function}(" in file.read_text(), name


def test_a_need_is_the_sum_of_what_follows_from_shapes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("a stage", "some:function", {"method": "rtn"})
    monkeypatch.setattr(needs, "costs", lambda: {"some:function rtn": Cost(100e6, 2.0, 3.0, seconds=4.0)})
    weights = 4 * sum(tensor.elements for tensor in model.tensors if tensor.name != "lm_head.weight")
    largest = 4 * max(tensor.elements for tensor in model.tensors)
    found = stage_need(stage, model)
    assert found is not None and found.seconds == 4.0
    assert found.memory_bytes == pytest.approx(100e6 + 2 * weights + 3 * largest, rel=0.01)
    assert stage_need(Stage("another", "some:function"), model) is None
    # A stage that several need counts once, the largest memory alone.
    other = Stage("other", "some:function", {"method": "rtn", "and": 1}, inputs={"base": stage})
    both = build_need(other, model)
    assert both is not None and both.memory_bytes == found.memory_bytes and both.seconds == 8.0


def test_a_build_that_cannot_fit_is_refused_before_any_work(
    model: Model, edgec_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {work: Cost(50e12) if "tflite" in work else cost for work, cost in costs().items()}
    monkeypatch.setattr(needs, "costs", lambda: told)
    done = edgec_here("build", model.folder, "-r", "gguf:Q8_0", "-r", "tflite:int8", "-o", tmp_path / "out")
    assert_refused(done, 2, "lower to LiteRT", "needs 40000.0 GB", "larger machine")
    assert "convert to GGUF" not in done.stderr and not (tmp_path / "out").exists()


def test_fewer_stages_run_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [Stage("a", "m:f", {"number": number}, memory_bytes=3 * 10**9) for number in range(4)]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(8 * 10**9, 7 * 10**9))
    assert _jobs_within_memory(stages, 4) == 2
    assert _jobs_within_memory(stages, 1) == 1
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(8 * 10**9, 10**9))
    assert _jobs_within_memory(stages, 4) == 1
    with pytest.raises(UnusableInput, match=r"needs 9\.0 GB"):
        LocalExecutor().run(
            [("a", Stage("large", "m:f", memory_bytes=9 * 10**9))],
            {"model": Source(Path(), "0" * 64, ())},
        )


def test_a_disk_without_room_is_told_before_any_work(
    model: Model, edgec_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(10**9, 10**9, 0))
    told = {work: replace(cost, disk_of_weights=1.0) for work, cost in costs().items()}
    monkeypatch.setattr(needs, "costs", lambda: told)
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    done = edgec_here("build", model.folder, "-r", "gguf:Q8_0", "-o", tmp_path / "out")
    assert_refused(done, 2, "GB of disk in", "0.0 GB are free", "EDGEC_CACHE")
    assert not (tmp_path / "out").exists()


def test_memory_that_is_known_does_not_change_a_key(model: Model) -> None:
    """What was built before stays in the cache when the figures change."""
    stage, sources = _planned(model, "gguf:int4-gptq-g32"), {"model": Source(model.folder, "0" * 64, ())}
    told = with_needs(stage, model)
    assert [each.memory_bytes > 0 for each in each_stage(told)].count(True) >= 2
    assert LocalExecutor().key(stage, sources) == LocalExecutor().key(told, sources)


def test_the_pace_is_learned_from_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert pace() == 1.0
    remember_pace([(20.0, 10.0), (40.0, 10.0), (30.0, 10.0), (0.5, 0.1)])
    assert pace() == 3.0
    file = tmp_path / "edgec" / "pace.jsonl"
    assert len(file.read_text().splitlines()) == 3
    file.write_text(file.read_text() + 'no json\n"x"\n' + "[" * 100_000)
    assert pace() == 3.0


def test_plan_and_build_tell_what_was_expected(model: Model, edgec: Run, tmp_path: Path) -> None:
    told = json.loads(edgec("plan", model.folder, "--device", "pi-5-8gb", "--context", 256, "--json").stdout)
    assert all(each["build"]["memory_bytes"] > 0 for each in told["options"] if each["recipe"].startswith("gguf:Q"))
    assert (
        "Build, disk, time: what building takes"
        in edgec("plan", model.folder, "--device", "pi-5-8gb", "--context", 256).stdout
    )
    done = edgec("build", model.folder, "-r", "gguf:Q8_0", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    for stage in json.loads(done.stdout)["stages"]:
        assert stage["expected_peak_bytes"] > 0 and stage["expected_seconds"] >= 0


def test_of_every_recipe_it_is_known_what_building_takes(smollm2: Model, minilm_folder: Path) -> None:
    """But for mixtures, whose layers are measured one by one."""
    unknown = []
    for model in (smollm2, open_model(str(minilm_folder))):
        for target in map(load_target, TARGET_NAMES):
            for name in target.schemes:
                recipe = parse_recipe(f"{target.name}:{name}", TARGET_NAMES, schemes_of)
                if recipe.scheme.mixed or reason_against(target, model, recipe) is not None:
                    continue
                if build_need(target.plan(model, recipe), model) is None:
                    unknown.append(f"{recipe} of {model.name}")
    assert not unknown
