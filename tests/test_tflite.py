"""LiteRT: every encoder family in every scheme, our codes to the bit in the file, and what the format and its kernels ask."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import flatbuffers
import numpy as np
import pytest
import tiny
import torch
import transformers
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from conftest import Run, assert_refused, figures_of, verification_of
from safetensors.numpy import load_file, save_file

from compiler.errors import UnusableInput
from compiler.formats.codes import list_quantized, read_quantized
from compiler.inputs.open import open_model
from compiler.package import read_package
from compiler.quantization import Quantization
from compiler.quantize.stage import quantize
from compiler.scheme import find_scheme
from runtimes.registry import open_session
from runtimes.stored.tflite import stored_matrices
from targets.tflite.codes import carry

_KINDS = ("bert", "bert-classify", "bert-tokens", "bert-answers", "bert-mask", "distilbert", "roberta", "vit")
# Families that LiteRT's own converter takes.
_CONVERTED = tiny.CONVERTED_ENCODERS
# Of one family of text and one of pictures every scheme, of the others one of each form.
_WHOLE = ("bert", "vit")
_SOME = ("int8", "int4-gptq-g64")
_OF_CONVERTER = ("fp32", "fp16", "int8", "int4-gptq-g64")
# Of one family that is converted every scheme, of the others one.
_WHOLE_OF_CONVERTER = "electra"
_SCHEMES = (*_OF_CONVERTER, "int8-gptq-pc", "int8-gptq-g32", "int4-rtn-g32")
_LEAST_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.99, "int8-gptq-pc": 0.99, "int8-gptq-g32": 0.99}
_LENGTHS = (64, 128, 256)


# The table of words is the head as well.
_OF_TIED = ("fp16", "int8", "int8-gptq-g32", "int4-gptq-g64")


def _schemes_of(kind: str) -> tuple[str, ...]:
    if kind == "bert-mask":
        return _OF_TIED
    if kind in _CONVERTED:
        return _OF_CONVERTER if kind == _WHOLE_OF_CONVERTER else ("fp32",)
    return _SCHEMES if kind in _WHOLE else _SOME


@pytest.fixture(scope="module")
def made(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its packages for each family."""
    folder = tmp_path_factory.mktemp("tflite")
    for kind in (*_KINDS, *_CONVERTED):
        model = tiny.save_encoder(kind, minilm_folder, folder / kind / "model")
        recipes = [part for scheme in _schemes_of(kind) for part in ("-r", f"tflite:{scheme}")]
        options = ("--sequence-length", 64, "--calibration-samples", 8)
        done = edgec_here("build", model, *recipes, *options, "-o", folder / kind / "out", "--verify")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("kind", (*_KINDS, *_CONVERTED))
def test_every_family_is_lowered_right_in_every_scheme(made: Path, kind: str) -> None:
    packages = sorted((made / kind / "out").iterdir())
    assert len(packages) == len(_schemes_of(kind))
    for package in packages:
        assert verification_of(package).lowered_right, package
        least = _LEAST_COSINE.get(package.name.removeprefix("tflite-"))
        assert least is None or figures_of(package)["min_cosine"] > least, package


def _stored(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(codes, scales) of the quantized matrices by LiteRT's own reader, which gives codes of 4 bits as int8."""
    interpreter = Interpreter(str(folder / "model.tflite"))
    interpreter.allocate_tensors()
    found = []
    for told in interpreter.get_tensor_details():
        if told["dtype"] == np.int8 and len(told["shape"]) == 2:
            found.append((interpreter.get_tensor(told["index"]), told["quantization_parameters"]["scales"]))
    return found


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 32), (4, 64)])
def test_the_file_holds_our_codes_and_scales_to_the_bit(made: Path, bits: int, group: int, tmp_path: Path) -> None:
    """Of a graph that was converted; of one of our own the next test does."""
    model = open_model(str(made / "electra" / "model"))
    codes, base = tmp_path / "codes", made / "electra" / "out" / "tflite-fp32"
    codes.mkdir()
    quantize(
        str(model.folder), str(codes), model.task, "rtn", bits, group, True, Quantization().full(),
        positive_scales=True, tables_by_row=True,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    carry(base / "model.tflite", model.folder, codes, tmp_path / "out" / "model.tflite")
    wanted = [read_quantized(entry) for entry in list_quantized(codes).values()]
    for tensor in wanted:
        assert (tensor.scales > 0).all()
    read = _stored(tmp_path / "out")
    assert len(read) == len(wanted)
    for tensor in wanted:
        signed = (tensor.codes.astype(np.int16) - 2 ** (tensor.bits - 1)).astype(np.int8)
        same = [scales for found, scales in read if np.array_equal(found, signed)]
        assert same and np.array_equal(same[0].astype(np.float32).ravel(), tensor.scales.astype(np.float32).ravel())
        # XNNPACK multiplies by bfloat16: nothing may be lost.
        assert not (tensor.scales.astype(np.float32).view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("scheme", ["int8-rtn-pc", "int8-rtn-g32", "int4-rtn-g32"])
def test_a_file_of_our_own_holds_our_codes_and_scales_to_the_bit(
    made: Path, scheme: str, edgec_here: Run, tmp_path: Path
) -> None:
    """Verify's reader of the file gives codes times scales, exactly."""
    model, codes = open_model(str(made / "bert" / "model")), tmp_path / "codes"
    codes.mkdir()
    found = find_scheme(scheme)
    assert found is not None
    quantize(
        str(model.folder), str(codes), model.task, "rtn", found.code_bits, found.block or 0, True,
        Quantization().full(), positive_scales=True, tables_by_row=True,
    )  # fmt: skip
    done = edgec_here("build", model.folder, "-r", f"tflite:{scheme}", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    stored = {each.name: each for each in stored_matrices(read_package(tmp_path / "out" / f"tflite-{scheme}"))}
    entries = list_quantized(codes)
    assert len(entries) == 13 and {name for name, each in stored.items() if each.quantized} == set(entries)
    for name, entry in entries.items():
        tensor = read_quantized(entry)
        values = (tensor.codes.astype(np.float32) - 2 ** (tensor.bits - 1)) * np.repeat(
            tensor.scales.astype(np.float32), tensor.group_size, 1
        )
        assert np.array_equal(stored[name].values, values)


def test_a_file_of_several_lengths_has_its_weights_once(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    model = made / "bert-answers" / "model"
    done = edgec_here(
        "build", model, "-r", "tflite:int8+lengths", "-r", "tflite:int8", "-o", tmp_path / "out", "--verify"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    package = read_package(tmp_path / "out" / "tflite-int8-lengths")
    assert package.lowered.shapes.sequence_lengths == _LENGTHS
    assert verification_of(package.folder).lowered_right
    one = (tmp_path / "out" / "tflite-int8" / "model.tflite").stat().st_size
    operators = 60_000
    assert package.artifact.stat().st_size < one + 2 * operators
    interpreter = Interpreter(str(package.artifact))
    assert set(interpreter.get_signature_list()) == {f"main_{length}" for length in _LENGTHS}
    network = transformers.AutoModelForQuestionAnswering.from_pretrained(model)
    with closing(open_session(package, 2)) as session:
        for tokens in (3, 64, 65, 200):
            ids = np.random.default_rng(tokens).integers(5, 1000, (1, tokens))
            given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            found = session.run(given)
            with torch.inference_mode():
                wanted = network(**{name: torch.from_numpy(each) for name, each in given.items()})
            assert found["start_logits"].shape == (1, tokens)
            assert np.corrcoef(found["start_logits"], wanted.start_logits.numpy())[0, 1] > 0.999
        with pytest.raises(UnusableInput, match="300 tokens is longer than any that the package takes: 64, 128, 256"):
            session.run({name: np.ones((1, 300), np.int64) for name in session.input_names})


@pytest.mark.parametrize(
    ("kind", "positions", "lengths"), [("roberta", 300, (64, 128, 256, 298)), ("distilbert", 100, (64, 100))]
)
def test_the_last_of_several_lengths_is_all_that_the_model_takes(
    kind: str, positions: int, lengths: tuple[int, ...], minilm_folder: Path, edgec_here: Run, tmp_path: Path
) -> None:
    config, model, sizes = tiny._ENCODERS[kind]
    with patch.dict(tiny._ENCODERS, {"short": (config, model, {**sizes, "max_position_embeddings": positions})}):
        folder = tiny.save_encoder("short", minilm_folder, tmp_path / "model")
    done = edgec_here("build", folder, "-r", "tflite:fp32+lengths", "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    package = read_package(tmp_path / "out" / "tflite-fp32-lengths")
    assert package.lowered.shapes.sequence_lengths == lengths
    assert figures_of(package.folder)["min_cosine"] > 0.99999


@pytest.mark.parametrize("kind", ["vit", "bert-answers"])
def test_several_inputs_at_once_are_those_one_by_one(kind: str, made: Path, edgec_here: Run, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes.toml"
    recipes.write_text('[[recipe]]\nrecipe = "tflite:fp32"\nbatch = 3\nsequence_length = 32\n')
    done = edgec_here("build", made / kind / "model", "-f", recipes, "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    package = read_package(tmp_path / "out" / "tflite-fp32")
    assert all(port.shape[0] == 3 for port in (*package.lowered.main.inputs, *package.lowered.main.outputs))
    assert figures_of(package.folder)["min_cosine"] > 0.99999


def test_whole_groups_of_128_are_not_cut(minilm_folder: Path, edgec_here: Run, tmp_path: Path) -> None:
    """As of BERT-tiny, whose rows are one group."""
    config, model, sizes = tiny._ENCODERS["bert"]
    wider = {**sizes, "hidden_size": 128, "intermediate_size": 512}
    with patch.dict(tiny._ENCODERS, {"wider": (config, model, wider)}):
        folder = tiny.save_encoder("wider", minilm_folder, tmp_path / "model")
    done = edgec_here("build", folder, "-r", "tflite:int4-rtn-g128", "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verification_of(tmp_path / "out" / "tflite-int4-rtn-g128").lowered_right


@pytest.mark.parametrize(
    ("kind", "recipe", "words"),
    [
        ("vit", "tflite:fp32+lengths", ("text encoders",)),
        ("electra", "tflite:fp32+lengths", ("re-authors", "electra")),
        ("electra", "tflite:int8-gptq-g32", ("products of their own", "tflite:int8-gptq-pc")),
    ],
)
def test_what_only_our_own_networks_have_is_refused_for_others(
    made: Path, kind: str, recipe: str, words: tuple[str, ...], edgec_here: Run, tmp_path: Path
) -> None:
    done = edgec_here("build", made / kind / "model", "-r", recipe, "-o", tmp_path / "out")
    assert_refused(done, 2, *words)


def test_an_operator_that_litert_lacks_is_named_with_its_module(
    minilm_folder: Path, edgec_here: Run, tmp_path: Path
) -> None:
    model = tiny.save_encoder("fnet", minilm_folder, tmp_path / "fnet")
    done = edgec_here("build", model, "-r", "tflite:fp32", "--sequence-length", 32, "-o", tmp_path / "out")
    assert_refused(done, 2, "litert_torch cannot convert fnet", "operator aten.", "encoder.layer.0.fourier.self")
    assert "modeling_" not in done.stderr
    done = edgec_here("build", model, "-r", "neo:fp32", "--sequence-length", 32, "-o", tmp_path / "out")
    assert_refused(done, 2, "TVM cannot compile fnet", "operator DFT")


def test_weights_lie_where_kernels_read_them(made: Path) -> None:
    """The schema asks for data at multiples of 16 bytes."""
    data = (made / "bert" / "out" / "tflite-int8" / "model.tflite").read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    checked = 0
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if not buffer.DataIsNone():
            table = buffer._tab
            start = table.Vector(flatbuffers.number_types.UOffsetTFlags.py_type(table.Offset(4)))
            assert start % 16 == 0
            checked += 1
    assert checked > 10


def test_two_builds_give_the_same_bytes(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        options = ("--sequence-length", 32, "-o", tmp_path / name)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("EDGEC_CACHE", str(tmp_path / f"cache-{name}"))
            done = edgec_here("build", made / "distilbert" / "model", "-r", "tflite:int8", *options)
        assert done.returncode == 0, done.stderr
        digests.add(hashlib.sha256((tmp_path / name / "tflite-int8" / "model.tflite").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_picture_goes_through_as_torch_has_it(made: Path) -> None:
    package = read_package(made / "vit" / "out" / "tflite-int8")
    assert package.lowered.main.inputs[0].shape == (1, 3, 32, 32)
    assert package.lowered.main.inputs[0].dtype == "float32"
    assert any(matrix.quantized for matrix in stored_matrices(package))


def test_a_value_beyond_float16_is_refused_by_name(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (made / "bert" / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.0.intermediate.dense.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    done = edgec_here("build", folder, "-r", "tflite:fp16", "--sequence-length", 64, "-o", tmp_path / "out")
    assert_refused(done, 1, "1e+06", "65504", "tflite:fp32")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tflite:int4-rtn-g32-asym", ("no scheme int4-rtn-g32-asym", "tflite:int4")),
        ("tflite:int4-rtn-g128", ("groups of 128 do not divide", "--smaller-groups")),
        ("tflite:Q4_0", ("no scheme Q4_0", "tflite:")),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_what_it_can(
    made: Path, recipe: str, words: tuple[str, ...], edgec_here: Run, tmp_path: Path
) -> None:
    done = edgec_here("build", made / "bert" / "model", "-r", recipe, "-o", tmp_path / "out")
    assert_refused(done, 2, *words)


def test_a_damaged_file_ends_in_a_sentence(made: Path, edgec: Run, tmp_path: Path) -> None:
    package = tmp_path / "tflite-int8"
    package.mkdir()
    for file in (made / "bert" / "out" / "tflite-int8").iterdir():
        if file.is_file():
            (package / file.name).write_bytes(file.read_bytes())
    whole = (package / "model.tflite").read_bytes()
    (package / "model.tflite").write_bytes(whole[: len(whole) // 3])
    assert_refused(edgec("run", package, "-p", "one"), 1, "model.tflite")
    with pytest.raises(UnusableInput, match=r"model\.tflite is no TFLite file, or a damaged one"):
        list(stored_matrices(read_package(package)))
