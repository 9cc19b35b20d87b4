"""What a config tells is held to what each converter and runtime can do, before any work."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny
from conftest import Run

from compiler.errors import UnusableInput
from compiler.formats.gguf import read_gguf_header
from compiler.inputs.check import check_model
from compiler.model import Model, read_model
from compiler.recipe import Shapes, parse_recipe
from runtimes.kinds.generation.reference import expect
from targets import gptq
from targets.gguf import target as gguf
from targets.onnx import target as onnx


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    tiny.save_sentencepiece(folder / "tokenizer")
    return tiny.save_decoder("llama", folder / "tokenizer", folder / "model")


def _changed(folder: Path, **config: Any) -> Model:
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **config}))
    try:
        return read_model(folder)
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("target", "recipe", "config", "words"),
    [
        (gguf, "gguf:F16", {"hidden_act": "relu"}, "hidden_act is relu"),
        (
            gguf,
            "gguf:F16",
            {"architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": False},
            "norm_topk_prob is false",
        ),
        (gguf, "gguf:int4-rtn-g32", {"num_experts": 4}, "4 experts a layer"),
        (gptq, "gptq:int4-rtn-g32", {"num_local_experts": 8}, "8 experts a layer"),
        (onnx, "onnx:fp32", {"head_dim": 20}, "heads have 20 values"),
    ],
)
def test_a_setting_that_the_runtime_does_not_compute_is_named(
    target: Any, recipe: str, config: dict[str, Any], words: str, llama: Path
) -> None:
    assert words in (target.refuse(_changed(llama, **config), parse_recipe(recipe, (recipe.split(":")[0],))) or "")
    assert target.refuse(read_model(llama), parse_recipe(recipe, (recipe.split(":")[0],))) is None


def test_a_gguf_ends_at_every_token_that_the_model_ends_at(llama: Path, edgec_here: Run, tmp_path: Path) -> None:
    path = llama / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "eos_token_id": [2, 7]}))
    try:
        done = edgec_here("build", llama, "-r", "gguf:F16", "-o", tmp_path / "out", "--verify")
    finally:
        path.write_text(before)
    assert done.returncode == 0, done.stderr
    metadata = read_gguf_header(next((tmp_path / "out").rglob("*.gguf"))).metadata
    assert {metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot")} == {2, 7}


def test_chat_templates_without_a_default_are_named(llama: Path, cache: Path) -> None:
    path = llama / "tokenizer_config.json"
    before = path.read_text()
    templates = [{"name": "chat", "template": "a"}, {"name": "tool_use", "template": "b"}]
    path.write_text(json.dumps({**json.loads(before), "chat_template": templates}))
    try:
        with pytest.raises(UnusableInput, match="chat, tool_use and none called default"):
            check_model(str(llama), "text-generation", "named-templates")
    finally:
        path.write_text(before)


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(days=1)


@pytest.mark.parametrize(("template", "same"), [("{{ strftime_now('%d') }}", False), ("{{ messages }}", True)])
def test_what_the_reference_says_of_a_date_holds_for_a_day(template: str, same: bool, llama: Path) -> None:
    path = llama / "chat_template.jinja"
    path.write_text(template)
    try:
        today = expect(read_model(llama), Shapes(), None, 100)
        with patch("runtimes.kinds.generation.reference.datetime", _Tomorrow):
            assert (expect(read_model(llama), Shapes(), None, 100) == today) is same
    finally:
        path.unlink()
