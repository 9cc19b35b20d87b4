"""Encoders with products in whole numbers: `tflite:int8-static`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from conftest import Run, assert_refused, figures_of, verification_of

from compiler.formats.tflite import operator_of, read_tflite
from compiler.model import Model
from compiler.package import read_package
from runtimes.stored.tflite import stored_matrices
from targets.tflite.ranges import ProductRange, _range_of, _Seen, read_ranges
from targets.tflite.storage import span_of

_INT8, _FLOAT = schema.TensorType.INT8, schema.TensorType.FLOAT32


@pytest.fixture(scope="module")
def built(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of a BERT one channel of whose feed-forward layers is 100 times as large as the others, and of a ViT."""
    out = tmp_path_factory.mktemp("static")
    for kind in ("bert", "vit"):
        model = tiny.save_encoder(kind, minilm_folder, out / kind / "model")
        if kind == "bert":
            _enlarge(model / "model.safetensors")
        options = ("--sequence-length", 64, "--calibration-samples", 16)
        recipes = ("-r", "tflite:int8-static", "-r", "tflite:int8")
        done = edgec_here("build", model, *recipes, *options, "-o", out / kind / "out", "--verify")
        assert done.returncode == 0, done.stdout + done.stderr
    return out


def _enlarge(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name, values in tensors.items():
        if name.endswith("output.dense.weight") and "attention" not in name:
            values[3] *= 100
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(("kind", "least"), [("bert", 0.98), ("vit", 0.98)])
def test_it_computes_what_its_weights_and_ranges_say(kind: str, least: float, built: Path) -> None:
    package = built / kind / "out" / "tflite-int8-static"
    assert verification_of(package).lowered_right
    assert figures_of(package)["mean_cosine"] > least


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_every_product_takes_and_gives_whole_numbers(kind: str, built: Path) -> None:
    folder = built / kind / "out" / "tflite-int8-static"
    model = read_tflite(folder / "model.tflite")
    graph = model.subgraphs[0]
    products = [each for each in graph.operators if operator_of(model, each) == schema.BuiltinOperator.FULLY_CONNECTED]
    assert len(products) >= 12
    for each in products:
        types = [graph.tensors[index].type for index in (*each.inputs, *each.outputs)]
        # The classifier is kept in floats, as in every scheme.
        is_kept = b"classifier" in graph.tensors[each.inputs[1]].name
        assert types == ([_FLOAT] * 4 if is_kept else [_INT8, _INT8, schema.TensorType.INT32, _INT8])
    # One scale for all outputs would leave the others no steps.
    divided = [each.name for each in graph.tensors if each.name.endswith(b" times")]
    assert len(divided) == (2 if kind == "bert" else len(divided))


def test_codes_are_those_of_int8(built: Path) -> None:
    def codes(scheme: str) -> list[bytes]:
        interpreter = Interpreter(str(built / "bert" / "out" / f"tflite-{scheme}" / "model.tflite"))
        interpreter.allocate_tensors()
        told = [each for each in interpreter.get_tensor_details() if each["dtype"] == np.int8]
        matrices = [each for each in told if each["name"].endswith("weight") or "weight[" in each["name"]]
        return sorted(interpreter.get_tensor(each["index"]).tobytes() for each in matrices)

    static = {
        each.name: each.values for each in stored_matrices(read_package(built / "bert" / "out" / "tflite-int8-static"))
    }
    dynamic = {each.name: each.values for each in stored_matrices(read_package(built / "bert" / "out" / "tflite-int8"))}
    assert static.keys() == dynamic.keys() and codes("int8-static")
    for name, values in static.items():
        np.testing.assert_array_equal(values, dynamic[name])


def test_a_large_channel_is_divided_by_a_power_of_two() -> None:
    results = torch.ones(2, 20)
    results[0], results[1, 7] = -results[0], 200.0
    found = _range_of(_Seen(torch.tensor([[0.5], [3.0]]), results))
    assert list(found.divisors) == [1.0] * 7 + [128.0] + [1.0] * 12
    assert (found.low, found.high, found.result_low, found.result_high) == (0.0, 3.0, -1.0, 200 / 128)


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-2.0, 0.0), (-0.17, 24.75)])
def test_zero_is_a_step(low: float, high: float) -> None:
    """What is padded or masked is an exact zero."""
    step, zero = span_of(low, high)
    assert -128 <= zero <= 127
    assert abs(step * (-128 - zero) - low) <= step and abs(step * (127 - zero) - high) <= step


def test_ranges_come_back_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text(
        '{"up": {"low": -1.0, "high": 2.0, "result_low": -3.0, "result_high": 4.0, "divisors": [1.0, 2.0]}}'
    )
    assert read_ranges(tmp_path) == {"up": ProductRange(-1.0, 2.0, -3.0, 4.0, [1.0, 2.0])}


def test_what_edgec_has_no_ranges_of_is_refused(
    smollm2: Model, minilm_folder: Path, edgec: Run, tmp_path: Path
) -> None:
    tiny.save_encoder("electra", minilm_folder, tmp_path / "electra")
    for model in (smollm2.folder, tmp_path / "electra"):
        done = edgec("build", model, "-r", "tflite:int8-static", "-o", tmp_path / "out")
        assert_refused(done, 2, "int8-static", "tflite:int8")
