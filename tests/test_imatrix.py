"""`gguf:SCHEME+imatrix`: the figures are torch's own, the file is llama.cpp's form, and its quantizer uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
from conftest import Run, assert_refused

from compiler.corpus import PASSAGES
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.quantization import Calibration
from compiler.quantize.calibrate.samples import samples_of_text

_NAMES = {
    "llama": {
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj",
        "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj",
    },
    "gpt2": {"blk.0.attn_qkv.weight": "transformer.h.0.attn.c_attn", "blk.1.ffn_up.weight": "transformer.h.1.mlp.c_fc"},
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(PASSAGES * 3), encoding="utf-8")
    return path


def _sums_of_squares(folder: Path, samples: np.ndarray, modules: list[str]) -> dict[str, np.ndarray]:
    """The same figures by hooks on transformers' own model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums: dict[str, Any] = {}
    for name in modules:

        def add(_: Any, given: tuple[torch.Tensor], __: Any, name: str = name) -> None:
            sums[name] = sums.get(name, 0) + given[0].double().square().sum((0, 1))

        model.get_submodule(name).register_forward_hook(add)
    with torch.inference_mode():
        model(torch.from_numpy(samples))
    return {name: each.numpy() for name, each in sums.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_figures_are_the_sums_of_squares_of_the_inputs(
    kind: str, smollm2: Model, text: Path, tmp_path: Path, edgec_here: Run
) -> None:
    folder = tiny.save_decoder(kind, smollm2.folder, tmp_path / "model")
    options = ["--calibration", text, "--calibration-samples", "6", "--calibration-tokens", "128"]
    done = edgec_here("build", folder, "-r", "gguf:Q4_0", "-r", "gguf:Q4_0+imatrix", *options, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    package = tmp_path / "out" / "gguf-Q4_0-imatrix"
    reader = gguf.GGUFReader(package / "imatrix.gguf")
    tensors = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    settings = Calibration("text", "text.txt", 6, 128)
    samples = samples_of_text(open_model(str(folder)), text.read_text(encoding="utf-8"), settings)
    assert samples.shape == (6, 128)
    expected = _sums_of_squares(folder, samples, list(_NAMES[kind].values()))
    for tensor, module in _NAMES[kind].items():
        np.testing.assert_allclose(tensors[f"{tensor}.in_sum2"], expected[module], rtol=1e-4)
        assert tensors[f"{tensor}.counts"] == 6 * 128
    assert reader.fields["imatrix.chunk_count"].contents() == 6
    assert reader.fields["imatrix.chunk_size"].contents() == 128
    assert reader.fields["imatrix.datasets"].contents() == ["text.txt"]
    assert not any(name.startswith(("output", "token_embd")) for name in tensors)

    weighed = gguf.GGUFReader(next(package.glob("model-*.gguf")))
    plain = gguf.GGUFReader(next((tmp_path / "out" / "gguf-Q4_0").glob("model-*.gguf")))
    assert weighed.fields["quantize.imatrix.file"].contents() == "imatrix.gguf"
    assert weighed.fields["quantize.imatrix.dataset"].contents() == "text.txt"
    assert weighed.fields["quantize.imatrix.entries_count"].contents() == len(tensors) // 2
    changed = {
        one.name
        for one, other in zip(weighed.tensors, plain.tensors, strict=True)
        if one.tensor_type != other.tensor_type or not np.array_equal(one.data, other.data)
    }
    assert changed == {name.removesuffix(".counts") for name in tensors if name.endswith(".counts")}


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("gguf:F16+imatrix", "own rounding"),
        ("gguf:int4-gptq-g32+imatrix", "own rounding"),
        ("onnx:fp32+imatrix", "no option"),
    ],
)
def test_what_has_nothing_to_weigh_is_refused(
    recipe: str, word: str, smollm2: Model, tmp_path: Path, edgec: Run
) -> None:
    assert_refused(edgec("build", smollm2.folder, "-r", recipe, "-o", tmp_path / "out"), 2, word)
    assert not (tmp_path / "out").exists()


def test_what_llama_cpp_rounds_by_an_importance_matrix_alone_is_refused_without_one(
    smollm2: Model, text: Path, tmp_path: Path, edgec_here: Run
) -> None:
    kind, sizes = tiny.DECODER_CONFIGS["llama"]
    wide = {**sizes, "hidden_size": 256, "intermediate_size": 256}
    with patch.dict(tiny.DECODER_CONFIGS, {"wide": (kind, wide)}), patch("tiny._train"):
        folder = tiny.save_decoder("wide", smollm2.folder, tmp_path / "model")
    options = ["--calibration", text, "--calibration-samples", "6", "--calibration-tokens", "128"]
    done = edgec_here("build", folder, "-r", "gguf:Q2_K_S", "-o", tmp_path / "out")
    assert_refused(done, 2, "Q2_K_S by an importance matrix alone", "+imatrix", "Q2_K")
    done = edgec_here("build", folder, "-r", "gguf:Q2_K_S+imatrix", *options, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
