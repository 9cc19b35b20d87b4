"""The accounts of Android's GPU and NNAPI: what LiteRT's source says of an operator is what is said of it in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from ai_edge_litert import schema_py_generated as schema
from conftest import Run, assert_refused

from compiler.formats.tflite import parse_tflite, tflite_pieces
from compiler.package import Placement
from targets.tflite import ops
from targets.tflite.delegates import predict_placement
from targets.tflite.graph import FREE, Document, Function, Value

_BYTES = {schema.TensorType.FLOAT32: 128, schema.TensorType.INT8: 32, schema.TensorType.INT4: 16}
_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType
Make = Callable[[Function], Value]


def _place(make: Make, engine: str) -> Placement:
    """The account of a file with one function, read back from its bytes."""
    document = Document()
    function = Function(document, "main")
    function.finish({"result": make(function)})
    return predict_placement(parse_tflite(b"".join(tflite_pieces(document.model)), "test"), engine)


def _floats(function: Function, *shape: int) -> Value:
    return function.input("x", shape, np.float32)


def _weights(function: Function, kind: int, quantization: object = None) -> Value:
    return function.stored("w", (4, 8), kind, lambda: np.zeros(_BYTES[kind], np.uint8), quantization)


def _by_row() -> schema.QuantizationParametersT:
    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint, made.quantizedDimension = np.ones(4, np.float32), np.zeros(4, np.int64), 0
    return made


def _product(kind: int, quantization: object = None, *, version: int = 5) -> Make:
    def make(function: Function) -> Value:
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        inputs = (_floats(function, 1, 3, 8), _weights(function, kind, quantization))
        chosen = (schema.BuiltinOptions.FullyConnectedOptions, options)
        return function.emit(_OPERATOR.FULLY_CONNECTED, inputs, (1, 3, 4), chosen, version=version)

    return make


def _sum(*shape: int) -> Make:
    return lambda function: ops.add(function, _floats(function, *shape), function.scalar(1.0))


def _look_up(kind: int) -> Make:
    return lambda function: ops.look_up(function, function.input("ids", (3,), np.int32), _weights(function, kind))


def _matrix_product(*, transposed: bool) -> Make:
    def make(function: Function) -> Value:
        x, y = _floats(function, 1, 2, 4, 4), function.input("y", (1, 2, 4, 4), np.float32)
        return ops.matrix_product(function, x, y, transposed=transposed)

    return make


def _gelu(function: Function) -> Value:
    return ops.gelu(function, _floats(function, 1, 4), approximate=False)


def _of_integers(function: Function) -> Value:
    return ops.reshape(function, function.input("ids", (1, 4), np.int32), (4,))


def _sum_and_narrow_product(function: Function) -> Value:
    x = ops.add(function, _floats(function, 1, 3, 8), function.scalar(1.0))
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    chosen = (schema.BuiltinOptions.FullyConnectedOptions, options)
    inputs = (x, _weights(function, _TYPE.INT4, _by_row()))
    return function.emit(_OPERATOR.FULLY_CONNECTED, inputs, (1, 3, 4), chosen, version=5)


def _slice(*shape: int) -> Make:
    def make(function: Function) -> Value:
        return ops.part(function, _floats(function, *shape), [0] * len(shape), [1] * len(shape))

    return make


def _running_sum(function: Function) -> Value:
    return ops.places_along(function, _floats(function, 1, 1, 2, 4))


# (what is made, leaves, is unsure)
_CASES: dict[str, list[tuple[Make, list[str], list[str]]]] = {
    "gpu": [
        (_sum(1, 2, 3, 4), [], []),
        (_sum(1, 1, 2, 3, 4), ["add"], []),
        (_sum(1, FREE), ["add"], []),
        (_gelu, [], []),
        (_product(_TYPE.FLOAT32), [], []),
        (_product(_TYPE.INT8, _by_row(), version=9), [], []),
        (_product(_TYPE.INT8, _by_row(), version=12), [], ["fully_connected"]),
        (_product(_TYPE.INT4, _by_row(), version=9), [], ["fully_connected"]),
        (_matrix_product(transposed=False), [], []),
        (_matrix_product(transposed=True), [], ["batch_matmul"]),
        (_look_up(_TYPE.FLOAT32), [], ["embedding_lookup"]),
        (_of_integers, [], ["reshape"]),
        (_slice(1, 2), [], ["slice"]),
        (_slice(1, 2, 3), [], []),
    ],
    "nnapi": [
        (_sum(1, 2, 3, 4), [], []),
        (_sum(1, 1, 2, 3, 4), ["add"], []),
        (_sum(1, FREE), ["add"], []),
        (_gelu, ["gelu"], []),
        (_product(_TYPE.FLOAT32), [], []),
        (_product(_TYPE.INT8, _by_row(), version=9), ["fully_connected"], []),
        (_product(_TYPE.INT8, _by_row()), ["fully_connected"], []),
        (_product(_TYPE.INT4, _by_row()), ["fully_connected"], []),
        (_matrix_product(transposed=True), [], []),
        (_look_up(_TYPE.FLOAT32), [], []),
        (_look_up(_TYPE.INT8), ["embedding_lookup"], []),
        (_of_integers, [], []),
        (_slice(1, 2), [], []),
        (_running_sum, ["cumsum"], []),
        # A product that is taken, and then fails, undoes all.
        (_sum_and_narrow_product, ["add", "fully_connected"], []),
    ],
}


@pytest.mark.parametrize(
    ("engine", "number"), [(engine, number) for engine, cases in _CASES.items() for number in range(len(cases))]
)
def test_an_operator_leaves_or_stays_as_the_delegates_source_has_it(engine: str, number: int) -> None:
    make, leaves, unsure = _CASES[engine][number]
    found = _place(make, engine)
    assert found.engine == engine and found.source == "predicted"
    assert [each.operator for each in found.unsupported] == leaves
    assert [each.operator for each in found.unsure] == unsure
    assert all(each.reason for each in (*found.unsupported, *found.unsure))


@pytest.fixture(scope="module")
def encoder(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("delegates")
    model = tiny.save_encoder("bert", minilm_folder, root / "model")
    done = edgec_here(
        "build", model, "-r", "tflite:fp32", "-r", "tflite:int8", "--sequence-length", 16, "-o", root / "out"
    )
    assert done.returncode == 0, done.stderr
    return root


def test_each_engine_has_its_account(encoder: Path, edgec_here: Run) -> None:
    shares = {}
    for engine in ("xnnpack", "gpu", "nnapi"):
        done = edgec_here("placement", encoder / "out" / "tflite-fp32", "--engine", engine, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["engine"] == engine
        shares[engine] = told["share"]
    assert shares["gpu"] == 1.0 and 0.9 < shares["nnapi"] < 1.0
    told = json.loads(edgec_here("placement", encoder / "out" / "tflite-fp32", "--json").stdout)
    assert told["engine"] == "xnnpack"
    said = edgec_here("placement", encoder / "out" / "tflite-int8", "--engine", "nnapi").stdout
    assert "fully_connected" in said and "version 9, at most 5" in said


def test_a_build_can_require_a_share_of_each(encoder: Path, edgec_here: Run, tmp_path: Path) -> None:
    model = encoder / "model"
    strict = ("-r", "tflite:int8", "--require", "gpu>=0.95", "--require", "nnapi>=0.95", "-o", tmp_path / "strict")
    assert_refused(edgec_here("build", model, *strict), 1, "operators stay on nnapi", "embedding_lookup", "version 3")
    assert not (tmp_path / "strict" / "tflite-int8").exists()
    kind = ("-r", "tflite:fp32", "--require", "gpu>=0.95", "--require", "xnnpack>=0.5", "-o", tmp_path / "kind")
    assert edgec_here("build", model, *kind).returncode == 0
    package = tmp_path / "kind" / "tflite-fp32"
    assert_refused(edgec_here("placement", package, "--require", "nnapi>=0.999"), 1, "stay on nnapi", "gelu")
    assert_refused(edgec_here("placement", package, "--engine", "ane"), 2, "no account of ane", "xnnpack, gpu, nnapi")
