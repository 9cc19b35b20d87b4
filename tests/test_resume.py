"""A quantization that ended early goes on at the block that it had reached, and finds the same codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from compiler.formats.codes import list_quantized, read_quantized
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.quantization import Quantization
from compiler.quantize import stage


class _Killed(Exception):
    pass


def test_a_second_run_begins_at_the_block_where_the_first_was_stopped(
    smollm2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save_decoder("llama", smollm2.folder, tmp_path / "model")
    samples = np.random.default_rng(0).integers(0, open_model(str(folder)).geometry.vocabulary, (8, 64))
    np.save(tmp_path / "samples.npy", samples)
    begun: list[str] = []
    quantize_block = stage.quantize_block

    def watched(network: Any, block: str, *rest: Any) -> Any:
        begun.append(block)
        return quantize_block(network, block, *rest)

    def run(key: str) -> dict[str, np.ndarray]:
        out = tmp_path / key / str(len(begun))
        out.mkdir(parents=True)
        monkeypatch.setenv("EDGEC_STAGE_KEY", key)
        settings = Quantization().full()
        stage.quantize(str(folder), str(out), "text-generation", "gptq", 4, 32, True, settings, samples=str(tmp_path))
        return {name: read_quantized(entry).dequantize() for name, entry in list_quantized(out).items()}

    monkeypatch.setattr(stage, "quantize_block", watched)
    whole = run("resume-whole")
    assert begun == ["model.layers.0", "model.layers.1"]

    def killed(network: Any, block: str, *rest: Any) -> Any:
        if block.endswith("1"):
            raise _Killed
        return quantize_block(network, block, *rest)

    monkeypatch.setattr(stage, "quantize_block", killed)
    with pytest.raises(_Killed):
        run("resume-cut")
    begun.clear()
    monkeypatch.setattr(stage, "quantize_block", watched)
    resumed = run("resume-cut")
    assert begun == ["model.layers.1"]
    assert whole.keys() == resumed.keys()
    for name, matrix in whole.items():
        assert np.array_equal(matrix, resumed[name]), name
