"""Core ML packages: what they compute, what they carry, what is refused, and that two builds give the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from conftest import Run, assert_refused, figures_of, write_samples
from lowering import CONTEXT, decoder_session, lineage, lower
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from compiler.errors import UnusableInput
from compiler.formats.codes import list_quantized, read_quantized
from compiler.model import Model, read_model
from compiler.package import read_package
from compiler.pretrained import Encoder, load_encoder
from compiler.quantization import Calibration, Quantization
from compiler.quantize.stage import quantize
from compiler.stages.worker import run_in_child
from runtimes.coreml.evaluator import Evaluator, Precision
from runtimes.coreml.mil_program import BlobValue, read_blob, read_mil
from runtimes.kinds.encoding.reference import draw_images
from targets.coreml.placement import predict_placement


@pytest.fixture(scope="module")
def made(minilm_folder: Path, smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coreml")
    for kind in tiny.REAUTHORED_ENCODERS:
        tiny.save_encoder(kind, minilm_folder, root / kind)
    for kind in (*tiny.REAUTHORED_DECODERS, "gpt2"):
        tiny.save_decoder(kind, smollm2.folder, root / kind)
    return root


def codes_of(folder: Path, out: Path, bits: int, group: int, rows_per_palette: int | None = None) -> Path:
    """Codes by rounding."""
    out.mkdir(parents=True)
    quantize(
        str(folder),
        str(out),
        task=read_model(folder).task,
        method="rtn",
        bits=bits,
        group_size=group,
        symmetric=rows_per_palette is None,
        rows_per_palette=rows_per_palette,
        quantization=Quantization().full(),
    )
    return out


def encoder_inputs(encoder: Encoder) -> dict[str, Any]:
    if encoder.image_shape:
        return {"pixel_values": draw_images(encoder.image_shape)[2][None]}
    ids = np.random.default_rng(0).integers(200, 5000, (1, 32))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids % 2}


def assert_near(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> None:
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("layout", ["ane", "plain"])
@pytest.mark.parametrize("kind", tiny.REAUTHORED_ENCODERS)
def test_an_encoder_of_every_family_computes_what_torch_does(
    kind: str, layout: str, made: Path, tmp_path: Path
) -> None:
    model = read_model(made / kind)
    lower(made / kind, tmp_path / "out", layout=layout, ios=16)
    reference = load_encoder(made / kind, model.task)
    given = encoder_inputs(reference)
    if not reference.image_shape:
        given["attention_mask"][:, 27:] = 0
    with torch.inference_mode():
        wanted = reference.module(*(torch.from_numpy(given[name]) for name in reference.input_names))
    tolerances: dict[Precision, float] = {"fp32": 3e-3, "fp16": 2e-2}
    for precision, tolerance in tolerances.items():
        outputs = Evaluator(tmp_path / "out" / "model.mlpackage", precision).run(given)
        for name, other in zip(reference.output_names, wanted, strict=True):
            ours, theirs = outputs[name], other.numpy()
            real = slice(0, 27) if ours.ndim > 1 and ours.shape[1] == 32 else slice(None)
            assert_near(ours[:, real], theirs[:, real], tolerance)


@pytest.mark.parametrize(("ios", "layout"), [(18, "ane"), (18, "plain"), (17, "ane")])
@pytest.mark.parametrize("kind", tiny.REAUTHORED_DECODERS)
def test_a_decoder_of_every_family_prefills_and_goes_on(
    kind: str, ios: int, layout: str, made: Path, tmp_path: Path
) -> None:
    session = decoder_session(lower(made / kind, tmp_path / "out", layout=layout, ios=ios))
    ids = [int(token) for token in np.random.default_rng(0).integers(5, 5000, 45)]
    model = transformers.AutoModelForCausalLM.from_pretrained(made / kind).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert_near(session.score(ids[:44]), expected[:44], 2e-2)
    session.reset()
    assert_near(session.extend(ids[:44]), expected[43], 2e-2)
    assert_near(session.extend([ids[44]]), expected[44], 2e-2)


def test_a_decoder_in_parts_and_one_that_gives_tokens_agree_with_the_whole(made: Path, tmp_path: Path) -> None:
    ids = [int(token) for token in np.random.default_rng(3).integers(5, 5000, 40)]
    whole = decoder_session(lower(made / "llama", tmp_path / "whole")).score(ids)
    parts = lower(made / "llama", tmp_path / "parts", part_bytes=100_000)
    assert len(parts.lowered.main.files) == 4  # the embedding, two layers, the head
    assert_near(decoder_session(parts).score(ids), whole, 2e-3)
    greedy = lower(made / "llama", tmp_path / "greedy", greedy=True)
    tokens = decoder_session(greedy).score(ids).argmax(1)
    assert (tokens == whole.argmax(1)).all()


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64)])
def test_codes_are_in_the_saved_package_to_the_bit(bits: int, group: int, made: Path, tmp_path: Path) -> None:
    codes = codes_of(made / "llama", tmp_path / "codes", bits, group)
    account = lower(made / "llama", tmp_path / "out", codes).lowered.weights
    found = {
        (tuple(read_blob(op.arguments["data"][0]).reshape(-1)[:64]), tuple(read_blob(op.arguments["scale"][0]).reshape(-1)))
        for function in read_mil(tmp_path / "out" / "model.mlpackage").functions.values()
        for op in function.operations
        if op.kind == "constexpr_blockwise_shift_scale"
        if isinstance(op.arguments["data"][0], BlobValue) and isinstance(op.arguments["scale"][0], BlobValue)
    }  # fmt: skip
    entries = [read_quantized(entry) for entry in list_quantized(codes).values()]
    for tensor in entries:
        signed = tensor.codes.astype(np.int16) - 2 ** (tensor.bits - 1)
        assert (tuple(signed.reshape(-1)[:64]), tuple(tensor.scales.reshape(-1))) in found, tensor.name
    weights = sum(path.stat().st_size for path in (tmp_path / "out").rglob("weight.bin"))
    stored = sum(account.types.values()) * account.effective_bits_per_weight / 8
    tables = 2 * 2 * CONTEXT * 65 * 2 * 2  # masks of both functions, and positions
    assert stored <= weights <= stored * 1.03 + tables + 64 * 200


@pytest.mark.parametrize("kind", [*tiny.REAUTHORED_DECODERS, "bert", "distilbert", "roberta", "xlm-roberta", "vit"])
def test_a_package_of_gptq_codes_computes_what_torch_does_with_what_they_stand_for(
    kind: str, made: Path, tmp_path: Path
) -> None:
    model, codes = read_model(made / kind), tmp_path / "codes"
    for folder in (tmp_path / "samples", codes):
        folder.mkdir()
    write_samples(made / kind, tmp_path / "samples", model.task, Calibration(samples=4, sample_tokens=64))
    scheme: dict[str, Any] = {
        "method": "gptq",
        "bits": 4,
        "group_size": 32,
        "symmetric": True,
        "quantization": Quantization().full(),
    }
    quantize(str(made / kind), str(codes), model.task, **scheme, samples=str(tmp_path / "samples"))
    package = lower(made / kind, tmp_path / "out", codes)
    restored = shutil.copytree(made / kind, tmp_path / "restored")
    tensors = load_file(restored / "model.safetensors")
    entries = list_quantized(codes)
    assert len(entries) >= 2 * 4 and set(entries) <= set(tensors)
    tensors |= {name: torch.from_numpy(read_quantized(entry).dequantize()) for name, entry in entries.items()}
    save_file(tensors, restored / "model.safetensors", {"format": "pt"})
    if model.is_decoder:
        ids = [int(token) for token in np.random.default_rng(0).integers(5, 5000, 45)]
        reference = transformers.AutoModelForCausalLM.from_pretrained(restored).eval()
        with torch.inference_mode():
            expected = reference(torch.tensor([ids])).logits[0].numpy()
        assert_near(decoder_session(package).score(ids), expected, 2e-2)
        return
    encoder = load_encoder(restored, model.task)
    given = encoder_inputs(encoder)
    with torch.inference_mode():
        wanted = encoder.module(*(torch.from_numpy(given[name]) for name in encoder.input_names))[0].numpy()
    found = Evaluator(tmp_path / "out" / "model.mlpackage").run(given)[encoder.output_names[0]]
    assert_near(found, wanted, 2e-2)


@pytest.mark.parametrize("ios", [16, 18])
@pytest.mark.parametrize("bits", [4, 6])
def test_palettes_are_evaluated_as_they_were_found(bits: int, ios: int, made: Path, tmp_path: Path) -> None:
    codes = codes_of(made / "bert", tmp_path / "codes", bits, 0, 8 if ios == 18 else 0)
    lower(made / "bert", tmp_path / "out", codes, ios=ios)
    evaluator = Evaluator(tmp_path / "out" / "model.mlpackage")
    ids = np.random.default_rng(0).integers(200, 5000, (1, 32))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    observed = evaluator.run(given)["last_hidden_state"]
    reference = transformers.AutoModel.from_pretrained(made / "bert").eval()
    parameters = dict(reference.named_parameters())
    with torch.inference_mode():
        for name, entry in list_quantized(codes).items():
            restored = read_quantized(entry)
            assert restored.palette is not None and len(np.unique(restored.palette[0])) <= 2**restored.bits
            parameters[name].copy_(torch.from_numpy(restored.dequantize()))
        expected = reference(**{name: torch.from_numpy(value) for name, value in given.items()}).last_hidden_state
    assert_near(observed, expected.numpy(), 1e-2)


def test_more_values_and_fewer_rows_bring_a_palette_nearer() -> None:
    from compiler.quantize.solve.gptq import GptqSettings, damp_hessian
    from compiler.quantize.solve.grid import Grid
    from compiler.quantize.solve.matrix import restore, round_matrix, solve_matrix

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator) * torch.linspace(0.2, 3, 64)[:, None]

    def error(bits: int, rows: int) -> float:
        return float((weight - restore(*round_matrix(weight, Grid(bits, 0, False, rows)))).square().mean())

    assert error(6, 8) < error(4, 8) / 8
    assert error(4, 8) < 0.75 * error(4, 0)
    # Sixteen evenly spaced values are one of the palettes that k-means may choose.
    span = weight.abs().max() * 2 / 15
    assert error(4, 0) < float(((weight / span).round() * span - weight).square().mean())
    inputs = torch.randn(400, 96, generator=generator) @ torch.randn(96, 96, generator=generator)
    damped = damp_hessian(inputs.t() @ inputs, GptqSettings(), "weight")
    grid = Grid(4, 0, False, 8)

    def lost(restored: torch.Tensor) -> float:
        return float((inputs @ (weight - restored).t()).square().sum())

    assert lost(restore(*solve_matrix(weight, damped, grid, GptqSettings()))) < 0.6 * lost(
        restore(*round_matrix(weight, grid))
    )


def _bytes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_builds_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    """As a build does it, each in a process of its own; the order of sets differs between them."""
    folder = made / "llama"
    codes = codes_of(folder, tmp_path / "codes", 4, 32)
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        arguments = {
            "model": str(folder), "codes": str(codes), "out": str(tmp_path / seed), "layout": "ane", "ios": 18,
            "context_length": CONTEXT, "part_bytes": 10**9, "bits": 4.5, "greedy": False, "lineage": lineage(folder),
        }  # fmt: skip
        environment = {"PYTHONHASHSEED": seed}
        run_in_child("targets.coreml.decoder:lower_decoder", arguments, label="lower", environment=environment)
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "2")


def test_both_functions_share_one_set_of_weights(made: Path, tmp_path: Path) -> None:
    lower(made / "llama", tmp_path / "out")
    weights = next((tmp_path / "out").rglob("weight.bin")).stat().st_size
    parameters = read_model(made / "llama").parameters
    assert weights < parameters * 2 * 1.05
    assert set(read_mil(tmp_path / "out" / "model.mlpackage").functions) == {"prefill", "decode"}


def test_a_package_of_several_lengths_takes_each_and_cuts_a_longer_text(
    made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    done = edgec_here("build", made / "bert", "-r", "coreml:fp16+lengths", "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    package = read_package(tmp_path / "out" / "coreml-fp16-lengths")
    assert package.lowered.main.inputs[0].shape == (1, "sequence")
    assert package.lowered.shapes.sequence_lengths == (64, 128, 256)  # the model ends at 256
    ran = edgec_here("run", package.folder, "-p", "short", "-p", "word " * 254, "-p", "word " * 400, "--json")
    assert ran.returncode == 0, ran.stderr
    _, longest, cut = json.loads(ran.stdout)
    assert np.dot(longest, cut) == pytest.approx(1, abs=1e-4), "a longer text is cut to the longest"


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_activations_in_8_bits_are_rounded_in_the_package_too(kind: str, made: Path, tmp_path: Path) -> None:
    from targets.coreml.activations import measure_ranges

    task = read_model(made / kind).task
    codes, samples, ranges = codes_of(made / kind, tmp_path / "codes", 8, 0), tmp_path / "samples", tmp_path / "ranges"
    for folder in (samples, ranges):
        folder.mkdir()
    write_samples(made / kind, samples, task, Calibration())
    measure_ranges(str(made / kind), str(samples), str(ranges), task)
    told = json.loads((ranges / "ranges.json").read_text())
    scales, floats = told["scales"], told["float_errors"]
    assert len(scales) + len(floats) >= 12 and len(scales) > 6
    assert all(0 < scale < 1 for scale in scales.values())
    lower(made / kind, tmp_path / "out", codes, ios=17, ranges=str(ranges))
    package = read_mil(tmp_path / "out" / "model.mlpackage")
    kinds = [operation.kind for operation in package.functions["main"].operations]
    assert kinds.count("quantize") == kinds.count("dequantize") == len(scales)
    encoder = load_encoder(made / kind, task)
    given = encoder_inputs(encoder)
    observed = Evaluator(tmp_path / "out" / "model.mlpackage").run(given)[encoder.output_names[0]]
    with torch.inference_mode():
        wanted = encoder.module(*(torch.from_numpy(given[name]) for name in encoder.input_names))[0].numpy()
    cosine = (observed * wanted).sum(-1) / np.linalg.norm(observed, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert 0.98 < cosine.min() < 1 - 1e-6


def test_minilm_stays_on_the_neural_engine_and_is_right(minilm_folder: Path, edgec: Run, tmp_path: Path) -> None:
    arguments = ["-r", "coreml:fp16", "--require", "ane>=0.99", "-o", tmp_path / "out", "--verify"]
    done = edgec("build", minilm_folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stay on ane" in done.stdout
    package = read_package(tmp_path / "out" / "coreml-fp16")
    assert figures_of(package.folder)["min_cosine"] > 0.9999
    placement = package.lowered.placement
    assert placement is not None and placement.source == "predicted"
    assert {each.operator for each in placement.unsupported} == {"gather", "cast"}
    assert_refused(edgec("bench", tmp_path / "out" / "coreml-fp16"), 2, "only evaluated", "macOS")
    refused = edgec("build", minilm_folder, "-r", "coreml:fp16", "--require", "ane>=0.999", "-o", tmp_path / "strict")
    assert_refused(refused, 1, "99.29%", "gather", "--allow placement")
    assert not (tmp_path / "strict").exists()
    refused = edgec("build", minilm_folder, "-r", "tflite:fp32", "--require", "ane>=0.9", "-o", tmp_path / "strict")
    assert_refused(refused, 2, "no account")
    assert (
        edgec("build", minilm_folder, "-r", "coreml:fp16", "--require", "ane>1", "-o", tmp_path / "x").returncode == 2
    )


def test_what_leaves_the_engine_is_named_with_its_source(made: Path, tmp_path: Path) -> None:
    lower(made / "llama", tmp_path / "out", greedy=True)
    placement = predict_placement(tmp_path / "out" / "model.mlpackage")
    reasons = {each.operator: each.reason for each in placement.unsupported}
    assert "index" in reasons["reduce_argmax"] and "look-up" in reasons["gather"]
    assert 0.5 < placement.share < 1
    codes = codes_of(made / "bert", tmp_path / "codes", 4, 32)
    lower(made / "bert", tmp_path / "blocks", codes)
    unsure = predict_placement(tmp_path / "blocks" / "model.mlpackage").unsure
    assert any(each.operator == "conv" and "block of a row" in each.reason for each in unsure)


def test_operators_are_listed_in_the_same_order_every_time(made: Path, tmp_path: Path) -> None:
    """protobuf gives the functions of a program in an order that changes from process to process."""
    lower(made / "llama", tmp_path / "out")
    program = (
        "import sys; from pathlib import Path; from targets.coreml.placement import predict_placement\n"
        "print([each.name for each in predict_placement(Path(sys.argv[1])).unsupported])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out" / "model.mlpackage")]
    told = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(4)]
    assert len(set(told)) == 1 and "prefill" in told[0] and "decode" in told[0]


def test_any_package_is_held_to_the_table(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    lower(made / "llama", tmp_path / "out", greedy=True)
    program = tmp_path / "out" / "model.mlpackage"
    done = edgec_here("placement", program, "--require", "ane>=0.999")
    assert_refused(done, 1, "model.mlpackage", "99.9", "gather")
    for word in ("reduce_argmax", "an index as result", "gather", "slice_update", "padded"):
        assert word in done.stdout
    told = json.loads(edgec_here("placement", program, "--json").stdout)
    assert told["share"] == predict_placement(program).share
    # One token at a time is a last axis of 1: each float16 takes 64 bytes.
    assert 1.5 < told["padded_bytes"] / told["result_bytes"] < 32
    (program / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"\xff" * 100)
    with pytest.raises(UnusableInput, match=r"model\.mlpackage is damaged"):
        predict_placement(program)


def test_a_language_model_goes_the_whole_way(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    arguments = ["-r", "coreml:fp16", "-r", "coreml:int4-rtn-g32", "--context-length", "128"]
    done = edgec_here("build", made / "llama", *arguments, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    checked = edgec_here("verify", tmp_path / "out" / "coreml-fp16")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert figures_of(tmp_path / "out" / "coreml-fp16")["mean_kl"] < 2e-3
    ran = edgec_here("run", tmp_path / "out" / "coreml-int4-rtn-g32", "-p", "Name an animal.", "-n", "4", "--json")
    assert json.loads(ran.stdout)[0]["new_tokens"] == 4


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("gpt2", ["-r", "coreml:fp16"], ("llama", "gemma2", "gpt2")),
        ("llama", ["-r", "coreml:fp16", "--context-length", "512"], ("at most 256", "512")),
        ("llama", ["-r", "coreml:fp16", "--context-length", "100"], ("multiple of 32",)),
        ("bert", ["-r", "coreml:fp16", "--sequence-length", "300"], ("at most 256", "300")),
        ("bert", ["-r", "coreml:int4-rtn-g32@ios16"], ("iOS 18", "@ios16")),
        ("bert", ["-r", "coreml:fp16@ios15"], ("@ios16", "@ios15")),
        ("bert", ["-r", "coreml:w8a8@ios16"], ("iOS 17",)),
        ("llama", ["-r", "coreml:w8a8"], ("encoders", "int8")),
        ("bert", ["-r", "coreml:fp16+argmax"], ("language models",)),
        ("vit", ["-r", "coreml:fp16+lengths"], ("text encoders",)),
    ],
)
def test_what_cannot_be_made_is_refused(
    kind: str, arguments: list[str], words: tuple[str, ...], made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    assert_refused(edgec_here("build", made / kind, *arguments, "-o", tmp_path / "out"), 2, *words)
    assert not (tmp_path / "out").exists()
