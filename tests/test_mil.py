"""The evaluator of MIL: each operator against coremltools' own inference of values or torch, and foreign packages whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function
from torch import nn

from compiler.errors import UnusableInput
from runtimes.coreml.evaluator import Evaluator, Precision
from runtimes.coreml.mil_ops import OPERATORS
from runtimes.coreml.mil_program import TensorType, unpack

_X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
_P = np.abs(_X) + 0.5
_Y = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32) + 3
_I = np.array([[0, 2], [1, 1]], np.int32)

# Operators whose values coremltools infers itself, with arguments.
_INFERRED: tuple[tuple[str, dict[str, Any]], ...] = (
    *((kind, {"x": _X}) for kind in ("abs", "cos", "sin", "erf", "exp", "exp2", "floor", "ceil", "relu", "sigmoid", "sign")),
    *((kind, {"x": _X}) for kind in ("square", "tanh", "softplus", "softsign", "identity", "round")),
    *((kind, {"x": _P}) for kind in ("sqrt", "rsqrt", "log", "inverse")),
    *((kind, {"x": _X, "y": _Y}) for kind in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *((kind, {"x": _X, "y": _Y[:, :1]}) for kind in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")),
    ("pow", {"x": _P, "y": np.float32(1.5)}),
    ("floor_div", {"x": np.array([7, 9], np.int32), "y": np.array([2, 4], np.int32)}),
    ("mod", {"x": np.array([7, 9], np.int32), "y": np.array([2, 4], np.int32)}),
    ("logical_and", {"x": np.array([True, False]), "y": np.array([True, True])}),
    ("logical_or", {"x": np.array([True, False]), "y": np.array([False, False])}),
    ("logical_not", {"x": np.array([True, False])}),
    ("clip", {"x": _X, "alpha": np.float32(-0.5), "beta": np.float32(0.7)}),
    ("leaky_relu", {"x": _X, "alpha": np.float32(0.2)}),
    ("softmax", {"x": _X, "axis": 1}),
    ("cast", {"x": _X, "dtype": "int32"}),
    ("select", {"cond": _X > 0, "a": _X, "b": _Y}),
    *(
        (kind, {"x": _X, "axes": [1, -1], "keep_dims": True})
        for kind in ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_sum_square", "reduce_l2_norm")
    ),
    ("reduce_argmax", {"x": _X, "axis": 1, "keep_dims": False}),
    ("reduce_log_sum_exp", {"x": _X, "axes": [2], "keep_dims": False}),
    ("layer_norm", {"x": _X, "axes": [-1], "gamma": _P[0, 0], "beta": _X[0, 0], "epsilon": np.float32(1e-3)}),
    ("linear", {"x": _X, "weight": _Y[0, :, :], "bias": _X[0, :, 0]}),
    ("matmul", {"x": _X, "y": _Y, "transpose_x": False, "transpose_y": True}),
    ("reshape", {"x": _X, "shape": [4, -1]}),
    ("transpose", {"x": _X, "perm": [2, 0, 1]}),
    ("expand_dims", {"x": _X, "axes": [0, 2]}),
    ("squeeze", {"x": _X[:, :1], "axes": [1]}),
    ("concat", {"values": (_X, _Y), "axis": 1}),
    ("stack", {"values": (_X, _Y), "axis": 0}),
    ("split", {"x": _X, "split_sizes": [1, 2], "axis": 1}),
    (
        "slice_by_index",
        {"x": _X, "begin": [0, 2, 3], "end": [2, 0, 0], "stride": [1, -1, -2], "end_mask": [False, True, True]},
    ),
    ("slice_by_index", {"x": _X, "begin": [1, 0, 1], "end": [2, 3, 3], "squeeze_mask": [True, False, False]}),
    ("slice_by_size", {"x": _X, "begin": [0, 1, 1], "size": [2, -1, 2]}),
    ("gather", {"x": _X, "indices": _I, "axis": 1}),
    ("gather_along_axis", {"x": _X[0], "indices": np.array([[0, 1], [2, 0], [1, 1]], np.int32), "axis": 1}),
    ("tile", {"x": _X, "reps": [1, 2, 1]}),
    ("fill", {"shape": [2, 2], "value": np.float32(3)}),
    ("range_1d", {"start": 1, "end": 9, "step": 3}),
    ("cumsum", {"x": _X, "axis": 1, "exclusive": False, "reverse": True}),
    ("band_part", {"x": _X, "lower": 1, "upper": 0}),
    ("shape", {"x": _X}),
)  # fmt: skip


def _held(value: Any) -> Any:
    """An argument as the evaluator hands it to an operator."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return tuple(_held(each) for each in value)
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array) if array.dtype.kind == "b" else torch.from_numpy(array.astype(np.int64))


@pytest.mark.parametrize(("kind", "arguments"), _INFERRED, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(_INFERRED)])
def test_an_operator_gives_what_coremltools_infers(kind: str, arguments: Mapping[str, Any]) -> None:
    with Function({}, opset_version=coremltools.target.iOS18):
        inferred = getattr(mb, kind)(**arguments)
    results = OPERATORS[kind](**{name: _held(value) for name, value in arguments.items()})
    listed = results if isinstance(results, tuple | list) else (results,)
    for each, wanted in zip(listed, inferred if isinstance(inferred, tuple | list) else (inferred,), strict=True):
        assert wanted.val is not None, "coremltools infers no value here"
        assert each.shape == wanted.val.shape
        np.testing.assert_allclose(each.numpy(), wanted.val, rtol=2e-5, atol=1e-6)


def test_an_update_turned_round_lands_where_a_slice_would_read_it() -> None:
    x, new = torch.zeros(4, 5), torch.arange(6.0).reshape(2, 3)
    where = {"begin": torch.tensor([3, 4]), "end": torch.tensor([0, 0]), "stride": torch.tensor([-2, -2])}
    where |= {"end_mask": torch.tensor([False, True])}
    updated = OPERATORS["slice_update"](x, new, **where)
    torch.testing.assert_close(OPERATORS["slice_by_index"](updated, **where), new)
    assert int((updated != 0).sum()) == 5


def test_convolutions_are_torchs() -> None:
    x, weight, bias = torch.randn(2, 4, 9, 7), torch.randn(6, 2, 3, 3), torch.randn(6)
    ours = OPERATORS["conv"](
        x, weight, bias, strides=torch.tensor([2, 1]), pad_type="custom", pad=torch.tensor([1, 0, 2, 1]),
        dilations=torch.tensor([1, 2]), groups=torch.tensor(2),
    )  # fmt: skip
    padded = nn.functional.pad(x, (2, 1, 1, 0))
    torch.testing.assert_close(ours, nn.functional.conv2d(padded, weight, bias, (2, 1), 0, (1, 2), 2))
    same = OPERATORS["conv"](x, weight[:, :, :, :], None, pad_type="same", groups=torch.tensor(2))
    torch.testing.assert_close(same, nn.functional.conv2d(x, weight, None, 1, "same", 1, 2))
    point = torch.randn(5, 4, 1, 1)
    torch.testing.assert_close(OPERATORS["conv"](x, point), nn.functional.conv2d(x, point))


def test_the_products_of_attention_are_torchs() -> None:
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(OPERATORS["einsum"]((x, y), "nchw,nwhu->nchu"), torch.einsum("nchw,nwhu->nchu", x, y))
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    mask = torch.randn(4, 4)
    attended = OPERATORS["scaled_dot_product_attention"](query, key, value, mask)
    torch.testing.assert_close(attended, nn.functional.scaled_dot_product_attention(query, key, value, mask))
    for mode, name in (("EXACT", "none"), ("TANH_APPROXIMATION", "tanh")):
        torch.testing.assert_close(OPERATORS["gelu"](x, mode), nn.functional.gelu(x, approximate=name))
    torch.testing.assert_close(OPERATORS["silu"](x), nn.functional.silu(x))


def test_compressed_constants_are_what_coremltools_decompresses() -> None:
    rng = np.random.default_rng(2)
    codes, scale = rng.integers(-8, 8, (6, 8)).astype(np.int8), rng.random((6, 2)).astype(np.float16)
    offset = rng.integers(-8, 8, (6, 2)).astype(np.int8)
    indices, table = rng.integers(0, 16, (6, 8)).astype(np.uint8), rng.random((3, 1, 16, 1)).astype(np.float16)
    with Function({}, opset_version=coremltools.target.iOS18):
        shifted = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale, offset=offset)
        looked = mb.constexpr_lut_to_dense(
            indices=indices.astype(coremltools.converters.mil.mil.types.np_uint4_dtype), lut=table
        )
    ours = OPERATORS["constexpr_blockwise_shift_scale"](_held(codes), _held(scale), _held(offset))
    np.testing.assert_allclose(ours, shifted.op.materialized_val_inference(), rtol=2e-3)
    ours = OPERATORS["constexpr_lut_to_dense"](_held(indices), _held(table))
    np.testing.assert_array_equal(ours, looked.op.materialized_val_inference())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_values_of_few_bits_are_unpacked_from_the_lowest_bit_on(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, 37).astype(np.uint8)
    packed = np.packbits(np.unpackbits(values[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little")
    np.testing.assert_array_equal(unpack(packed.tobytes(), TensorType(f"uint{bits}", (37,))), values)


class _Foreign(nn.Module):
    """A bit of everything that people convert, none of it edgec's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.attend = nn.LayerNorm(8), nn.Linear(8, 24)
        self.out = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.second(nn.functional.relu(self.first(x)))).flatten(2).transpose(1, 2)
        query, key, value = self.attend(self.norm(x)).chunk(3, -1)
        x = x + torch.softmax(query @ key.transpose(1, 2) / 8**0.5, -1) @ value
        return torch.softmax(self.out(x.mean(1)), -1)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A package by coremltools' own converter, its input, and what torch makes of it."""
    torch.manual_seed(0)
    module, x = _Foreign().eval(), torch.randn(1, 3, 16, 16)
    traced = torch.jit.trace(module, x)
    model = coremltools.convert(
        traced, inputs=[coremltools.TensorType("picture", x.shape)], outputs=[coremltools.TensorType("shares")],
        minimum_deployment_target=coremltools.target.iOS16, skip_model_load=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign") / "foreign.mlpackage"
    model.save(str(folder))
    with torch.inference_mode():
        return folder, x, module(x)


def test_a_package_by_coremltools_own_converter_is_evaluated(foreign: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    folder, x, expected = foreign
    tolerances: dict[Precision, float] = {"fp32": 2e-3, "fp16": 5e-3}
    for precision, tolerance in tolerances.items():
        shares = Evaluator(folder, precision).run({"picture": x.numpy()})["shares"]
        np.testing.assert_allclose(shares, expected.numpy(), atol=tolerance)


def test_a_package_that_coremltools_palettized_is_evaluated(
    foreign: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    folder, x, expected = foreign
    palettes = coremltools.optimize.coreml
    config = palettes.OptimizationConfig(palettes.OpPalettizerConfig(mode="uniform", nbits=8, weight_threshold=64))
    model = palettes.palettize_weights(coremltools.models.MLModel(str(folder), skip_model_load=True), config)
    model.save(str(tmp_path / "small.mlpackage"))
    shares = Evaluator(tmp_path / "small.mlpackage").run({"picture": x.numpy()})["shares"]
    np.testing.assert_allclose(shares, expected.numpy(), atol=2e-2)


def _damaged(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "damaged.mlpackage"))


def test_damaged_packages_are_named(foreign: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    folder, x, _ = foreign
    damaged = _damaged(folder, tmp_path)
    weights = next(damaged.rglob("weight.bin"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnusableInput, match=r"weight\.bin"):
        Evaluator(damaged).run({"picture": x.numpy()})
    weights.write_bytes(bytes(len(whole)))
    with pytest.raises(UnusableInput, match="no blob"):
        Evaluator(damaged).run({"picture": x.numpy()})
    model = next(damaged.rglob("model.mlmodel"))
    model.write_bytes(model.read_bytes()[:-7])
    with pytest.raises(UnusableInput, match=r"model\.mlmodel"):
        Evaluator(damaged)
    manifest = damaged / "Manifest.json"
    manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../../etc/hostname"))
    with pytest.raises(UnusableInput, match="leaves the package"):
        Evaluator(damaged)
    manifest.write_text("{")
    with pytest.raises(UnusableInput, match=r"Manifest\.json"):
        Evaluator(damaged)


def test_an_operator_that_is_not_there_is_named(
    foreign: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    from coremltools.proto import Model_pb2

    damaged = _damaged(foreign[0], tmp_path)
    path = next(damaged.rglob("model.mlmodel"))
    model = Model_pb2.Model.FromString(path.read_bytes())
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    next(each for each in block.operations if each.type == "conv").type = "crystal_ball"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnusableInput, match="crystal_ball"):
        Evaluator(damaged)


def test_a_missing_or_misshapen_input_is_named(foreign: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    evaluator = Evaluator(foreign[0])
    with pytest.raises(UnusableInput, match="picture"):
        evaluator.run({})
    with pytest.raises(UnusableInput, match=r"\[1, 3, 16, 16\]"):
        evaluator.run({"picture": np.zeros((1, 3, 8, 16), np.float32)})
