"""How many tokens a language model's cache holds is said once, when a package is run or measured."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
from conftest import Run, assert_refused

from compiler.model import Model

_TRAINED = 8192
_SHORT = ("--generated-tokens", 4, "--rounds", 1)


@pytest.fixture(scope="module")
def packages(smollm2: Model, edgec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that was trained for 8192 tokens."""
    kind, sizes = tiny.DECODER_CONFIGS["llama"]
    folder = tmp_path_factory.mktemp("contexts")
    with patch.dict(tiny.DECODER_CONFIGS, {"long": (kind, {**sizes, "max_position_embeddings": _TRAINED})}):
        model = tiny.save_decoder("long", smollm2.folder, folder / "model")
    done = edgec("build", model, "-r", "gguf:F16", "-r", "onnx:fp32", "-o", folder / "out")
    assert done.returncode == 0, done.stderr
    fixed = edgec("build", model, "-r", "gguf:Q8_0", "--context-length", 512, "-o", folder / "out")
    assert fixed.returncode == 0, fixed.stderr
    return folder / "out"


@pytest.mark.parametrize("name", ["gguf-F16", "onnx-fp32"])
def test_a_prompt_of_4096_tokens_is_measured_where_the_model_takes_it(
    packages: Path, name: str, edgec: Run, tmp_path: Path
) -> None:
    done = edgec("bench", packages / name, "--prompt-tokens", 4096, *_SHORT, "--json")
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)
    assert measured["workload"]["prompt_tokens"] == 4096
    assert measured["summary"]["prefill_tok_per_s"] > 0


def test_a_prompt_that_is_longer_than_the_model_takes_is_refused_with_what_it_takes(packages: Path, edgec: Run) -> None:
    done = edgec("bench", packages / "gguf-F16", "--prompt-tokens", _TRAINED, *_SHORT)
    assert_refused(done, 2, str(_TRAINED))


def test_the_cache_costs_what_is_asked_for(packages: Path, edgec: Run) -> None:
    peak = {}
    for length in (256, _TRAINED):
        done = edgec(
            "bench", packages / "gguf-F16", "--prompt-tokens", 32, *_SHORT, "--context-length", length, "--json"
        )
        assert done.returncode == 0, done.stderr
        (measured,) = json.loads(done.stdout)
        assert measured["workload"]["context_length"] == length
        peak[length] = measured["summary"]["peak_anon_bytes"]
    # Two layers, two key-value heads of 16, keys and values, two bytes each.
    cache = (_TRAINED - 256) * 2 * 2 * 16 * 2 * 2
    assert peak[_TRAINED] - peak[256] > cache / 2


@pytest.mark.parametrize("command", ["run", "bench"])
def test_more_than_the_model_was_trained_for_is_refused(packages: Path, command: str, edgec: Run) -> None:
    prompt = ("-p", "Hello") if command == "run" else _SHORT
    done = edgec(command, packages / "gguf-F16", *prompt, "--context-length", _TRAINED + 1)
    assert_refused(done, 2, f"{_TRAINED + 1} tokens", f"takes {_TRAINED} at most")


def test_what_the_recipe_says_is_the_default_and_no_bound(packages: Path, edgec: Run) -> None:
    (fixed,) = (folder for folder in packages.iterdir() if folder.name.startswith("gguf-Q8_0"))
    done = edgec("bench", fixed, "--prompt-tokens", 1024, *_SHORT, "--json")
    assert done.returncode == 0, done.stderr
    assert edgec("run", fixed, "-p", "Hello", "-n", 4).returncode == 0
