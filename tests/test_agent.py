"""The agent runs on a device that has numpy, psutil and one runtime, and nothing of torch or transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
import tiny
from conftest import Run
from packaging.requirements import Requirement

from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.package import read_package
from runtimes.devices.local import LocalAgent
from runtimes.workload import Workload

_ROOT = Path(__file__).parent.parent
_WORKLOAD = Workload(prompt_tokens=8, generated_tokens=4, sequence_length=16, repetitions=2, threads=1)


def _closure(names: tuple[str, ...]) -> set[str]:
    """The distributions and all that they require themselves."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = metadata.distribution(left.pop()).metadata["Name"]
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def _environment(folder: Path, distributions: set[str]) -> Path:
    """A virtual environment with these distributions and no other; their files are linked, not installed anew."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for name in distributions:
        for file in metadata.files(name) or []:
            source = Path(str(file.locate()))
            if ".." in file.parts or not source.is_file():
                continue
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            if not (site / file).exists():
                (site / file).symlink_to(source.resolve())
    return folder / "bin" / "python"


def _agent(python: Path, package: Path) -> LocalAgent:
    command = [str(python), "-P", "-m", "benchmarks.agent.main", str(package), json.dumps(asdict(_WORKLOAD))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return LocalAgent(command, {**kept, "PYTHONPATH": str(_ROOT)})


@pytest.fixture(scope="module")
def packages(smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("agent")
    decoder = tiny.save_decoder("llama", smollm2.folder, root / "tiny-llama")
    encoder = tiny.save_encoder("bert", minilm_folder, root / "tiny-bert")
    assert edgec_here("build", decoder, "-r", "gguf:Q8_0", "-r", "onnx:fp32", "-o", root / "decoder").returncode == 0
    assert edgec_here("build", encoder, "-r", "onnx:fp32", "-o", root / "encoder").returncode == 0
    return root


@pytest.mark.parametrize(
    ("package", "runtime", "timed"),
    [
        ("decoder/gguf-Q8_0", ("llama-cpp-python",), {"ttft_s": 1, "tpot_s": 3}),
        ("decoder/onnx-fp32", ("onnxruntime-genai", "onnxruntime"), {"ttft_s": 1, "tpot_s": 3}),
        ("encoder/onnx-fp32", ("onnxruntime",), {"latency_s": 2}),
    ],
)
def test_it_runs_a_package_with_one_runtime_and_numpy_only(
    package: str, runtime: tuple[str, ...], timed: dict[str, int], packages: Path, tmp_path: Path
) -> None:
    distributions = _closure(("numpy", "psutil", *runtime))
    assert not distributions & {"torch", "transformers", "click", "rich", "huggingface_hub"}
    python = _environment(tmp_path / "device", distributions)
    listed = "from importlib import metadata; print(sorted({d.name for d in metadata.distributions()}))"
    there = subprocess.run([str(python), "-P", "-c", listed], capture_output=True, text=True, check=True).stdout
    assert set(json.loads(there.replace("'", '"'))) == distributions
    agent = _agent(python, packages / package)
    try:
        asked = json.dumps({"threads": 1, "distributions": list(runtime)})
        environment = agent.ask(f"facts {asked}")["environment"]
        assert set(environment["tools"]) == set(runtime)
        assert agent.ask("load")["load_s"] > 0
        peak = agent.ask("warmup")["peak"]
        assert peak["rss_bytes"] >= read_package(packages / package).nbytes
        answer = agent.ask("round")
        assert {name: len(samples) for name, samples in answer["round"].items()} == timed
        assert answer["observed"]["wall_s"] > 0
        assert agent.ask("end")["peak_rss_bytes"] > peak["rss_bytes"] / 2
    finally:
        agent.close()


def test_it_says_what_ran_and_not_what_was_only_asked(packages: Path) -> None:
    agent = _agent(Path(sys.executable), packages / "encoder" / "onnx-fp32")
    try:
        ran = agent.ask("load")["workload"]
    finally:
        agent.close()
    assert (ran["sequence_length"], ran["prompt_tokens"], ran["generated_tokens"]) == (16, None, None)


def test_a_workload_that_the_package_cannot_hold_is_said(packages: Path) -> None:
    command = [sys.executable, "-P", "-m", "benchmarks.agent.main", str(packages / "decoder" / "gguf-Q8_0")]
    agent = LocalAgent([*command, json.dumps(asdict(Workload(prompt_tokens=4000)))], dict(os.environ))
    try:
        with pytest.raises(UnusableInput, match=r"gguf:Q8_0 holds 256 tokens.*4064.*--prompt-tokens"):
            agent.ask("load")
    finally:
        agent.close()
