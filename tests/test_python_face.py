"""`import edgec` is enough to build, verify, use and measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import edgec

_PROGRAM = """
import sys
from dataclasses import replace

import edgec
from benchmarks.validity import Validity

report = edgec.build(sys.argv[1], ["onnx:fp32", "onnx:int8"], sys.argv[2])
found = edgec.verify(report.packages)
edgec.require_passed(report.packages, found)
measured = edgec.bench(report.packages, edgec.Workload(rounds=3, repetitions=2))
assert [each.digest for each in measured] == [package.digest for package in report.packages]
assert [each.quality for each in measured] == found
exact = edgec.open_package(sys.argv[2] + "/onnx-fp32")
outcome = edgec.use(exact, edgec.Request(("one text", "another")))
# A shared machine is seldom steady enough for a program that takes milliseconds; the comparison itself is what is tried.
valid = [replace(each, verdict=Validity("valid", ())) for each in measured]
assert edgec.compare(valid, valid)
edgec.write_measurements(sys.argv[2] + ".jsonl", measured)
assert edgec.read_measurements(sys.argv[2] + ".jsonl") == measured
print(exact.recipe, found[0].figures["min_cosine"] > 0.9999, len(outcome.document))
"""


def test_a_program_builds_verifies_uses_and_measures(minilm_folder: Path, tmp_path: Path) -> None:
    model = tiny.save_encoder("bert", minilm_folder, tmp_path / "face")
    command = [sys.executable, "-P", "-c", _PROGRAM, str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["onnx:fp32", "True", "2"]


def test_what_cannot_be_made_is_refused_before_any_work(minilm_folder: Path, tmp_path: Path) -> None:
    model = edgec.open_model(str(minilm_folder))
    with pytest.raises(edgec.UnusableInput, match="no target 'onxx'"):
        edgec.build(model, ["onxx:fp32"], tmp_path / "out")
    with pytest.raises(edgec.UnusableInput, match="not feature-extraction"):
        edgec.build(model, ["gptq:int4-rtn-g32"], tmp_path / "out")
    two = [edgec.Recipe("onnx", edgec.parse_recipe("onnx:fp32", ("onnx",)).scheme, task=task) for task in ("a", "b")]
    with pytest.raises(edgec.UnusableInput, match="tasks a and b"):
        edgec.build(model, two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_inspection_says_what_build_will_do(minilm_folder: Path) -> None:
    targets = {each.target: each for each in edgec.inspect(str(minilm_folder)).targets}
    assert "fp32" in targets["onnx"].schemes and targets["onnx"].why_not is None
    assert targets["gptq"].schemes == () and "feature-extraction" in (targets["gptq"].why_not or "")
    assert "Q4_K_M" in targets["gguf"].falling_back, "rows of 384 do not divide by 256"
