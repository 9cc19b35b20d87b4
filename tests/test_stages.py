"""A stage's key holds all that its result depends on; what it requires and ensures is checked; its plan knows no machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from compiler.errors import UnusableInput
from compiler.model import Model, read_model
from compiler.recipe import parse_recipe
from compiler.stages.cache import cache_root, find_entry, new_folder
from compiler.stages.executor import LocalExecutor, Source
from compiler.stages.stage import Stage, each_stage, stage_key
from targets.registry import TARGET_NAMES, load_target

# The functions that stages call are in this file.
_ME = "test_stages"


def write_file(model: str, out: str, name: str, earlier: str | None = None) -> dict[str, object]:
    (Path(out) / name).write_text(Path(model).read_text())
    return {"earlier": earlier is not None and sorted(path.name for path in Path(earlier).iterdir())}


_BASE = Stage("base", f"{_ME}:write_file", {"name": "a.txt"}, ("numpy",), ensures=("*.txt",))
_NEXT = Stage("next", f"{_ME}:write_file", {"name": "b.txt"}, ("torch",), {"earlier": _BASE}, {"earlier": ("*.txt",)})
_SOURCES = {"model": "m" * 64, "adapter": "a" * 64}


def _key(
    stage: Stage, sources: dict[str, str] = _SOURCES, code: str = "c", version: str = "1", machine: str = "Linux"
) -> str:
    return stage_key(stage, sources, code, lambda name: f"{name} {version}", machine)


def test_a_key_changes_with_everything_that_a_result_depends_on() -> None:
    key = _key(_NEXT)
    assert key == _key(_NEXT)
    changed = {
        "the model": _key(_NEXT, {**_SOURCES, "model": "n" * 64}),
        "our code": _key(_NEXT, code="d"),
        "a tool's version": _key(_NEXT, version="2"),
        "the function": _key(replace(_NEXT, function=f"{_ME}:other")),
        "an argument": _key(replace(_NEXT, arguments={"name": "c.txt"})),
        "the tools": _key(replace(_NEXT, tools=("torch", "numpy"))),
        "the sources": _key(replace(_NEXT, sources=("model", "adapter"))),
        "the machine, where it matters": _key(replace(_NEXT, machine_dependent=True)),
        "another machine, where it matters": _key(replace(_NEXT, machine_dependent=True), machine="Darwin"),
        "no input": _key(replace(_NEXT, inputs={}, requires={})),
        "an input's name": _key(replace(_NEXT, inputs={"other": _BASE}, requires={})),
        "an input's argument": _key(replace(_NEXT, inputs={"earlier": replace(_BASE, arguments={"name": "d.txt"})})),
        "an input's tools": _key(replace(_NEXT, inputs={"earlier": replace(_BASE, tools=())})),
    }
    assert len({key, *changed.values()}) == 1 + len(changed), changed


def test_a_key_does_not_change_with_what_a_result_does_not_depend_on() -> None:
    same = replace(_NEXT, label="other words", environment={"MALLOC": "1"}, memory_bytes=1)
    assert _key(same) == _key(_NEXT)
    assert _key(_NEXT, machine="Darwin") == _key(_NEXT)
    assert _key(_NEXT, {**_SOURCES, "adapter": "b" * 64}) == _key(_NEXT), "a source that it does not read"


def test_a_plan_whose_stages_do_not_fit_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"requires codes-\*.safetensors of earlier"):
        replace(_NEXT, requires={"earlier": ("codes-*.safetensors",)})


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Source]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "model").write_text("weights")
    return {"model": Source(tmp_path / "model", os.urandom(8).hex())}


def test_inputs_come_by_name_and_results_are_kept(sources: dict[str, Source]) -> None:
    executor = LocalExecutor()
    entry = executor.run_one(_NEXT, sources, "test")
    assert entry.value == {"earlier": ["a.txt"]}
    assert (entry.files / "b.txt").read_text() == "weights"
    again = executor.run([("test", _NEXT)], sources)
    assert [report.cached for report in again.reports] == [True, True]


def test_a_stage_that_does_not_leave_what_it_ensures_is_an_error_and_is_not_kept(sources: dict[str, Source]) -> None:
    stage = replace(_BASE, ensures=("*.gguf",))
    with pytest.raises(UnusableInput, match=r"'base' ended without writing \*\.gguf"):
        LocalExecutor().run_one(stage, sources, "test")
    assert find_entry(LocalExecutor().key(stage, sources)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [({"platform": "beos"}, "runs on beos only"), ({"memory_bytes": 10**15}, "1000000.0 GB of memory")],
)
def test_a_machine_that_does_not_fit_is_refused(
    change: dict[str, object], words: str, sources: dict[str, Source]
) -> None:
    with pytest.raises(UnusableInput, match=words):
        LocalExecutor().run_one(replace(_BASE, **change), sources, "test")  # type: ignore[arg-type]


_HOLD = "import sys, time; from compiler.stages.cache import new_folder; from pathlib import Path\n"
_HOLD += "with new_folder(Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(60)"


def test_a_folder_in_the_making_is_left_alone_while_its_owner_lives_and_goes_when_it_was_killed(tmp_path: Path) -> None:
    """Whatever the owner's process id is, and on whatever machine: a lock tells."""
    own = tmp_path / ".new-1-mine"
    own.mkdir()
    owner = subprocess.Popen([sys.executable, "-P", "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    theirs = Path(owner.stdout.readline().strip())
    with new_folder(tmp_path) as mine:
        assert theirs.is_dir() and mine.is_dir() and mine != theirs
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while theirs.exists() and time.monotonic() < deadline:
        with new_folder(tmp_path):
            pass
    assert sorted(tmp_path.iterdir()) == [own], "only what edgec made is removed"


@pytest.fixture(scope="module")
def models(smollm2: Model, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    root = tmp_path_factory.mktemp("plans")
    decoder = tiny.save_decoder("llama", smollm2.folder, root / "llama")
    return [read_model(decoder), read_model(tiny.save_encoder("bert", minilm_folder, root / "bert"))]


def _plans(models: list[Model]) -> Iterator[Stage]:
    for name in TARGET_NAMES:
        target = load_target(name)
        for model in models:
            for scheme in target.schemes:
                for text in (f"{name}:{scheme}", *(f"{name}:{scheme}+{option}" for option in target.options)):
                    recipe = parse_recipe(text, TARGET_NAMES)
                    if model.task in target.tasks and target.refuse(model, recipe) is None:
                        yield from each_stage(target.plan(model, recipe))


def test_no_plan_holds_a_path_of_this_machine(models: list[Model]) -> None:
    for stage in _plans(models):
        said = json.dumps([dict(stage.arguments), dict(stage.environment), stage.python_path])
        assert platform.machine() not in said and platform.system() not in said, stage
        assert str(cache_root()) not in said and str(Path.home()) not in said, stage
        assert all(str(model.folder) not in said for model in models), stage


def test_every_planned_stage_calls_its_function_with_what_it_takes(models: list[Model]) -> None:
    """In a process of its own: here another test may have loaded TVM without its compiler."""
    calls = {(stage.function, (*stage.sources, *stage.inputs, "out", *stage.arguments)) for stage in _plans(models)}
    assert len({function for function, _ in calls}) >= 18, sorted(calls)
    code = (
        "import importlib, inspect, json, sys\n"
        "for function, names in json.load(sys.stdin):\n"
        "    module, _, name = function.partition(':')\n"
        "    inspect.signature(getattr(importlib.import_module(module), name)).bind(**dict.fromkeys(names, ''))\n"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, input=json.dumps(sorted(calls)), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
