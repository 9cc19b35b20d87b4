"""TensorFlow in: SavedModels and .keras files as LiteRT packages, held to what TensorFlow itself computes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from conftest import Run, assert_refused, figures_of, verification_of

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.formats.tflite import read_tflite, write_tflite
from compiler.inputs.keras import check_keras
from compiler.package import FileRecord, read_package, write_manifest
from compiler.quantize.calibrate.arrays import read_arrays, samples_for
from compiler.tensorflow_function import ENVIRONMENT, FunctionPort

_SCHEMES = ("fp32", "fp16", "int8", "int8-static")


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of make_functions.py, each with inputs and what TensorFlow says of them."""
    folder = tmp_path_factory.mktemp("functions")
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    script = Path(__file__).with_name("make_functions.py")
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def packages(functions: Path, edgec: Run) -> Path:
    """The network in every scheme, built and verified."""
    out = functions / "packages"
    recipes = [word for scheme in _SCHEMES for word in ("-r", f"tflite:{scheme}")]
    calibration = ("--calibration", functions / "pictures.npz")
    done = edgec("build", functions / "network.keras", *recipes, *calibration, "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize(("scheme", "relative"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8", 0.03), ("int8-static", 0.1)])
def test_every_scheme_computes_what_keras_predicts(
    scheme: str, relative: float, functions: Path, packages: Path, edgec: Run
) -> None:
    done = edgec("run", packages / f"tflite-{scheme}", "--inputs", functions / "pictures.npz", "--json")
    assert done.returncode == 0, done.stderr
    wanted, made = np.load(functions / "labels.npy"), np.asarray(json.loads(done.stdout)["output_0"])
    assert made.shape == wanted.shape
    assert np.linalg.norm(made - wanted) <= relative * np.linalg.norm(wanted)
    if scheme != "fp32":
        assert np.abs(made - wanted).max() > 0


def test_words_of_quality_are_those_of_the_figures(packages: Path) -> None:
    assert verification_of(packages / "tflite-fp32").quality == "near-lossless"
    assert figures_of(packages / "tflite-fp32")["min_cosine"] > 0.999999
    assert verification_of(packages / "tflite-int8-static").text == "pictures.npz (as calibrated)"
    assert 1e-4 < figures_of(packages / "tflite-int8-static")["relative_error"] < 0.1


def test_the_stock_runtime_opens_it_by_name(functions: Path, packages: Path) -> None:
    pictures = np.load(functions / "pictures.npz")["picture"]
    for scheme in _SCHEMES:
        run = Interpreter(str(packages / f"tflite-{scheme}" / "model.tflite")).get_signature_runner("main")
        made = run(picture=pictures[:1])["output_0"]
        assert made.shape == (1, 10) and made.dtype == np.float32


def test_a_static_graph_is_in_whole_numbers_between_its_ends(packages: Path) -> None:
    def operators(scheme: str) -> list[str]:
        file = str(packages / f"tflite-{scheme}" / "model.tflite")
        return [each["op_name"] for each in Interpreter(file)._get_ops_details() if each["op_name"] != "DELEGATE"]

    def floats(scheme: str) -> int:
        file = str(packages / f"tflite-{scheme}" / "model.tflite")
        return sum(each["dtype"] == np.float32 for each in Interpreter(file).get_tensor_details())

    assert operators("int8-static") == ["QUANTIZE", *operators("fp32"), "DEQUANTIZE"]
    assert floats("int8-static") == 2 < floats("int8")
    small, large = (
        (packages / f"tflite-{scheme}" / "model.tflite").stat().st_size for scheme in ("int8-static", "fp32")
    )
    assert small < large / 2


def test_a_saved_model_and_the_keras_file_give_the_same_numbers(
    functions: Path, packages: Path, edgec: Run, tmp_path: Path
) -> None:
    done = edgec("build", functions / "network", "-r", "tflite:fp32", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    pictures = functions / "pictures.npz"
    told = [
        json.loads(edgec("run", folder / "tflite-fp32", "--inputs", pictures, "--json").stdout)["output_0"]
        for folder in (packages, tmp_path / "out")
    ]
    assert told[0] == told[1]


def test_two_builds_give_the_same_bytes(functions: Path, packages: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec(
        "build", functions / "network.keras", "-r", "tflite:int8-static", "--calibration", functions / "pictures.npz",
        "-o", tmp_path / "out", EDGEC_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [folder / "tflite-int8-static" / "model.tflite" for folder in (packages, tmp_path / "out")]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1
    assert read_package(files[0].parent).digest == read_package(files[1].parent).digest


def test_several_inputs_and_outputs_of_several_types(functions: Path, edgec: Run, tmp_path: Path) -> None:
    """One input is a batch of rows, the other a number for all of them, so that both rows of a batch are one sample's."""
    recipes = tmp_path / "recipes.toml"
    recipes.write_text('[[recipe]]\nrecipe = "tflite:fp32"\nbatch = 2\n')
    done = edgec("build", functions / "rows", "-f", recipes, "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    package = tmp_path / "out" / "tflite-fp32"
    assert [port.shape for port in read_package(package).lowered.main.inputs] == [(2, 6), ()]
    told = json.loads(edgec("run", package, "--inputs", functions / "rows.npz", "--json").stdout)
    with np.load(functions / "rows-expected.npz") as wanted:
        np.testing.assert_allclose(told["vectors"], wanted["vectors"], rtol=1e-6)
        assert told["above"] == wanted["above"].tolist()


def test_a_package_that_computes_something_else_fails(
    functions: Path, packages: Path, edgec: Run, tmp_path: Path
) -> None:
    """Its largest weights are half as large again, under a manifest that vouches for the file."""
    other = tmp_path / "other"
    shutil.copytree(packages / "tflite-fp32", other)
    file = other / "model.tflite"
    read = read_package(other)
    document = read_tflite(file)
    largest = max(document.buffers, key=lambda each: 0 if each.data is None else len(each.data))
    largest.data = (np.asarray(largest.data, np.uint8).view(np.float32) * np.float32(1.5)).view(np.uint8)
    write_tflite(document, file)
    files = {**read.files, "model.tflite": FileRecord(digest_file(file), file.stat().st_size)}
    write_manifest(replace(read, files=files))
    for beside in ("verification.json", "VERIFICATION.md"):
        (other / beside).unlink()
    assert_refused(edgec("verify", other, "--min-quality", "near-lossless"), 1, "near-lossless", "relative_error")


def test_it_is_measured(packages: Path, edgec: Run, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    done = edgec("bench", packages / "tflite-fp32", packages / "tflite-int8-static", "--rounds", 3, "-o", results)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["function", "function"]
    assert all(line["summary"]["latency_ms_p50"] > 0 for line in lines)


def test_a_kit_needs_the_runtime_alone(functions: Path, packages: Path, edgec: Run, tmp_path: Path) -> None:
    for system in ("python", "android"):
        done = edgec("kit", packages / "tflite-int8", "--for", system, "-o", tmp_path / system)
        assert done.returncode == 0, done.stderr
    command = [sys.executable, "run.py", str(functions / "pictures.npz"), str(tmp_path / "made.npz")]
    subprocess.run(command, cwd=tmp_path / "python", capture_output=True, check=True)
    made, wanted = np.load(tmp_path / "made.npz")["output_0"], np.load(functions / "labels.npy")
    assert np.linalg.norm(made - wanted) < 0.03 * np.linalg.norm(wanted)
    (kotlin,) = (tmp_path / "android").rglob("*.kt")
    assert "fun run(picture: FloatArray)" in kotlin.read_text() and "picture 1 x 24 x 24 x 3" in kotlin.read_text()


_IMPORT_ALL = """
import json, sys
from pathlib import Path
from compiler.errors import UnusableInput
from compiler.inputs.tensorflow import import_function

said = {}
for model in sorted(Path(sys.argv[1]).iterdir()):
    out = Path(sys.argv[2]) / model.name
    out.mkdir()
    try:
        import_function(str(model), str(out))
    except UnusableInput as error:
        said[model.name] = str(error)
print(json.dumps(said))
"""


def _damaged(data: bytes, how: str) -> bytes:
    if how == "noise":
        return b"\xff" * 64 + data[64:-600] + b"\xff" * 600
    return b"" if how == "empty" else data[: len(data) // 2]


@pytest.fixture(scope="module")
def said(functions: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the import says of each model that is not taken, by its name: damaged ones, and one with an operator of its own."""
    refused, out = functions / "refused", tmp_path_factory.mktemp("imported")
    pb, keras = (functions / "network" / "saved_model.pb").read_bytes(), (functions / "network.keras").read_bytes()
    made = {f"{how}-saved": _damaged(pb, how) for how in ("empty", "cut", "noise")}
    made["custom"] = (refused / "nothing" / "saved_model.pb").read_bytes().replace(b"AddV2", b"ZapV2")
    for name, data in made.items():
        (refused / name).mkdir()
        (refused / name / "saved_model.pb").write_bytes(data)
    for how in ("empty", "cut", "noise"):
        (refused / f"{how}.keras").write_bytes(_damaged(keras, how))
    command = [sys.executable, "-c", _IMPORT_ALL, str(refused), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, cwd=out, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (out / "written-by-a-model").exists()
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lambda.keras", "code of Python"),
        ("free", r"input x of free .* fixed sizes"),
        ("text", "input x of text is of string"),
        ("python", "EagerPyFunc.* reaches beyond tensors"),
        ("writing", "WriteFile.* reaches beyond tensors"),
        ("nothing", "has no weights"),
        ("custom", r"custom operator 'ZapV2'.* loads no code"),
        ("rows-by-value", "output y of rows-by-value has as many rows as the numbers"),
        ("restoring", "RestoreV2.* reaches beyond tensors"),
        ("random", "RandomStandardNormal.* draws random numbers"),
        *((f"{how}-saved", "Save") for how in ("empty", "cut", "noise")),
        *((f"{how}.keras", "Save the model again") for how in ("empty", "cut", "noise")),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(model: str, words: str, said: dict[str, str]) -> None:
    assert re.search(words, said[model], re.DOTALL), said[model]


def test_an_operator_that_litert_lacks_is_named_with_its_place(functions: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("build", functions / "inverse", "-r", "tflite:fp32", "-o", tmp_path / "out")
    assert_refused(done, 2, "LiteRT has no operator for MatrixInverse of inverse", "the first is")
    assert not (tmp_path / "out").exists()


def _rewritten(
    source: Path, target: Path, change: dict[str, bytes | None], config: tuple[str, str] | None = None
) -> Path:
    """A .keras file with members added, replaced or left out, and a word of its config in the place of another."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= {name: data for name, data in change.items() if data is not None}
    if config is not None:
        text = members["config.json"].decode()
        assert config[0] in text
        members["config.json"] = text.replace(*config).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            if name not in change or change[name] is not None:
                archive.writestr(name, data)
    return target


def test_what_a_keras_file_may_name(functions: Path, tmp_path: Path) -> None:
    network, target = functions / "network.keras", tmp_path / "changed.keras"
    with pytest.raises(UnusableInput, match=r"class 'Conv2D' of 'os\.path'"):
        check_keras(
            _rewritten(
                network,
                target,
                {},
                ('"module": "keras.layers", "class_name": "Conv2D"', '"module": "os.path", "class_name": "Conv2D"'),
            )
        )
    with pytest.raises(UnusableInput, match=r"lacks config\.json or"):
        check_keras(_rewritten(network, target, {"config.json": None}))
    with pytest.raises(UnusableInput, match=r"holds 'code\.py'"):
        check_keras(_rewritten(network, target, {"code.py": b"print()"}))
    with pytest.raises(UnusableInput, match=r"model\.weights\.h5 of changed\.keras is damaged"):
        check_keras(_rewritten(network, target, {"model.weights.h5": b"none"}))
    check_keras(network)


def test_weights_in_other_files_are_refused(functions: Path, tmp_path: Path) -> None:
    import h5py

    weights = tmp_path / "model.weights.h5"
    with h5py.File(weights, "w") as document:
        document["away"] = h5py.ExternalLink("/etc/hostname", "/x")
    with pytest.raises(UnusableInput, match="'away', which may lead to other files"):
        check_keras(
            _rewritten(
                functions / "network.keras", tmp_path / "linked.keras", {"model.weights.h5": weights.read_bytes()}
            )
        )


_PICTURE = FunctionPort("picture", "float32", ("batch", 2, 2), "picture:0")
_COUNT = FunctionPort("count", "int32", ("batch",), "count:0")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "has no array picture"),
        ({"picture": np.zeros((3, 2, 2)), "count": np.zeros(3), "more": np.zeros(3)}, "array 'more'"),
        ({"picture": np.zeros((3, 2)), "count": np.zeros(3)}, r"shape \(3, 2\); it must be \(samples, 2, 2\)"),
        ({"picture": np.zeros((0, 2, 2)), "count": np.zeros(0)}, r"shape \(0, 2, 2\)"),
        ({"picture": np.full((3, 2, 2), np.nan), "count": np.zeros(3)}, "not finite"),
        ({"picture": np.zeros((3, 2, 2)), "count": np.full(3, 0.5)}, "the input takes int32"),
        ({"picture": np.zeros((3, 2, 2)), "count": np.zeros(4)}, "different numbers of samples"),
        ({"picture": np.zeros((3, 2, 2), "S3"), "count": np.zeros(3)}, "the input takes float32"),
    ],
)
def test_arrays_are_held_to_the_inputs(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(UnusableInput, match=words):
        samples_for((_PICTURE, _COUNT), arrays, "given.npz")


def test_no_object_of_python_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", picture=np.asarray([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("picture")
    for name in ("objects", "text"):
        with pytest.raises(UnusableInput, match=f"{name}.npz cannot be read: it is no .npz file of numbers"):
            read_arrays(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tflite:int8-static", ("--calibration FILE.npz", "picture")),
        ("tflite:int4-gptq-g32", ("a TensorFlow function", "fp32, fp16, int8")),
        ("onnx:fp32", ("not function",)),
    ],
)
def test_recipes_that_do_not_suit_say_what_does(
    recipe: str, words: tuple[str, ...], functions: Path, edgec: Run, tmp_path: Path
) -> None:
    assert_refused(edgec("build", functions / "network", "-r", recipe, "-o", tmp_path / "out"), 2, *words)


def test_a_function_has_no_task_of_another_kind(functions: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("build", functions / "network", "-r", "tflite:fp32", "-o", tmp_path / "out")
    assert_refused(edgec(*words, "--task", "text-classification"), 2, "has no task text-classification", "--task out")


def test_options_that_mean_nothing_are_refused(
    functions: Path, packages: Path, edgec: Run, minilm_folder: Path
) -> None:
    package = packages / "tflite-fp32"
    assert_refused(edgec("run", package), 2, "--inputs FILE.npz", "picture (samples, 24, 24, 3)")
    assert_refused(edgec("run", package, "-p", "text"), 2, "function of arrays")
    told = edgec("verify", package, "--inputs", functions / "rows.npz")
    assert_refused(told, 2, "array 'rows'", "picture")
    checked = edgec("verify", package, "--inputs", functions / "pictures.npz", "--json")
    assert json.loads(checked.stdout)[0]["text"].startswith("pictures.npz (SHA-256 ")
