"""verify --device: whether a package computes there what it does here; and an emulated board without its emulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import Run, assert_refused

import edgec
from benchmarks import agreement
from benchmarks.agreement import Agreement, require_agreement
from benchmarks.measurement import read_measurements, write_measurements
from benchmarks.report.fleet import heat_map, predicted_chart
from benchmarks.report.page import write_page
from benchmarks.validity import Disturbance, judge
from compiler.errors import CheckFailed, UnusableInput
from runtimes.devices.board import crossing
from runtimes.devices.emulated.image import image
from runtimes.devices.local import LocalDevice
from runtimes.devices.registry import is_emulated


@pytest.fixture(scope="module")
def packages(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("agreement")
    model = tiny.save_encoder("bert", minilm_folder, out / "bert")
    recipes = ("-r", "tflite:int8", "-r", "onnx:fp32")
    done = edgec_here("build", model, *recipes, "--sequence-length", 32, "-o", out / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    bare = edgec_here("build", model, "-r", "tflite:int8", "--sequence-length", 32, "-o", out / "bare")
    assert bare.returncode == 0
    return out


def test_the_same_machine_computes_the_same(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "open_device", lambda name: LocalDevice())
    found = edgec.verify_on([packages / "out" / "tflite-int8", packages / "out" / "onnx-fp32"], "ssh://board")
    assert [(each.distance, each.max_abs_difference, each.passed) for each in found] == [(0.0, 0.0, True)] * 2
    assert 0 < found[1].limit < found[0].limit < 0.5 and found[0].figure == "relative error"
    require_agreement(found)


@pytest.mark.parametrize("wrong", [1.5, np.nan])
def test_a_device_that_computes_something_else_fails(
    packages: Path, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = agreement._outputs, []

    def outputs(package: edgec.Package, device: object, workload: edgec.Workload) -> object:
        asked.append(device)
        found = real(package, LocalDevice(), workload)
        return {name: values * (wrong if len(asked) == 2 else 1) for name, values in found.items()}

    monkeypatch.setattr(agreement, "open_device", lambda name: LocalDevice())
    monkeypatch.setattr(agreement, "_outputs", outputs)
    found = edgec.verify_on([packages / "out" / "onnx-fp32"], "ssh://board")
    with pytest.raises(CheckFailed, match="does not compute on ssh://board what it computes here"):
        require_agreement(found)


def test_what_was_not_verified_here_is_held_to_nothing(packages: Path, edgec: Run) -> None:
    done = edgec("verify", packages / "bare" / "tflite-int8", "--device", "ssh://nobody@127.0.0.1:1")
    assert_refused(done, 2, "not found to be lowered right here", "edgec verify")
    done = edgec("verify", packages / "out" / "tflite-int8", "--device", "ssh://x", "--min-quality", "good")
    assert_refused(done, 2, "--min-quality", "Verify here first")


def test_an_emulated_processor_is_never_believed(packages: Path, edgec_here: Run, tmp_path: Path) -> None:
    still = [[0.1] * 3] * 5
    assert judge(still, Disturbance(0.0, 0.0, 0, 0)).word == "valid"
    emulated = judge(still, Disturbance(0.0, 0.0, 0, 0), emulated=True)
    assert emulated.word == "invalid" and "emulated" in emulated.reasons[0]
    assert is_emulated("qemu:aarch64") and not is_emulated("ssh://qemu") and not is_emulated("local")
    words = ("--sequence-length", 32, "--repetitions", 3, "--rounds", 3)
    assert edgec_here("bench", packages / "out" / "onnx-fp32", *words, "-o", tmp_path / "r.jsonl").returncode == 0
    real = read_measurements(tmp_path / "r.jsonl")
    write_measurements(tmp_path / "both.jsonl", [*real, replace(real[0], device="qemu:aarch64", verdict=emulated)])
    both = read_measurements(tmp_path / "both.jsonl")
    assert [each.is_emulated for each in both] == [False, True]
    write_page(tmp_path / "page.html", [both[1]])
    page = (tmp_path / "page.html").read_text()
    assert "emulated" in page and 'plotly-graph-div"' not in page.partition("</style>")[2].partition("</script>")[2]


def test_charts_of_a_fleet_leave_emulated_figures_out() -> None:
    row = {
        "recipe": "gguf:Q8_0",
        "device": "local",
        "emulated": False,
        "decode_tok_per_s": 9.0,
        "predicted_tok_per_s": 8.0,
    }
    slow = {**row, "device": "qemu:aarch64", "emulated": True, "decode_tok_per_s": 0.1}
    chart = heat_map([row, slow], "decode_tok_per_s", "tokens a second")
    assert chart is not None and list(chart.data[0].z[0]) == [9.0, None]
    assert heat_map([slow], "decode_tok_per_s", "tokens a second") is None
    drawn = predicted_chart([row, slow], "decode_tok_per_s", "predicted_tok_per_s", "tok/s", 1.0)
    assert drawn is not None and list(drawn.data[1].x) == [9.0]


def test_a_board_needs_its_programs(edgec: Run, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = packages / "out" / "tflite-int8"
    assert_refused(edgec("bench", package, "--device", "qemu:riscv64"), 2, "qemu:riscv64", "qemu:aarch64")
    monkeypatch.setattr("shutil.which", lambda *words, **named: None)
    with pytest.raises(UnusableInput, match="apt install e2fsprogs mmdebstrap openssh-client qemu-system-arm"):
        image()


def test_wheels_are_compiled_for_what_the_compiler_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *words, **named: None)
    assert crossing.wheels_for("riscv64", (9, 9), "0.3.36") is None
    assert crossing.wheels_for("aarch64", (2, 17), "0.3.36") is None
    assert crossing.wheels_for("aarch64", (9, 9), "0.0.1") is None


def test_a_sentence_tells_how_far_it_is() -> None:
    far = Agreement("p", "ssh://board", "mean KL", 0.5, 0.01, 3.0)
    with pytest.raises(CheckFailed, match=r"mean KL 0\.5, and 0\.01 is the most"):
        require_agreement([far])
    assert not replace(far, max_abs_difference=float("nan"), distance=0.0).passed
    assert json.dumps({"passed": far.passed})
