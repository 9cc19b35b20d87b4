"""Models whose numbers leave float16's range, which ends at 65504."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from lowering import decoder_session, lower
from safetensors.torch import load_file, save_file

from compiler.model import Model


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_a_stream_beyond_float16_is_kept_within_it(kind: str, smollm2: Model, tmp_path: Path) -> None:
    """A real Gemma 3 of 270M parameters reaches 1e5 between its blocks."""
    folder = tiny.save_decoder(kind, smollm2.folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.post_feedforward_layernorm.weight"].fill_(6e4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = [int(token) for token in np.random.default_rng(0).integers(5, 5000, 40)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([ids]), output_hidden_states=True)
    assert expected.hidden_states[1].abs().max() > 65504
    logits = decoder_session(lower(folder, tmp_path / "out")).score(ids)
    reference = expected.logits[0].numpy()
    assert np.abs(logits - reference).max() < 2e-2 * np.abs(reference).max()
