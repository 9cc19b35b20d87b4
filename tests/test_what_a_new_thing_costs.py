"""What a new thing costs: a kind one file and one row, a target one folder and one line, a runtime or transport one of each.

They are added to a copy of the project, and the commands there build, verify, measure, compare, report and use them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused
from safetensors.numpy import save_file

_ROOT = Path(__file__).parent.parent
_ROOMS = ("compiler", "targets", "runtimes", "benchmarks")

_KIND = '''
"""regression: a model that gives a number for a point."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from compiler.errors import UnusableInput
from runtimes.kinds.kind import Chart, Column, Compared, Expectation, Findings, Grade, Kind, Outcome, Prepared, percentile


def write_expected(model, out):
    from safetensors.numpy import load_file

    points = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(Path(out) / "points.npy", points)
    values = points @ load_file(Path(model) / "model.safetensors")["weight"]
    (Path(out) / "expected.json").write_text(json.dumps(values.tolist()))


def probe(session, package, expected, stored, on_progress):
    wanted = json.loads((expected / "expected.json").read_text())
    got = session.predict(np.load(expected / "points.npy"))
    on_progress(1, 1)
    return Findings({"worst_error": float(np.abs(got - wanted).max())})


def prepare(session, package, workload):
    def timed():
        started = time.perf_counter()
        session.predict(np.ones((10000, 4), np.float32))
        return {"predict_s": [time.perf_counter() - started]}

    ran = replace(workload, prompt_tokens=None, generated_tokens=None, sequence_length=None)
    return Prepared(timed, timed, ran, dict)


def check(package, request):
    if not request.prompts:
        raise UnusableInput("There is no point. Add --prompt 1,2,3,4.")


def use(package, session, request):
    points = np.asarray([[float(word) for word in prompt.split(",")] for prompt in request.prompts], np.float32)
    values = session.predict(points).tolist()
    return Outcome(values, f"the values are {values}")


KIND = Kind(
    name="regression",
    title="Regressions",
    expect=lambda model, shapes, text, tokens: Expectation("runtimes.kinds.regression:write_expected", {}, ("numpy",)),
    probe=probe,
    grades=(Grade("near-lossless", {"max_worst_error": 1e-5}),),
    limited={"max_worst_error": "worst_error"},
    figures=(Column("worst_error", "worst error", 4),),
    prepare=prepare,
    apart=lambda own, other: 0.0,
    timed=(("predict", "predict_s"),),
    summarize=lambda samples, workload, package, bandwidth: {
        "predict_ms_p50": 1e3 * percentile([value for part in samples["predict_s"] for value in part], 0.5)
    },
    speed=(Column("predict_ms_p50", "ms a prediction", 3),),
    compared=(Compared("worst_error", 1e-6),),
    chart=Chart("regressions", ("predict_ms_p50", "ms a prediction"), ("worst_error", "error"), ("predict_s", "Times")),
    check=check,
    use=use,
)
'''
_ROW = '    Task("point-regression", "regression", "", ("value",), architectures=("ForPoints",)),\n'

_TARGET = '''
"""toy: weights as numpy has them."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from compiler.package import Graph, Lowered, Platform, Port, Unfinished, StoredWeights
from compiler.stages.stage import Stage
from compiler.target import Target


def plan(model, recipe):
    arguments = {"spoil": "spoilt" in recipe.options, "variant": recipe.variant}
    return Stage("write toy", "targets.toy.target:write", arguments, ("numpy",), ensures=("weights.npy",))


def write(model, out, spoil, variant):
    from safetensors.numpy import load_file

    weight = load_file(Path(model) / "model.safetensors")["weight"]
    np.save(Path(out) / "weights.npy", weight + 1 if spoil else weight)
    graph = Graph("main", ("weights.npy",), (Port("point", "float32", ("batch", 4)),), (Port("value", "float32", ("batch",)),))
    return asdict(
        Lowered(
            "toy",
            (graph,),
            StoredWeights(32.0, {"fp32": 4}),
            platform=Platform("BeOS", "ppc") if variant == "beos" else None,
            unfinished=Unfinished("compiling with toycc", "a toy machine") if variant == "later" else None,
        )
    )


TARGET = Target("toy", "reference", ("fp32",), ("point-regression",), plan, options=("spoilt",), variants=("beos", "later"))
'''
_RUNTIME = '''
"""toy: numpy."""

import numpy as np


class Toy:
    def __init__(self, weights):
        self.weights = weights

    def predict(self, points):
        return points @ self.weights

    def close(self):
        pass


def open_session(package, threads):
    return Toy(np.load(package.artifact))
'''
_TRANSPORT = '''
"""copied: this machine by way of a shell and a copy of the package, as a device elsewhere would have it."""

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from runtimes.devices.local import LocalAgent


class Copied:
    name = "copied"

    def put(self, package):
        there = Path(tempfile.mkdtemp(prefix="edgec-copied-")) / package.name
        shutil.copytree(package.folder, there)
        return str(there)

    def start(self, module, arguments, threads, distributions=()):
        command = shlex.join([sys.executable, "-P", "-m", module, *arguments])
        return LocalAgent(["sh", "-c", "exec " + command], {**os.environ, "OMP_NUM_THREADS": str(threads)})


def open_device(address):
    return Copied()
'''

Edgec = Callable[..., "subprocess.CompletedProcess[str]"]


def _insert(file: Path, after: str, line: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(after) == 1, file
    file.write_text(text.replace(after, after + line), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the four toys: nothing else in it is touched."""
    root = tmp_path_factory.mktemp("project")
    for room in _ROOMS:
        shutil.copytree(_ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(_ROOT / "edgec.py", root / "edgec.py")
    (root / "runtimes" / "kinds" / "regression.py").write_text(_KIND)
    _insert(root / "compiler" / "task.py", "TASKS: tuple[Task, ...] = (\n", _ROW)
    (root / "targets" / "toy").mkdir()
    (root / "targets" / "toy" / "__init__.py").write_text("")
    (root / "targets" / "toy" / "target.py").write_text(_TARGET)
    _insert(
        root / "targets" / "registry.py",
        "TARGETS: tuple[tuple[str, str], ...] = (\n",
        '    ("toy", "targets.toy.target"),\n',
    )
    (root / "runtimes" / "toy.py").write_text(_RUNTIME)
    runtimes = "RUNTIMES: tuple[Runtime, ...] = (\n"
    _insert(root / "runtimes" / "registry.py", runtimes, _RUNTIME_ROW)
    (root / "runtimes" / "devices" / "copied.py").write_text(_TRANSPORT)
    devices = "DEVICES: tuple[tuple[str, str], ...] = ("
    _insert(root / "runtimes" / "devices" / "registry.py", devices, '("copied", "runtimes.devices.copied"), ')
    return root


_RUNTIME_ROW = '    Runtime("toy", "runtimes.toy", ("numpy",), "reference", ("toy",), "*"),\n'


@pytest.fixture(scope="module")
def edgec_with_toys(project: Path) -> Edgec:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = "from compiler.cli.main import main; main()"
        command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(project)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("points") / "points"
    folder.mkdir()
    config = {"architectures": ["LineForPoints"], "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.asarray([1, -2, 3, 0.5], np.float32)}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def packages(model: Path, edgec_with_toys: Edgec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toys") / "out"
    done = edgec_with_toys("build", model, "-r", "toy:fp32", "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Regressions against the fp32 model" in done.stdout and "worst error" in done.stdout
    return out


def test_a_package_that_computes_something_else_fails_verify(
    model: Path, edgec_with_toys: Edgec, tmp_path: Path
) -> None:
    done = edgec_with_toys("build", model, "-r", "toy:fp32+spoilt", "-o", tmp_path / "out", "--verify")
    assert_refused(done, 1, "worst_error is 38", "limit is 1e-05", "Not kept: toy:fp32+spoilt")


def test_other_targets_say_which_tasks_they_take(model: Path, edgec_with_toys: Edgec, tmp_path: Path) -> None:
    done = edgec_with_toys("build", model, "-r", "onnx:fp32", "-o", tmp_path / "out")
    assert_refused(done, 2, "onnx takes text-generation", "not point-regression")
    told = json.loads(edgec_with_toys("inspect", model, "--json").stdout)["targets"]
    assert {each["target"] for each in told if each["schemes"]} == {"toy"}


@pytest.mark.parametrize("device", ["local", "copied"])
def test_it_is_measured_compared_and_reported(
    device: str, packages: Path, edgec_with_toys: Edgec, tmp_path: Path
) -> None:
    results, page = tmp_path / "results.jsonl", tmp_path / "page.html"
    done = edgec_with_toys("bench", packages / "toy-fp32", "--device", device, "--rounds", 3, "-o", results)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Regressions: speed" in done.stdout and "ms a prediction" in done.stdout
    line = json.loads(results.read_text())
    assert (line["device"], line["task"], line["quality"]["passed"]) == (device, "point-regression", True)
    assert len(line["samples"]["predict_s"]) == 3 and line["summary"]["predict_ms_p50"] > 0
    # Rounds of microseconds are never steady enough for a machine that is shared; the comparison itself is what is tried.
    line["verdict"] = {"word": "valid", "reasons": []}
    results.write_text(json.dumps(line) + "\n")
    compared = edgec_with_toys("compare", results, "--baseline", results, "--html", page, "--json")
    assert compared.returncode == 0, compared.stderr
    assert {each["metric"] for each in json.loads(compared.stdout)} >= {"predict", "worst_error", "package_bytes"}
    assert "ms a prediction" in page.read_text() and "Quality, speed and size of regressions" in page.read_text()


def test_it_is_used(packages: Path, edgec_with_toys: Edgec) -> None:
    done = edgec_with_toys("run", packages / "toy-fp32", "-p", "1,1,1,2", "--json")
    assert json.loads(done.stdout) == [3.0]
    assert "the values are [3.0]" in edgec_with_toys("run", packages / "toy-fp32", "-p", "1,1,1,2").stdout
    assert_refused(edgec_with_toys("run", packages / "toy-fp32"), 2, "There is no point")


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("later", ("unfinished", "compiling with toycc", "a toy machine")),
        ("beos", ("for ppc on BeOS", "this machine is")),
    ],
)
def test_what_is_unfinished_or_for_another_machine_is_refused_by_name(
    variant: str, words: tuple[str, ...], model: Path, edgec_with_toys: Edgec, tmp_path: Path
) -> None:
    done = edgec_with_toys("build", model, "-r", f"toy:fp32@{variant}", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    package = tmp_path / "out" / f"toy-fp32-{variant}"
    for command in (("verify", package), ("run", package, "-p", "1,1,1,1"), ("bench", package)):
        assert_refused(edgec_with_toys(*command), 2, f"toy:fp32@{variant}", *words)
