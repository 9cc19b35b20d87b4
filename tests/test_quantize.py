"""Our codes: packed forms are exact, GPTQ is better than rounding, a damaged model is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.codes import QuantizedTensor, write_quantized
from compiler.formats.gptq import CheckpointForm, pack_tensor, pack_words, unpack_tensor, unpack_words
from compiler.quantize.carrying import Origin, find_origin, index_rows, mark_rows, require_all_carried
from compiler.quantize.solve.gptq import GptqSettings, damp_hessian, row_errors, solve
from compiler.quantize.solve.grid import Grid, dequantize, fit_scales, round_to_codes
from targets import gptq as gptq_target
from targets.gguf.codes import CONTAINERS, pack_blocks
from targets.onnx import codes as onnx_codes


def _tensor(bits: int, symmetric: bool, rows: int = 64, columns: int = 128, group: int = 32) -> QuantizedTensor:
    generator = np.random.default_rng(bits)
    codes = generator.integers(0, 2**bits, (rows, columns), dtype=np.uint8)
    scales = generator.normal(0, 0.01, (rows, columns // group)).astype(np.float16)
    middle = np.full((rows, columns // group), 2 ** (bits - 1), np.uint8)
    zeros = middle if symmetric else generator.integers(0, 2**bits, middle.shape, dtype=np.uint8)
    return QuantizedTensor("x.weight", codes, scales, zeros, bits, group, symmetric)


@pytest.mark.parametrize(("bits", "symmetric"), CONTAINERS)
def test_gguf_blocks_dequantize_to_the_codes_in_the_official_reader(bits: int, symmetric: bool) -> None:
    gguf = pytest.importorskip("gguf")
    tensor = _tensor(bits, symmetric)
    kind = CONTAINERS[bits, symmetric][0]
    blocks = pack_blocks(tensor)
    read = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    if symmetric:
        assert np.array_equal(read, tensor.dequantize())
    else:
        shift = np.abs(tensor.scales.astype(np.float32) * tensor.zero_points).repeat(32, 1)
        # One rounding of the minimum to float16, and float32 rounding of the sum.
        assert (np.abs(read - tensor.dequantize()) <= shift * 2.0**-11 + 1e-7).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_of_a_gptq_checkpoint_hold_the_codes_by_the_published_layout(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (96, 5), dtype=np.uint8)
    words = pack_words(codes, bits)
    assert words.shape == (96 * bits // 32, 5)
    for column in range(5):
        value = sum(int(code) << (bits * at) for at, code in enumerate(codes[:, column]))
        packed = sum((int(word) & 0xFFFFFFFF) << (32 * at) for at, word in enumerate(words[:, column]))
        assert value == packed
    assert np.array_equal(unpack_words(words, bits), codes)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_checkpoint_tensor_comes_back_with_zero_points_of_every_value(bits: int, form: str) -> None:
    tensor = _tensor(bits, symmetric=False)
    tensor.zero_points[0, :] = 0
    back = unpack_tensor("x", pack_tensor(tensor, form), CheckpointForm(bits, 32, False, False, form))
    for part in ("codes", "scales", "zero_points"):
        assert np.array_equal(getattr(back, part), getattr(tensor, part)), part


def test_a_checkpoint_tensor_with_wrong_shapes_is_refused() -> None:
    arrays = pack_tensor(_tensor(4, True), "gptq")
    arrays["scales"] = arrays["scales"][:-1]
    with pytest.raises(UnusableInput, match=r"inconsistent at x: its scales"):
        unpack_tensor("x", arrays, CheckpointForm(4, 32, False, True, "gptq"))


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_packing_puts_the_first_of_two_codes_into_the_low_half(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, 33), dtype=np.uint8)
    packed = onnx_codes.pack_codes(codes, bits)
    for row, words in zip(codes, packed, strict=True):
        read = words if bits == 8 else [half for word in words for half in (word % 16, word // 16)]
        assert list(read)[:33] == row.tolist()


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_changes_outputs_less_than_rounding_and_refinement_less_still(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(96, 96, generator=generator)
    inputs = torch.randn(2000, 96, generator=generator) @ mixing
    weight = torch.randn(40, 96, generator=generator)
    hessian, grid = inputs.T @ inputs, Grid(4, 32, symmetric)
    scales = fit_scales(weight, grid)
    rounded = row_errors(weight, dequantize(round_to_codes(weight, scales, grid), scales), hessian).sum()
    errors = []
    for refinements in (0, 2):
        codes, found = solve(weight, hessian, grid, GptqSettings(refinements=refinements), "x")
        assert torch.equal(found.scale, found.scale.half().float())
        errors.append(row_errors(weight, dequantize(codes, found), hessian).sum())
    assert errors[1] < errors[0] < 0.7 * rounded


def test_degenerate_inputs_are_damped_or_refused_by_name() -> None:
    one = torch.ones(64, 64)
    assert torch.isfinite(damp_hessian(one, GptqSettings(), "x").upper).all()
    with pytest.raises(UnusableInput, match=r"blk\.down"):
        damp_hessian(torch.zeros(64, 64), GptqSettings(), "blk.down")
    with pytest.raises(UnusableInput, match="not finite"):
        damp_hessian(torch.full((64, 64), torch.nan), GptqSettings(), "x")


def _save_with_codes(folder: Path, matrices: dict[str, np.ndarray]) -> None:
    """A model with these matrices, and codes of each, which matter not here."""
    save_file(matrices, folder / "model.safetensors")
    tensors = []
    for name, values in matrices.items():
        groups = np.ones((len(values), values.shape[1] // 32), np.float16)
        codes = np.zeros(values.shape, np.uint8)
        tensors.append(QuantizedTensor(name, codes, groups, groups.astype(np.uint8), 8, 32, True))
    write_quantized(folder / "codes-0000.safetensors", tensors)


def test_rows_of_zeros_do_not_tell_where_a_matrix_comes_from(tmp_path: Path) -> None:
    """RoBERTa's table of positions has no codes, and a row of zeros like the table of words."""
    words, positions = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)
    words[1] = positions[1] = 0
    _save_with_codes(tmp_path, {"words.weight": words})
    rows = index_rows(tmp_path, tmp_path)
    assert find_origin(rows, mark_rows(positions, "F32"), "positions") is None
    origin = find_origin(rows, mark_rows(words, "F32"), "words")
    assert origin is not None and origin.parts[0][1].tolist() == list(range(8))
    changed = words.copy()
    changed[3] += 1
    with pytest.raises(CheckFailed, match="Of the rows of words, 1 are not rows"):
        find_origin(rows, mark_rows(changed, "F32"), "words")


def test_two_equal_matrices_both_get_their_codes(tmp_path: Path) -> None:
    """A layer that was put in twice, as merges of models do."""
    values = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    _save_with_codes(tmp_path, {"first.weight": values, "second.weight": values})
    rows = index_rows(tmp_path, tmp_path)
    placed: list[Origin] = []
    for _ in range(2):
        origin = find_origin(rows, mark_rows(values, "F32"), "twin", placed)
        assert origin is not None
        placed.append(origin)
    require_all_carried(rows, placed)


def test_embeddings_are_no_layers_with_codes_in_a_checkpoint_whatever_they_are_called() -> None:
    for name in ("transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight", "embed_out.weight"):
        assert not gptq_target._is_linear(name)
    assert gptq_target._is_linear("model.layers.11.mlp.down_proj.weight")
