"""Lowered right: what a package stores is found in the model whatever a converter did to it, and rounded as runtimes round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import UnusableInput
from runtimes import registry
from runtimes.kinds import find_kind
from runtimes.stored.matrix import Rounding, StoredMatrix
from runtimes.stored.onnx import stored_matrices
from runtimes.verify import verify as verifying
from runtimes.verify.stored_weights import put_stored_weights, round_as, rounded_as_by_the_runtime

_WIDTH, _TOKENS = 96, 300


class _Model(torch.nn.Module):
    """A table, three layers that converters like to join, and a head that shares the table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(_TOKENS, _WIDTH)
        self.query, self.key, self.value = (torch.nn.Linear(_WIDTH, size, bias=False) for size in (96, 32, 32))
        self.head = torch.nn.Linear(_WIDTH, _TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(ids)
        return torch.cat([self.query(hidden), self.key(hidden), self.value(hidden), self.head(hidden)], -1)


def _rounded(weight: torch.Tensor, bits: int = 4) -> NDArray[np.float32]:
    """To nearest, a scale for each row."""
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((weight / step).round() * step).detach().numpy().astype(np.float32)


def _matrix(values: NDArray[Any], looked_up: bool = False, multiplied: bool = True, **more: Any) -> StoredMatrix:
    return StoredMatrix("stored", np.ascontiguousarray(values), looked_up, multiplied, True, **more)


@pytest.mark.parametrize(
    ("bits", "positive"), [(2, False), (3, False), (4, False), (8, False), (3, True), (4, True), (8, True)]
)
def test_rows_in_another_order_are_put_back_where_they_belong(bits: int, positive: bool) -> None:
    """Rows of positive values, as of a GPTQ checkpoint whose zero points are 0, all point one way."""
    model = _Model()
    if positive:
        for parameter in model.parameters():
            parameter.data.abs_()
    wanted = _rounded(model.query.weight, bits)
    order = np.random.default_rng(0).permutation(len(wanted))
    done = put_stored_weights(model, [_matrix(wanted[order])])
    assert done.unknown == []
    np.testing.assert_array_equal(model.query.weight.detach().numpy(), wanted)


def test_joined_turned_and_partial_matrices_are_found() -> None:
    model = _Model()
    layers = (model.query, model.key, model.value)
    wanted = [_rounded(layer.weight) for layer in layers]
    put_stored_weights(model, [_matrix(np.concatenate(wanted).T, rounding=Rounding("int8", 32))])
    for layer, values in zip(layers, wanted, strict=True):
        np.testing.assert_array_equal(layer.weight.detach().numpy(), values)
    part = _rounded(model.table.weight)[100:200]
    put_stored_weights(model, [_matrix(part, looked_up=True, multiplied=False)])
    np.testing.assert_array_equal(model.table.weight.detach().numpy()[100:200], part)


def test_a_shared_table_that_is_stored_twice_becomes_two() -> None:
    model = _Model()
    exact = model.table.weight.detach().numpy().copy()
    head = _rounded(model.head.weight)
    put_stored_weights(model, [_matrix(head)])
    np.testing.assert_array_equal(model.head.weight.detach().numpy(), head)
    np.testing.assert_array_equal(model.table.weight.detach().numpy(), exact)
    both = _Model()
    put_stored_weights(both, [_matrix(head, looked_up=True)])
    np.testing.assert_array_equal(both.table.weight.detach().numpy(), head)
    np.testing.assert_array_equal(both.head.weight.detach().numpy(), head)


def test_codes_that_stand_for_no_matrix_of_the_model_are_told_and_floats_are_not() -> None:
    model = _Model()
    other = np.random.default_rng(1).normal(size=(96, _WIDTH)).astype(np.float32)
    assert put_stored_weights(model, [_matrix(other)]).unknown == ["stored"]
    assert put_stored_weights(model, [replace(_matrix(other), quantized=False)]).unknown == []


def test_the_error_of_weights_is_what_rounding_changed() -> None:
    model = _Model()
    own, rounded = model.key.weight.detach().numpy().copy(), _rounded(model.key.weight)
    done = put_stored_weights(model, [_matrix(rounded)])
    assert done.weight_error == pytest.approx(float(np.linalg.norm(rounded - own) / np.linalg.norm(own)), rel=1e-5)


def test_only_what_the_package_rounds_is_rounded_and_only_for_a_while() -> None:
    model, ids = _Model(), torch.arange(5)[None]
    exact = model(ids).detach()
    done = put_stored_weights(model, [_matrix(model.key.weight.detach().numpy(), rounding=Rounding("int8"))])
    with rounded_as_by_the_runtime(done):
        rounded = model(ids).detach()
    changed = (rounded != exact).any(1)[0]
    assert changed[96:128].all() and not changed[:96].any() and not changed[128:].any()
    assert torch.equal(model(ids), exact)


def test_eight_bits_in_groups_are_rounded_as_ggml_does() -> None:
    values = np.random.default_rng(0).normal(size=(7, 128)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    wanted = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    found = round_as(torch.from_numpy(values), Rounding("int8", 32)).numpy()
    # ggml keeps the scale as float16.
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(values).max())
    assert np.abs(found - values).max() < np.abs(values).max() / 127


def test_eight_bits_for_all_are_rounded_as_onnx_runtime_does() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, size=(5, 40)).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    wanted = _run(nodes, {}, values)
    np.testing.assert_allclose(round_as(torch.from_numpy(values), Rounding("uint8")).numpy(), wanted, atol=1e-6)


def _run(nodes: list[Any], constants: dict[str, NDArray[Any]], values: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(_document(nodes, constants, values).SerializeToString())
    return np.asarray(session.run(["y"], {"x": values})[0])


def _document(nodes: list[Any], constants: dict[str, NDArray[Any]], values: NDArray[np.float32]) -> Any:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_blocks_of_codes_are_read_as_onnx_runtime_multiplies_them(bits: int, asymmetric: bool, tmp_path: Path) -> None:
    random, rows, columns, block = np.random.default_rng(0), 48, 64, 32
    groups = columns // block
    codes = random.integers(0, 256, (rows, groups, block * bits // 8), dtype=np.uint8)
    constants: dict[str, NDArray[Any]] = {
        "b": codes,
        "s": random.uniform(0.01, 0.02, (rows, groups)).astype(np.float32),
    }
    if asymmetric:
        constants["z"] = random.integers(0, 256, (rows, -(-groups * bits // 8)), dtype=np.uint8)
    attributes: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": block, "domain": "com.microsoft"}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], **attributes)
    identity = np.eye(columns, dtype=np.float32)
    wanted = _run([node], constants, identity).T
    onnx.save(_document([node], constants, identity), str(tmp_path / "model.onnx"))
    package: Any = SimpleNamespace(artifact=tmp_path / "model.onnx")
    (found,) = stored_matrices(package)
    np.testing.assert_allclose(found.values, wanted, atol=1e-6)
    assert found.quantized and found.multiplied and not found.looked_up


@pytest.mark.parametrize(
    ("distance", "explained", "right"),
    [
        (0.011, 0.006, True),
        (0.013, 0.006, False),
        (None, 0.006, False),
        (float("nan"), 0.006, False),
        (5e-5, 0.0, True),
    ],
)
def test_the_limit_follows_from_what_rounding_explains(
    distance: float | None, explained: float, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stored.json").write_text(json.dumps({"explained": explained, "weight_error": 0.1, "unknown": []}))
    monkeypatch.setattr(verifying, "runtime_of", lambda package: SimpleNamespace(float16_inside=True))
    package: Any = None
    found, misses = verifying.judge_lowering(package, find_kind("generation"), tmp_path, distance)
    assert (misses == ()) == right
    assert found.explained == explained and found.limit == pytest.approx(1e-4 + 2 * explained)


def test_a_matrix_of_no_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"explained": 1.0, "weight_error": 0.1, "unknown": ["blk.0.attn_q.weight"]}
    (tmp_path / "stored.json").write_text(json.dumps(told))
    monkeypatch.setattr(verifying, "runtime_of", lambda package: SimpleNamespace(float16_inside=False))
    package: Any = None
    _, misses = verifying.judge_lowering(package, find_kind("generation"), tmp_path, 0.0)
    assert misses == ("blk.0.attn_q.weight of the package is none of the model's matrices, rounded",)


def test_files_that_are_not_of_their_format_are_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    monkeypatch.setattr(registry, "runtime_of", lambda package: SimpleNamespace(stored="runtimes.stored.onnx"))
    package: Any = SimpleNamespace(artifact=tmp_path / "model.onnx", title="onnx:int8")
    with pytest.raises(UnusableInput, match="What onnx:int8 stores cannot be read"):
        list(registry.stored_matrices(package))
