"""Language models on LiteRT: every family, our codes to the bit, text by the engine, and a bundle that needs no edgec."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
import transformers
from ai_edge_litert.compiled_model import CompiledModel
from conftest import Run, assert_refused, figures_of, verification_of

from compiler.errors import UnusableInput
from compiler.formats.codes import list_quantized, read_quantized
from compiler.formats.litertlm import (
    METADATA,
    MODEL,
    TOKENIZER,
    NewSection,
    Section,
    find_section,
    open_litertlm,
    packed_text,
    unpacked_text,
    write_litertlm,
)
from compiler.formats.tflite import parse_tflite, tflite_pieces
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import read_package
from compiler.quantization import Quantization
from compiler.quantize.stage import quantize
from compiler.tokenizer import load_tokenizer
from runtimes.registry import open_session
from runtimes.stored.tflite import stored_matrices
from targets.tflite.weights import cut_columns

_SCHEMES = ("fp16", "int8", "int8-gptq-pc", "int4-rtn-g32", "int4-gptq-g32")
# Wide enough for products in several pieces: of the head, of the queries and of what comes down.
_WIDE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def made(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a family, each with `model` in it, and `wide`."""
    root = tmp_path_factory.mktemp("litertlm")
    for kind in tiny.REAUTHORED_DECODERS:
        tiny.save_decoder(kind, smollm2.folder, root / kind / "model")
    name, sizes = tiny.DECODER_CONFIGS["llama"]
    with patch.dict(tiny.DECODER_CONFIGS, {"wide": (name, {**sizes, **_WIDE})}):
        tiny.save_decoder("wide", smollm2.folder, root / "wide" / "model")
    return root


@pytest.fixture(scope="module")
def llama(made: Path, edgec_here: Run) -> Path:
    """The packages of the Llama, float32 and in every other scheme."""
    out = made / "llama" / "out"
    # Random weights give flat distributions, whose most probable token changes easily; that it was lowered right counts.
    tables = [f'[[recipe]]\nrecipe = "tflite:{scheme}"\nmin_quality = "unusable"\n' for scheme in ("fp32", *_SCHEMES)]
    (made / "recipes.toml").write_text("".join(tables))
    options = ("--calibration-samples", 4, "--calibration-tokens", 64, "--verify")
    done = edgec_here("build", made / "llama" / "model", "-f", made / "recipes.toml", "-o", out, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("kind", [kind for kind in tiny.REAUTHORED_DECODERS if kind != "llama"])
def test_every_family_computes_what_the_model_does(kind: str, made: Path, edgec_here: Run) -> None:
    out = made / kind / "out"
    done = edgec_here("build", made / kind / "model", "-r", "tflite:fp32", "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures_of(out / "tflite-fp32")["mean_kl"] < 1e-9
    lengths = ("--prompt-tokens", 8, "--generated-tokens", 4, "--rounds", 1)
    measured = edgec_here("bench", out / "tflite-fp32", *lengths, "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)[0]["summary"]["decode_tok_per_s"] > 0


@pytest.mark.parametrize("scheme", ["fp32", *_SCHEMES])
def test_every_scheme_computes_what_its_stored_weights_say(scheme: str, llama: Path) -> None:
    assert verification_of(llama / f"tflite-{scheme}").lowered_right
    if scheme == "fp32":
        assert figures_of(llama / "tflite-fp32")["mean_kl"] < 1e-9


def test_the_graph_alone_is_a_file_of_litert(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    """The same bytes as in the bundle, which LiteRT's own library opens and runs without edgec."""
    done = edgec_here("build", made / "llama" / "model", "-r", "tflite:int8+bare", "-o", tmp_path, "--verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    package = tmp_path / "tflite-int8-bare"
    with open_litertlm(package / "model.litertlm") as sections:
        inside = bytes(find_section(sections, MODEL, package))
    assert (package / "model.tflite").read_bytes() == inside
    model = CompiledModel.from_file(str(package / "model.tflite"))
    assert set(model.get_signature_list()) == {"prefill", "decode", "score"}
    refused = edgec_here("build", made / "llama" / "model", "-r", "tflite:int8+lengths", "-o", tmp_path)
    assert_refused(refused, 2, "+lengths is for text encoders")


def _codes_of(model: Model, bits: int, group: int, folder: Path) -> Path:
    folder.mkdir()
    quantize(
        str(model.folder), str(folder), model.task, "rtn", bits, group, True, Quantization().full(),
        positive_scales=True, tables_by_row=True,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(("scheme", "bits", "group"), [("int8", 8, 0), ("int4-rtn-g32", 4, 32)])
def test_the_bundle_holds_our_codes_and_scales_to_the_bit(
    scheme: str, bits: int, group: int, made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    """A matrix may be there in pieces; together they are its codes."""
    done = edgec_here("build", made / "wide" / "model", "-r", f"tflite:{scheme}", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    package = read_package(tmp_path / f"tflite-{scheme}")
    codes = _codes_of(open_model(str(made / "wide" / "model")), bits, group, tmp_path / "codes")
    wanted = {name: read_quantized(entry) for name, entry in list_quantized(codes).items()}
    found = [matrix for matrix in stored_matrices(package) if matrix.quantized]
    # The tied table is multiplied with, and looked up.
    assert len(found) == len(wanted) + 1 and {matrix.name for matrix in found} == set(wanted)
    for matrix in found:
        own = wanted[matrix.name]
        signed = own.codes.astype(np.float32) - 2 ** (own.bits - 1)
        exact = signed * np.repeat(own.scales.astype(np.float32), own.group_size, 1)
        assert np.array_equal(matrix.values, exact)
    with open_litertlm(package.artifact) as sections:
        model = parse_tflite(bytes(find_section(sections, MODEL, package.artifact)), package.artifact.name)
    names = {tensor.name.decode() for tensor in model.subgraphs[-1].tensors}
    assert "model.embed_tokens.weight[0:192]" in names and "model.layers.0.mlp.down_proj.weight[0:384]" in names


def test_pieces_cut_no_group_and_leave_nothing_out() -> None:
    for columns, widest, unit in ((576, 512, 1), (576, 192, 32), (1536, 512, 128), (640, 512, 128), (100, 512, 1)):
        spans = cut_columns(columns, widest, unit)
        assert [begin for begin, _ in spans[1:]] == [end for _, end in spans[:-1]]
        assert spans[0][0] == 0 and spans[-1][1] == columns
        assert all(end - begin <= widest for begin, end in spans)
        assert all(begin % unit == 0 for begin, _ in spans)
    assert cut_columns(128, 96, 128, 4) == [(0, 128)]
    for columns, unit in ((768, 128), (320, 32), (480, 32), (640, 128), (384, 1), (100, 1)):
        spans = cut_columns(columns, 96, unit, 4)
        assert len(spans) <= 4 and spans[-1][1] == columns and all(begin % unit == 0 for begin, _ in spans)


def test_two_builds_give_the_same_bytes(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("EDGEC_CACHE", str(tmp_path / f"cache-{name}"))
            done = edgec_here("build", made / "qwen3" / "model", "-r", "tflite:int8", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        digests.add(hashlib.sha256((tmp_path / name / "tflite-int8" / "model.litertlm").read_bytes()).hexdigest())
    assert len(digests) == 1


_ALONE = """
import json, sys, litert_lm
engine = litert_lm.Engine(sys.argv[1], litert_lm.Backend.CPU(thread_count=1), max_num_tokens=96, cache_dir=":nocache")
greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
with engine.create_conversation(sampler_config=greedy, max_output_tokens=int(sys.argv[3])) as chat:
    answer = chat.send_message(sys.argv[2])
text = "".join(part["text"] for part in answer["content"])
print(json.dumps({"ids": engine.tokenize(sys.argv[2]), "ends": engine.eos_token_ids, "answer": text}))
"""


@pytest.fixture(scope="module")
def sentencepiece(made: Path, edgec_here: Run) -> Path:
    """A model whose tokenizer puts a begin token first, and whose template writes it and the end token."""
    tokenizer = tiny.save_sentencepiece(made / "sentencepiece" / "tokenizer")
    model = tiny.save_decoder("llama", tokenizer, made / "sentencepiece" / "model")
    out = made / "sentencepiece" / "out"
    done = edgec_here("build", model, "-r", "tflite:fp32", "-o", out, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("kind", ["llama", "sentencepiece"])
def test_the_stock_engine_chats_with_it_without_edgec(
    kind: str, made: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It says what the fp32 model in torch says, token for token."""
    package: Path = request.getfixturevalue(kind)
    prompt, count = "Is it?", 24
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", _ALONE, str(package / "tflite-fp32" / "model.litertlm"), prompt, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    folder = made / kind / "model"
    tokenizer = load_tokenizer(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert told["ids"] == tokenizer(prompt, add_special_tokens=False)["input_ids"] and told["ends"] == [[2]]
    given = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        generated = model.generate(**given, max_new_tokens=count, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert told["answer"] == tokenizer.decode(generated, skip_special_tokens=True)


def test_a_cache_that_grows_forgets_nothing(llama: Path) -> None:
    """Tokens one by one, many at once, and all scored: the same logits, however often the cache grew between."""
    session = open_session(read_package(llama / "tflite-fp32"), 1, 250)
    ids = [int(token) for token in np.random.default_rng(0).integers(10, 400, 200)]
    scored = session.score(ids)
    session.reset()
    assert np.allclose(session.extend(ids[:60]), scored[59], atol=1e-4)
    for place in range(60, 140):
        last = session.extend([ids[place]])
    assert np.allclose(last, scored[139], atol=1e-4)
    assert np.allclose(session.extend(ids[140:]), scored[199], atol=1e-4)
    with pytest.raises(UnusableInput, match="251 tokens do not fit the context of 250"):
        session.extend([5] * 51)
    session.close()


def test_a_template_that_the_engine_cannot_render_is_found_in_the_engine(
    made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(made / "llama" / "model", tmp_path / "model")
    template = "{% for message in messages %}{{ message['content'].swapcase() }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    done = edgec_here("build", folder, "-r", "tflite:fp32", "-o", tmp_path / "out", "--verify")
    assert_refused(done, 1, "chat template", "the runtime renders nothing", "--allow chat-template")


def _damaged(whole: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "cut in the header", whole[:100]
    yield "cut in the model", whole[: len(whole) // 2]
    yield "another magic word", b"LITERTLX" + whole[8:]
    yield "another major version", whole[:8] + struct.pack("<I", 9) + whole[12:]
    yield "a header without end", whole[:24] + struct.pack("<Q", 2**63) + whole[32:]
    yield "noise for a header", whole[:32] + b"\xff" * 2048 + whole[2080:]
    with_model = whole.index(b"TFL3") - 4
    yield "noise in the model", whole[: with_model + 8] + b"\xee" * 512 + whole[with_model + 520 :]


def test_a_damaged_bundle_ends_in_a_sentence(llama: Path, edgec_here: Run, tmp_path: Path) -> None:
    whole = (llama / "tflite-int8" / "model.litertlm").read_bytes()
    for number, (what, data) in enumerate(_damaged(whole)):
        package = shutil.copytree(llama / "tflite-int8", tmp_path / str(number))
        (package / "model.litertlm").write_bytes(data)
        done = edgec_here("run", package, "-p", "one")
        assert done.returncode in (1, 2) and "model.litertlm" in done.stderr, (what, done.stderr)
        assert "Traceback" not in done.stderr
        with pytest.raises(UnusableInput, match=r"model\.litertlm"):
            list(stored_matrices(read_package(package)))


def test_a_tokenizer_that_unpacks_to_more_than_it_says_is_refused() -> None:
    assert unpacked_text(packed_text(b"{}")) == b"{}"
    for damaged in (b"", packed_text(b"a" * 100)[:-4], struct.pack("<Q", 2**40) + packed_text(b"a")[8:]):
        with pytest.raises(UnusableInput, match="tokenizer"):
            unpacked_text(damaged)


def test_a_bundle_with_two_models_is_refused(tmp_path: Path) -> None:
    sections = (Section(MODEL, b"one"), Section(MODEL, b"two"))
    with pytest.raises(UnusableInput, match="2 sections with a model"):
        find_section(sections, MODEL, tmp_path / "model.litertlm")
    with pytest.raises(UnusableInput, match="0 sections with a tokenizer"):
        find_section(sections, TOKENIZER, tmp_path / "model.litertlm")


def test_several_templates_and_none(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    """Of several the default is taken; a model without one has no conversations, and no kit that chats."""
    folder = shutil.copytree(made / "llama" / "model", tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    templates = {"default": "{% for m in messages %}[{{ m['content'] }}]{% endfor %}", "tool_use": "{{ tools }}"}
    told["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    done = edgec_here("build", folder, "-r", "tflite:fp32", "-o", tmp_path / "several", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    del told["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    done = edgec_here("build", folder, "-r", "tflite:fp32", "-o", tmp_path / "none", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    kit = ("kit", tmp_path / "none" / "tflite-fp32", "--for", "python", "-o", tmp_path / "kit")
    assert_refused(edgec_here(*kit), 2, "without a chat template")


def test_longrope_has_the_frequencies_of_the_context_that_is_asked_for(
    made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(made / "phi3" / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    factors = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [4.0 + i for i in range(8)]}
    original = {"rope_theta": 10000.0, "original_max_position_embeddings": 128}
    config |= {"rope_parameters": {"rope_type": "longrope", **original, **factors}, **original}
    config["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    options = ("-r", "tflite:fp32", "--context-length", 128, "-o", tmp_path / "out", "--verify")
    done = edgec_here("build", folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures_of(tmp_path / "out" / "tflite-fp32")["mean_kl"] < 1e-9
    assert read_package(tmp_path / "out" / "tflite-fp32").lowered.shapes.longest_sequence == 128


def test_weights_beyond_what_a_flatbuffer_holds_lie_behind_it(llama: Path, tmp_path: Path) -> None:
    """As of a file beyond 2 GB: the same numbers, by LiteRT and by the stock engine, and the same matrices by our reader."""
    package = Path(shutil.copytree(llama / "tflite-int8", tmp_path / "package"))
    bundle = package / "model.litertlm"
    with open_litertlm(bundle) as sections:
        kinds = {kind: bytes(find_section(sections, kind, bundle)) for kind in (METADATA, TOKENIZER, MODEL)}
    model = parse_tflite(kinds[MODEL], bundle.name)
    with patch("compiler.formats.tflite.LARGEST_WITHIN", 1000):
        pieces = tflite_pieces(model)
        assert len(pieces) > 20 and [bytes(each) for each in tflite_pieces(model)] == [bytes(each) for each in pieces]
    assert sum(map(len, pieces[2:])) > 0.6 * sum(map(len, pieces))
    apart = [NewSection(kind, [data]) for kind, data in kinds.items() if kind != MODEL]
    items = {"model_type": "tf_lite_prefill_decode"}
    write_litertlm(bundle, [*apart, NewSection(MODEL, pieces, items)], {})
    for one, other in zip(
        stored_matrices(read_package(llama / "tflite-int8")), stored_matrices(read_package(package)), strict=True
    ):
        assert one.name == other.name and np.array_equal(one.values, other.values)
    ids = [int(each) for each in np.random.default_rng(0).integers(3, 900, 20)]
    scores = []
    for folder in (llama / "tflite-int8", package):
        with closing(open_session(read_package(folder), 1, 64)) as session:
            scores.append(session.score(ids))
    assert np.array_equal(*scores)
    said = set()
    for file in (llama / "tflite-int8" / "model.litertlm", bundle):
        command = [sys.executable, "-P", "-c", _ALONE, str(file), "Is it?", "12"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        said.add(done.stdout.splitlines()[-1])
    assert len(said) == 1


def test_a_package_is_run_without_a_word_of_the_libraries(llama: Path, edgec: Run) -> None:
    """LiteRT tells of every accelerator that it looks for, finds and destroys."""
    done = edgec("run", llama / "tflite-fp32", "-p", "Is it?", "--max-tokens", 2)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith(("INFO", "WARNING", "W0", "E0"))]


def test_a_model_without_an_end_is_refused_before_work(made: Path, edgec_here: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "llama" / "model", tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        told = json.loads((folder / name).read_text())
        told.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(told))
    done = edgec_here("build", folder, "-r", "tflite:fp32", "-o", tmp_path / "out")
    assert_refused(done, 2, "eos_token_id", "engine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-r", "tflite:fp32", "--context-length", 1000), ("at most 256 tokens", "asks for 1000")),
        (("-r", "tflite:int4-rtn-g128"), ("groups of 128 do not divide", "--smaller-groups")),
        (("-r", "tflite:int4-rtn-g32-asym"), ("no scheme int4-rtn-g32-asym",)),
    ],
)
def test_what_cannot_be_is_refused_before_work(
    options: tuple[object, ...], words: tuple[str, ...], made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    assert_refused(edgec_here("build", made / "llama" / "model", *options, "-o", tmp_path / "out"), 2, *words)


def test_the_account_of_xnnpack_is_what_litert_plans(llama: Path, edgec_here: Run, made: Path, tmp_path: Path) -> None:
    """All products run there; the cache, the look-up and the angles do not."""
    placement = read_package(llama / "tflite-int8").lowered.placement
    assert placement is not None and placement.engine == "xnnpack" and placement.source == "planned"
    kinds = {each.operator for each in placement.unsupported}
    assert "dynamic_update_slice" in kinds and not kinds & {"fully_connected", "batch_matmul", "softmax"}
    assert 0.5 < placement.share < 1
    said = edgec_here("placement", llama / "tflite-int8" / "model.litertlm", "--json")
    assert json.loads(said.stdout)["share"] == pytest.approx(placement.share)
    strict = ("-r", "tflite:int8", "--require", "xnnpack>=0.999", "-o", tmp_path / "strict")
    assert_refused(
        edgec_here("build", made / "llama" / "model", *strict),
        1,
        "of 97 operators stay on xnnpack",
        "--allow placement",
    )
