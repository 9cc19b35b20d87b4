"""`--adapter`: a LoRA adapter is merged as peft's paper formula says, and what does not belong to the model is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from conftest import Run, assert_refused
from safetensors.torch import load_file, save_file

from compiler.errors import UnusableInput
from compiler.inputs.adapter import check_adapter, merge_adapter
from compiler.inputs.open import open_model
from compiler.model import Model

_RANK, _ALPHA = 4, 12


@pytest.fixture(scope="module")
def base(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_decoder("llama", smollm2.folder, tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter as peft writes it, with a B that is not zero."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(1)
    with_adapter = peft.get_peft_model(model, config)
    for name, parameter in with_adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.2)
    with_adapter.save_pretrained(str(tmp_path / "style"))
    return tmp_path / "style"


def _change_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_merged_weights_are_the_base_plus_scaled_b_times_a(
    base: Path, adapter: Path, tmp_path: Path, edgec_here: Run
) -> None:
    done = edgec_here("build", base, "--adapter", adapter, "-r", "gguf:F32", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "out" / "gguf-F32" / "model-style-F32.gguf"
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    weights, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    part = "model.layers.1.mlp.down_proj"
    down, up = (lora[f"base_model.model.{part}.lora_{each}.weight"] for each in "AB")
    expected = weights[f"{part}.weight"] + _ALPHA / _RANK * up @ down
    np.testing.assert_allclose(tensors["blk.1.ffn_down.weight"], expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight"], weights["model.layers.1.mlp.up_proj.weight"].numpy())
    assert "made from model+style" in (tmp_path / "out" / "gguf-F32" / "README.md").read_text()
    again = edgec_here("verify", tmp_path / "out" / "gguf-F32", "--model", base, "--adapter", adapter)
    assert again.returncode == 0, again.stderr
    assert_refused(edgec_here("verify", tmp_path / "out" / "gguf-F32", "--model", base), 2, "not the one")
    assert_refused(edgec_here("verify", tmp_path / "out" / "gguf-F32", "--adapter", adapter), 2, "Add --model")


def test_an_adapter_of_another_model_is_refused(adapter: Path, smollm2: Model, tmp_path: Path, edgec: Run) -> None:
    narrow = tiny.save_decoder("qwen2", smollm2.folder, tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text()) | {"intermediate_size": 96}
    transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(**config)).save_pretrained(narrow)
    other = tiny.save_decoder("gpt2", smollm2.folder, tmp_path / "other")
    done = edgec("build", narrow, "--adapter", adapter, "-r", "gguf:F16", "-o", tmp_path / "out")
    assert_refused(done, 2, "down_proj", "[4, 128]", "[4, 96]", "another model")
    assert not (tmp_path / "out").exists()
    for folder, words in (
        (other, "does not suit.*no such layer"),
        (smollm2.folder, r"down_proj.*asks for \[4, 1536\]"),
    ):
        with pytest.raises(UnusableInput, match=words):
            merge_adapter(str(folder), str(adapter), str(tmp_path / "merged"), "text-generation")


def test_a_name_of_another_base_is_refused_before_anything_is_read(base: Path, adapter: Path) -> None:
    model = replace(open_model(str(base)), source="org/small@abc")
    _change_config(adapter, base_model_name_or_path="org/large")
    with pytest.raises(UnusableInput, match="trained on org/large, and the model is org/small"):
        check_adapter(adapter, model)
    _change_config(adapter, base_model_name_or_path="Org/Small")
    check_adapter(adapter, model)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda a: shutil.rmtree(a), "no adapter folder"),
        (lambda a: (a / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda a: (a / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda a: (a / "adapter_config.json").write_text("[]"), "is not a JSON object"),
        (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "pickle"),
        (lambda a: _change_config(a, peft_type="IA3"), "'IA3'; only LoRA"),
        (lambda a: _change_config(a, megatron_config={"a": 1}), "Megatron"),
    ],
)
def test_what_is_no_lora_adapter_is_refused(
    damage: Callable[[Path], object], words: str, base: Path, adapter: Path
) -> None:
    damage(adapter)
    with pytest.raises(UnusableInput, match=words):
        check_adapter(adapter, open_model(str(base)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda a: (a / "adapter_model.safetensors").write_bytes(b"\0" * 20), r"adapter_model\.safetensors"),
        (lambda a: _drop_or_poison(a, drop=True), "has no tensor .*lora_A"),
        (lambda a: _drop_or_poison(a, drop=False), "not finite"),
    ],
)
def test_damaged_weights_of_an_adapter_are_refused(
    damage: Callable[[Path], object], words: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    damage(adapter)
    with pytest.raises(UnusableInput, match=words):
        merge_adapter(str(base), str(adapter), str(tmp_path / "merged"), "text-generation")


def _drop_or_poison(adapter: Path, drop: bool) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    if drop:
        del tensors[name]
    else:
        tensors[name][0, 0] = torch.nan
    save_file(tensors, file)
