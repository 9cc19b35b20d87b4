"""The examples run as they are written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Run

_EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_language_model_is_picked_and_built_for_a_raspberry_pi(smollm2_gguf: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        str(_EXAMPLES / "raspberry_pi_llm.py"),
        str(smollm2_gguf),
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, "--memory-gb", "2", "--tokens-per-s", "90"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "building gguf:Q5_0" in done.stdout
    assert "verified: mean KL" in done.stdout
    refused = subprocess.run([*command, "--memory-gb", "0.05"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "smaller model" in refused.stderr


@pytest.mark.parametrize(("champion", "challenger"), [("onnx:int8", "onnx:fp32"), ("onnx:fp32", "onnx:int8")])
def test_the_gate_stops_a_challenger_that_is_worse(
    champion: str, challenger: str, minilm_folder: Path, tmp_path: Path, edgec: Run
) -> None:
    """Against int8, fp32 is slower and larger; against fp32, int8 is further from the model."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", str(_EXAMPLES / "ci_gate.sh"), str(minilm_folder), champion, challenger, str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False)
    if "cannot be believed" in done.stderr:
        pytest.skip("this machine is too noisy for a valid measurement now")
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = subprocess.run([*command[:4], champion, command[5]], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "usage" in wrong.stderr
    assert "worse than the baseline" in done.stderr
    assert (tmp_path / "work" / "report.html").stat().st_size > 1_000_000


def test_the_workflow_of_a_ci_is_commands_that_exist(minilm_folder: Path, tmp_path: Path) -> None:
    """Every command of the workflow is run as it is written there, on MiniLM; the baseline is the run's own."""
    workflow = yaml.safe_load((_EXAMPLES / "github_actions_gate.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "edgec " in step.get("run", "")]
    environment = {
        **os.environ,
        **workflow["env"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL": str(minilm_folder),
        "RECIPE": "onnx:int8",
    }
    (tmp_path / "baseline.jsonl").touch()
    for step in (step for step in steps if "pip install" not in step):
        done = subprocess.run(
            ["bash", "-e", "-c", step], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, step + done.stdout + done.stderr
        if "edgec bench" in step:
            shutil.copyfile(tmp_path / "results.jsonl", tmp_path / "baseline.jsonl")
    assert (tmp_path / "report.html").is_file()
