"""The two real models go the whole way: build, verify, bench, compare, report, run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnxruntime_genai as og
import pytest
from conftest import Run, assert_refused, figures_of, verification_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compiler.model import Model
from compiler.package import read_package

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
    if "is invalid" not in done.stderr:
        assert done.returncode == 0, done.stderr
    assert edgec("compare", results, "--html", report).returncode == 0
    assert "SmolLM2-135M-Instruct" in report.read_text()
