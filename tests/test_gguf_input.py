"""A .gguf file becomes the model that it is in llama.cpp, or is refused with the key, the tensor or the figure that tells "
"why."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest
import sentencepiece
import tiny
import torch
import transformers
from conftest import Run
from safetensors.torch import load_file, save_file

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.inputs import gguf_proof
from compiler.inputs.gguf import import_gguf
from compiler.tokenizer import load_tokenizer

_ROPES = {
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


def _built(folder: Path, edgec_here: Run, **config: object) -> Path:
    """A folder with `model`, a Llama with a SentencePiece vocabulary, and `llama.gguf`, the same as a file."""
    tiny.save_sentencepiece(folder / "tokenizer")
    with patch.dict(tiny.DECODER_CONFIGS["llama"][1], config):
        tiny.save_decoder("llama", folder / "tokenizer", folder / "model")
    done = edgec_here("build", folder / "model", "-r", "gguf:F32", "-o", folder / "out", "--name", "llama")
    assert done.returncode == 0, done.stderr
    next((folder / "out").rglob("*.gguf")).rename(folder / "llama.gguf")
    return folder


@pytest.fixture(scope="module", params=_ROPES)
def scaled(request: pytest.FixtureRequest, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rope = {"rope_type": request.param, "rope_theta": 10000.0, **_ROPES[request.param]}
    return _built(tmp_path_factory.mktemp(request.param), edgec_here, rope_parameters=rope)


@pytest.fixture(scope="module")
def plain(edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(tmp_path_factory.mktemp("plain"), edgec_here) / "llama.gguf"


def _logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.as_tensor(model(torch.arange(20, 220)[None]).logits[0])


def test_a_scaled_rotary_embedding_survives(scaled: Path, tmp_path: Path) -> None:
    import_gguf(str(scaled / "llama.gguf"), str(tmp_path))
    assert torch.allclose(_logits(tmp_path), _logits(scaled / "model"), atol=1e-4)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in _ROPES[config["rope_parameters"]["rope_type"]].items():
        assert config["rope_parameters"][name] == pytest.approx(value)


def test_an_import_that_lost_something_is_not_what_llama_cpp_computes(scaled: Path, tmp_path: Path) -> None:
    with patch("compiler.inputs.gguf.restore_config"), pytest.raises(UnusableInput, match="mean KL"):
        import_gguf(str(scaled / "llama.gguf"), str(tmp_path))


def test_the_text_of_a_sentencepiece_vocabulary_survives(plain: Path, tmp_path: Path) -> None:
    import_gguf(str(plain), str(tmp_path))
    own = sentencepiece.SentencePieceProcessor(model_file=str(plain.parent / "model" / "tokenizer.model"))
    imported = load_tokenizer(tmp_path)
    for string in corpus.NASTY:
        assert imported.encode(string, add_special_tokens=False) == own.encode(string)


def _rewritten(
    source: Path, out: Path, keys: dict[str, int | float | str], tensors: dict[str, np.ndarray] | None = None
) -> Path:
    """The file with more keys or tensors, or others in their place, by gguf's own writer."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in keys:
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, value in keys.items():
        kind_of = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
        kind = kind_of[type(value)]
        writer.add_key_value(name, value, kind)
    kept = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    for name, data in {**kept, **(tensors or {})}.items():
        writer.add_tensor(name, data)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return out


@pytest.mark.parametrize(
    ("keys", "tensors", "words"),
    [
        ({"llama.logit_scale": 2.0}, {}, "llama.logit_scale"),
        ({"llama.attention.sliding_window": 8}, {}, "llama.attention.sliding_window"),
        ({"tokenizer.ggml.new_rule": "x"}, {}, "tokenizer.ggml.new_rule"),
        ({"general.type": "adapter"}, {}, "general.type is 'adapter'"),
        ({"split.count": 2}, {}, "one of 2 parts"),
        ({"llama.rope.scaling.type": "spiral"}, {}, "spiral"),
        ({"llama.rope.dimension_count": 8}, {}, "rotates 8 of the 16"),
        ({}, {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}, "rope_freqs.weight"),
        ({}, {"blk.0.attn_scale.weight": np.ones((4, 64), np.float32)}, "blk.0.attn_scale.weight"),
    ],
)
def test_what_cannot_be_taken_over_is_named(
    plain: Path, tmp_path: Path, keys: dict[str, int | float | str], tensors: dict[str, np.ndarray], words: str
) -> None:
    file = _rewritten(plain, tmp_path / "changed.gguf", keys, tensors)
    with pytest.raises(UnusableInput) as refused:
        import_gguf(str(file), str(tmp_path / "out"))
    assert words in str(refused.value)


def test_an_end_of_turn_ends_a_text_too(plain: Path, tmp_path: Path) -> None:
    file = _rewritten(plain, tmp_path / "turns.gguf", {"tokenizer.ggml.eot_token_id": 0})
    import_gguf(str(file), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_where_rounding_costs_more_the_weights_as_floats_decide(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Codes in llama.cpp meet activations in 8 bits; made floats by its own quantizer, the file is exact or another model."""
    import_gguf(str(smollm2_gguf), str(tmp_path / "out"))
    with patch.dict(gguf_proof._MOST_KL, {True: 0.0}):
        gguf_proof.prove_import(smollm2_gguf, tmp_path / "out", quantized=True)
        weights = load_file(tmp_path / "out" / "model.safetensors")
        changed = {name: value.clone() for name, value in weights.items()}
        changed["model.norm.weight"] = changed["model.norm.weight"].flip(0)
        save_file(changed, tmp_path / "out" / "model.safetensors", {"format": "pt"})
        with pytest.raises(UnusableInput, match="another model"):
            gguf_proof.prove_import(smollm2_gguf, tmp_path / "out", quantized=True)
    assert not list(tmp_path.glob("floats-*"))
