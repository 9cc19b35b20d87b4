"""The same integers in every container: each is built, read back by its published layout, and compared row by row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import tiny
from conftest import Run, assert_refused
from numpy.typing import NDArray
from safetensors.numpy import load_file

from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import read_package
from compiler.quantize.options import QuantizationOptions, with_options
from compiler.recipe import parse_recipe
from runtimes.coreml.mil_program import BlobValue, read_blob, read_mil
from runtimes.stored.onnx import stored_matrices as onnx_matrices
from runtimes.stored.tflite import stored_matrices
from targets.coreml import target as coreml
from targets.registry import TARGET_NAMES, load_target

_GROUP = 32
_CALIBRATION = ("--calibration-samples", "8", "--calibration-tokens", "64")


@dataclass(frozen=True)
class _Built:
    """Packages of one model by one scheme, and the matrices of its GPTQ checkpoint by name."""

    out: Path
    scheme: str
    expected: dict[str, NDArray[np.float32]]

    def folder(self, target: str) -> Path:
        return self.out / f"{target}-{self.scheme}"


@pytest.fixture(scope="module", params=["", "-asym"], ids=["symmetric", "asymmetric"])
def built(
    request: pytest.FixtureRequest, smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory
) -> _Built:
    out = tmp_path_factory.mktemp("carriers")
    tiny.save_decoder("llama", smollm2.folder, out / "model")
    scheme = f"int4-gptq-g32{request.param}"
    recipes = [word for target in ("gptq", "gguf", "onnx") for word in ("-r", f"{target}:{scheme}")]
    done = edgec_here("build", out / "model", *recipes, *_CALIBRATION, "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return _Built(out, scheme, _of_checkpoint(out / f"gptq-{scheme}"))


def _of_checkpoint(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Dequantize by the published layout: eight codes a word along the inputs; v1 stores zero points less one."""
    arrays = load_file(folder / "model.safetensors")
    form = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (form["bits"], form["group_size"], form["quant_method"]) == (4, _GROUP, "gptq")
    shifts = np.arange(8, dtype=np.uint32) * 4
    found = {}
    for name in (key.removesuffix(".qweight") for key in arrays if key.endswith(".qweight")):
        words, zeros = arrays[f"{name}.qweight"].view(np.uint32), arrays[f"{name}.qzeros"].view(np.uint32)
        codes = (words[:, None, :] >> shifts[None, :, None] & 15).reshape(-1, words.shape[1])
        points = (zeros[:, :, None] >> shifts & 15).reshape(len(zeros), -1) + (form["checkpoint_format"] == "gptq")
        group = arrays[f"{name}.g_idx"]
        scales = arrays[f"{name}.scales"].astype(np.float32)
        found[name] = ((codes.astype(np.float32) - points[group].astype(np.float32)) * scales[group]).T
    assert found
    return found


def _of_gguf(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The matrices of the blocks, dequantized by the official reader."""
    reader = gguf.GGUFReader(next(folder.glob("*.gguf")))
    blocks = [tensor for tensor in reader.tensors if len(tensor.shape) == 2 and tensor.name.startswith("blk.")]
    assert {tensor.tensor_type.name for tensor in blocks} <= {"Q4_0", "Q4_1"}
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in blocks}


def _of_onnx(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The second factors of the blocks' MatMulNBits, dequantized as ContribOperators.md defines them."""
    model = onnx.load(str(folder / "model.onnx"))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits" or "layers" not in node.input[1]:
            continue
        has: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
        assert (has["bits"], has["block_size"]) == (4, _GROUP)
        packed, scales = arrays[node.input[1]], arrays[node.input[2]].reshape(has["N"], -1, 1)
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(has["N"], -1, _GROUP).astype(np.float32)
        points: Any = 8.0
        if len(node.input) > 3:
            zeros = arrays[node.input[3]].reshape(has["N"], -1)
            points = np.stack([zeros & 15, zeros >> 4], -1).reshape(has["N"], -1)[:, : codes.shape[1], None]
        found[node.input[1]] = ((codes - points) * scales).reshape(has["N"], -1)
    return found


def _rows(matrices: dict[str, NDArray[np.float32]]) -> Counter[bytes]:
    """All rows, since converters fuse and reorder them; -0 counts as 0."""
    return Counter(row.tobytes() for matrix in matrices.values() for row in matrix.astype(np.float32) + 0.0)


def test_onnx_has_every_row_of_the_checkpoint_to_the_bit(built: _Built) -> None:
    assert _rows(_of_onnx(built.folder("onnx"))) == _rows(built.expected)


def test_gguf_has_every_row_of_the_checkpoint_to_the_bit_or_within_the_rounding_of_its_minimum(built: _Built) -> None:
    found = _of_gguf(built.folder("gguf"))
    if not built.scheme.endswith("asym"):
        assert _rows(found) == _rows(built.expected)
        return
    names = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for layer in (0, 1):
        for short, long in names.items():
            expected = built.expected[f"model.layers.{layer}.{long}"]
            difference = np.abs(found[f"blk.{layer}.{short}.weight"] - expected)
            # d * zero_point is at most the range of a group, and float16 rounds it by a share of 2**-11.
            groups = expected.reshape(len(expected), -1, _GROUP)
            bound = 2.0**-11 * 2 * (np.ptp(groups, 2) + np.abs(groups).max(2))
            assert (difference.reshape(groups.shape) <= bound[..., None] + 1e-7).all(), long


def test_codes_of_a_checkpoint_are_taken_over_as_they_are(built: _Built, edgec_here: Run, tmp_path: Path) -> None:
    done = edgec_here("build", built.folder("gptq"), "-r", f"gguf:{built.scheme}", "-o", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = _of_gguf(built.folder("gguf")), _of_gguf(tmp_path / f"gguf-{built.scheme}")
    assert first.keys() == again.keys()
    for name, matrix in first.items():
        assert np.array_equal(matrix, again[name]), name


def test_another_grid_than_that_of_a_checkpoint_is_refused(built: _Built, edgec: Run, tmp_path: Path) -> None:
    done = edgec("build", built.folder("gptq"), "-r", "gguf:int8-rtn-g32", "-o", tmp_path / "never")
    assert_refused(done, 2, "codes of its own", built.scheme)
    # Core ML's own words for 8 bits in each row ask for another grid as well.
    for recipe in ("coreml:int8", "coreml:lut4"):
        reason = coreml.refuse(open_model(str(built.folder("gptq"))), parse_recipe(recipe, TARGET_NAMES))
        assert reason is not None and "codes of its own" in reason
    assert not (tmp_path / "never").exists()


def test_genais_builder_keeps_symmetric_codes_and_reads_zero_points_of_v2_as_those_of_v1(
    built: _Built, tmp_path: Path
) -> None:
    """So edgec carries codes into ONNX itself; the README tells of it."""
    command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    folders = ["-i", str(built.folder("gptq")), "-o", str(tmp_path / "onnx"), "-c", str(tmp_path / "hf")]
    subprocess.run([*command, *folders], check=True, capture_output=True)
    found = _of_onnx(tmp_path / "onnx")
    expected = {name: each for name, each in built.expected.items() if "layers" in name}
    if not built.scheme.endswith("asym"):
        assert _rows(found) == _rows(expected)
        return
    ours = expected["model.layers.0.self_attn.o_proj"]
    theirs = next(each for name, each in found.items() if "layers.0.attn.o_proj" in name)
    scales = load_file(built.folder("gptq") / "model.safetensors")["model.layers.0.self_attn.o_proj.scales"]
    step = np.repeat(scales.T.astype(np.float32), _GROUP, 1)
    np.testing.assert_allclose(ours - theirs, step, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def portable(smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> _Built:
    out, scheme = tmp_path_factory.mktemp("portable"), "int4-gptq-g32"
    tiny.save_decoder("llama", smollm2.folder, out / "model")
    recipes = [word for target in ("gptq", "gguf", "onnx", "coreml", "tflite") for word in ("-r", f"{target}:{scheme}")]
    done = edgec_here("build", out / "model", *recipes, *_CALIBRATION, "--portable-scales", "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return _Built(out, scheme, _of_checkpoint(out / f"gptq-{scheme}"))


def _of_coreml(folder: Path) -> Counter[bytes]:
    """Rows of the matrices of 4 bits."""
    rows: Counter[bytes] = Counter()
    for operation in next(iter(read_mil(folder / "model.mlpackage").functions.values())).operations:
        if operation.kind == "constexpr_blockwise_shift_scale":
            data, scale = (operation.arguments[name][0] for name in ("data", "scale"))
            assert isinstance(data, BlobValue) and isinstance(scale, BlobValue)
            codes, scales = (read_blob(each).astype(np.float32).squeeze() for each in (data, scale))
            if np.abs(codes).max() <= 8:
                rows += _rows({"": codes * np.repeat(scales, codes.shape[1] // scales.shape[1], 1)})
    return rows


def test_portable_scales_and_codes_are_the_same_in_every_target_to_the_bit(portable: _Built) -> None:
    expected = _rows(portable.expected)
    assert _rows(_of_gguf(portable.folder("gguf"))) == expected
    assert _rows(_of_onnx(portable.folder("onnx"))) == expected
    assert _of_coreml(portable.folder("coreml")) == expected
    stored = list(stored_matrices(read_package(portable.folder("tflite"))))
    assert _rows({each.name: each.values for each in stored if "layers" in each.name}) == expected


def test_so_are_tables_in_8_bits(portable: _Built) -> None:
    """GGUF and ONNX have blocks, which all get the scale of the row."""
    reader = gguf.GGUFReader(next(portable.folder("gguf").glob("*.gguf")))
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    expected = gguf.dequantize(table.data, table.tensor_type)
    of_file = {target: read_package(portable.folder(target)) for target in ("onnx", "tflite")}
    for read, target in ((onnx_matrices, "onnx"), (stored_matrices, "tflite")):
        found = [each.values for each in read(of_file[target]) if each.looked_up]
        assert len(found) == 1 and np.array_equal(found[0], expected), target


def test_targets_with_portable_scales_share_one_quantization(portable: _Built) -> None:
    model = open_model(str(portable.out / "model"))
    recipes = [parse_recipe(f"{name}:{portable.scheme}", TARGET_NAMES) for name in ("gguf", "onnx", "coreml", "tflite")]
    said = QuantizationOptions(portable_scales=True)
    planned = [load_target(each.target).plan(model, with_options(each, said)).inputs["codes"] for each in recipes]
    assert all(stage == planned[0] for stage in planned)
    assert planned[0] != load_target("gguf").plan(model, recipes[0]).inputs["codes"]
    assert planned[0] == load_target("tflite").plan(model, recipes[3]).inputs["codes"]


@pytest.mark.parametrize("scheme", ["gguf:int4-gptq-g32-asym", "gguf:mixed-gptq-g32", "coreml:lut4"])
def test_scales_are_not_portable_where_a_target_has_no_such_codes(
    scheme: str, portable: _Built, edgec: Run, tmp_path: Path
) -> None:
    budget = ("--target-bpw", "5") if "mixed" in scheme else ()
    done = edgec("build", portable.out / "model", "-r", scheme, *budget, "--portable-scales", "-o", tmp_path / "never")
    assert_refused(done, 2, "not for every target", "int4-gptq-g32")
