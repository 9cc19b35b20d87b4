"""Every decoder family goes the whole way: built, opened by the runtime, held to the fp32 model in torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
from conftest import Run, assert_refused, figures_of, misses_of, verification_of

from compiler.formats.gguf import read_gguf_header
from compiler.model import Model
from compiler.package import read_package
from runtimes.verify.verification import read_verification

_RECIPES = (
    ("llama", ("gguf:F32", "gguf:Q8_0", "onnx:fp32", "onnx:int8", "onnx:int4-rtn-g32")),
    ("qwen3", ("gguf:BF16", "onnx:fp32")),
    ("gemma", ("onnx:fp32",)),
    ("phi3", ("onnx:fp32",)),
    ("gpt2", ("gguf:F16", "gguf:Q5_1")),
)
_ROUNDED = ("gguf:Q8_0", "gguf:Q5_1", "onnx:int8", "onnx:int4-rtn-g32")


@pytest.fixture(scope="module")
def made(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a family, each with `model` in it."""
    root = tmp_path_factory.mktemp("decoders")
    for kind in tiny.DECODERS:
        tiny.save_decoder(kind, smollm2.folder, root / kind / "model")
    return root


def _packages(kind: str, recipes: tuple[str, ...], made: Path, edgec: Run) -> Path:
    """The folder with the verified packages of a family, made by whichever test comes first."""
    out = made / kind / "out"
    if out.exists():
        return out
    # Random weights give flat distributions, whose most probable token changes easily; that it was lowered right counts.
    limits = 'min_quality = "unusable"\n'
    tables = [f'[[recipe]]\nrecipe = "{recipe}"\n{limits if recipe in _ROUNDED else ""}' for recipe in recipes]
    (made / kind / "recipes.toml").write_text("".join(tables))
    source, file = made / kind / "model", made / kind / "recipes.toml"
    done = edgec("build", source, "-f", file, "-o", out, "--name", f"tiny-{kind}", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def llama(made: Path, edgec: Run) -> Path:
    """The packages of the Llama."""
    return _packages("llama", dict(_RECIPES)["llama"], made, edgec)


@pytest.mark.parametrize(("kind", "recipes"), _RECIPES, ids=[kind for kind, _ in _RECIPES])
def test_a_family_is_packaged_and_still_computes_the_same(
    kind: str, recipes: tuple[str, ...], made: Path, edgec: Run, edgec_here: Run
) -> None:
    for folder in _packages(kind, recipes, made, edgec if kind == "llama" else edgec_here).iterdir():
        found = verification_of(folder)
        assert found.passed and found.package == read_package(folder).digest
        if folder.name in ("onnx-fp32", "gguf-F32"):
            assert figures_of(folder)["mean_kl"] < 1e-5
            assert figures_of(folder)["greedy_agreement"] == 1


def test_a_text_gives_perplexity(llama: Path, edgec_here: Run, tmp_path: Path) -> None:
    text, package = tmp_path / "text.txt", llama / "gguf-Q8_0"
    text.write_text("The river ran past the mill and under the old bridge, as it had for three hundred years. " * 60)
    done = edgec_here("verify", package, "--text", text, "--max-tokens", 512, "--min-quality", "unusable", "--json")
    assert done.returncode == 0, done.stderr
    quality = json.loads(done.stdout)[0]["figures"]
    assert quality["positions"] == 256  # the second halves of two windows of the 256 that the model takes
    assert quality["perplexity"] == pytest.approx(quality["reference_perplexity"], rel=0.05)
    text.write_text("too short")
    assert_refused(edgec_here("verify", package, "--text", text), 2, "256")


def test_a_normalizer_that_genai_leaves_out_is_noticed(made: Path, edgec_here: Run) -> None:
    """Qwen2's tokenizer composes accents (NFC), GenAI's does not: the numbers agree and the text gate names the string."""
    out = made / "qwen2" / "out"
    command = ("build", made / "qwen2" / "model", "-r", "onnx:fp32", "-o", out)
    assert_refused(edgec_here(*command, "--verify"), 1, "tokenizer", "combining", "Not kept: onnx:fp32")
    assert not out.exists(), "what failed is not left as if it were good"
    assert edgec_here(*command).returncode == 0
    assert edgec_here("verify", out / "onnx-fp32").returncode == 1
    assert edgec_here("verify", out / "onnx-fp32", *misses_of(out / "onnx-fp32")).returncode == 0
    assert figures_of(out / "onnx-fp32")["mean_kl"] < 1e-6


def test_llama_cpp_loads_the_package_without_edgec_and_agrees_with_torch(made: Path, llama: Path) -> None:
    import llama_cpp

    package = llama / "gguf-F32"
    ids = [11, 500, 23, 7000, 42, 99]
    model = transformers.AutoModelForCausalLM.from_pretrained(made / "llama" / "model")
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    runtime = llama_cpp.Llama(str(next(package.glob("*.gguf"))), n_ctx=64, logits_all=True, verbose=False)
    runtime.eval(ids)
    observed = np.asarray(runtime.scores[: len(ids)])
    assert (observed.argmax(-1) == expected.argmax(-1)).all()
    np.testing.assert_allclose(observed, expected, atol=0.02 * np.abs(expected).max())


def test_genai_loads_the_package_without_edgec_and_agrees_with_torch(made: Path, llama: Path) -> None:
    import onnxruntime_genai as og

    ids = [11, 500, 23, 7000, 42, 99]
    model = transformers.AutoModelForCausalLM.from_pretrained(made / "llama" / "model")
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    package = og.Model(str(llama / "onnx-fp32"))
    generator = og.Generator(package, og.GeneratorParams(package))
    generator.append_tokens(ids)
    observed = np.asarray(generator.get_output("logits"))[0]
    np.testing.assert_allclose(observed, expected, atol=1e-4 * np.abs(expected).max())


def test_the_gguf_head_is_read_as_the_official_package_reads_it(llama: Path) -> None:
    path = next((llama / "gguf-Q8_0").glob("*.gguf"))
    header, official = read_gguf_header(path), gguf.GGUFReader(path)
    assert [(t.name, t.type, list(t.shape), t.nbytes) for t in header.tensors] == [
        (t.name, t.tensor_type.name, [int(size) for size in t.shape], int(t.n_bytes)) for t in official.tensors
    ]
    for key, value in header.metadata.items():
        assert official.fields[key].contents() == value


def test_the_gguf_package_carries_what_its_ecosystem_expects(llama: Path) -> None:
    folder = llama / "gguf-Q8_0"
    assert (folder / "tiny-llama-Q8_0.gguf").is_file()
    metadata = read_gguf_header(folder / "tiny-llama-Q8_0.gguf").metadata
    assert metadata["general.name"] == "tiny-llama"
    assert "<|im_start|>" in str(metadata["tokenizer.chat_template"])
    modelfile = (folder / "Modelfile").read_text()
    assert "FROM ./tiny-llama-Q8_0.gguf" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "PARAMETER num_ctx 256" in modelfile  # all that the model was trained for


def test_the_genai_package_is_a_standard_genai_folder(llama: Path) -> None:
    folder = llama / "onnx-int4-rtn-g32"
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "model.onnx"
    assert (folder / "tokenizer.json").is_file()
    weights = read_package(folder).lowered.weights
    assert weights.types["int4-block32"] > 0.9 * sum(weights.types.values())
    assert 4.5 < weights.effective_bits_per_weight < 6


def test_a_swapped_tensor_is_noticed(made: Path, llama: Path, edgec_here: Run, tmp_path: Path) -> None:
    """The check that matters: a package of another model, its manifest and hashes in order, must not pass."""
    other = tmp_path / "model"
    config = transformers.AutoConfig.from_pretrained(made / "llama" / "model")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(made / "llama" / "model", config=config)
    with torch.no_grad():
        first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
        kept = first.q_proj.weight.clone()
        first.q_proj.weight.copy_(second.q_proj.weight)
        second.q_proj.weight.copy_(kept)
    model.save_pretrained(other)
    for file in (made / "llama" / "model").iterdir():
        if not (other / file.name).exists():
            (other / file.name).write_bytes(file.read_bytes())
    assert edgec_here("build", other, "-r", "onnx:fp32", "-o", tmp_path / "out").returncode == 0
    manifest = tmp_path / "out" / "onnx-fp32" / "package.json"
    document = json.loads(manifest.read_text())
    document["model"] = json.loads((llama / "onnx-fp32" / "package.json").read_text())["model"]
    manifest.write_text(json.dumps(document))
    done = edgec_here("verify", tmp_path / "out" / "onnx-fp32", "--model", made / "llama" / "model")
    assert_refused(done, 1, "onnx:fp32", "was not lowered right", "its own stored weights compute")


def test_another_tokenizer_is_noticed_by_the_string(llama: Path, edgec_here: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama / "onnx-fp32", tmp_path / "onnx-fp32"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    document = json.loads((folder / "package.json").read_text())
    content = (folder / "tokenizer.json").read_bytes()
    document["files"]["tokenizer.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "nbytes": len(content)}
    (folder / "package.json").write_text(json.dumps(document))
    assert_refused(edgec_here("verify", folder), 1, "tokenizer", "'")
    names = misses_of(folder)
    assert_refused(edgec_here("verify", folder, "--allow", "text"), 2, "accepts nothing")
    assert_refused(edgec_here("verify", folder, *names[2:]), 1, f"--allow {names[1]} accepts this check")
    assert edgec_here("verify", folder, *names).returncode == 0
    assert verification_of(folder).accepted == tuple(sorted(set(names[1::2])))
    assert read_package(folder).allowed == (), "the package itself never changes"


def test_an_onnx_package_says_nothing_of_the_repository_that_it_was_built_within(llama: Path) -> None:
    import onnx
    import onnxruntime_genai

    document = onnx.load(str(llama / "onnx-fp32" / "model.onnx"), load_external_data=False)
    assert document.producer_version == f"{onnxruntime_genai.__version__}+{onnxruntime_genai.__commit__[:7]}"


def test_what_was_found_of_another_build_in_the_folder_does_not_count(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama / "gguf-Q8_0", tmp_path / "gguf-Q8_0"))
    assert read_verification(read_package(folder)) is not None
    document = json.loads((folder / "package.json").read_text())
    (folder / "package.json").write_text(json.dumps({**document, "tools": {"other": "1"}}))
    assert read_verification(read_package(folder)) is None


def test_an_architecture_that_a_target_does_not_take_is_refused_with_those_that_it_does(made: Path, edgec: Run) -> None:
    done = edgec("build", made / "gpt2" / "model", "-r", "onnx:fp32", "-o", made / "never")
    assert_refused(done, 2, "GPT2LMHeadModel", "LlamaForCausalLM")
    assert not (made / "never").exists()


@pytest.mark.parametrize("recipe", ["gguf:F16", "onnx:fp32"])
def test_a_context_that_no_layer_would_look_back_is_refused(
    smollm2: Model, edgec_here: Run, tmp_path: Path, recipe: str
) -> None:
    folder = tiny.save_decoder("mistral", smollm2.folder, tmp_path / "model")
    done = edgec_here("build", folder, "-r", recipe, "--context-length", 64, "-o", tmp_path / "out")
    assert_refused(done, 2, "look back 8 tokens", "--context-length 8")
    assert not (tmp_path / "out").exists()


def test_local_and_global_layers_keep_their_rotary_bases(smollm2: Model, edgec_here: Run, tmp_path: Path) -> None:
    folder = tiny.save_decoder("gemma3", smollm2.folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    bases = {kind: rotary["rope_theta"] for kind, rotary in config["rope_parameters"].items()}
    assert bases["sliding_attention"] != bases["full_attention"]
    done = edgec_here("build", folder, "-r", "onnx:fp32", "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    # The passages are longer than the window, and each is scored from an empty cache.
    assert figures_of(tmp_path / "out" / "onnx-fp32")["mean_kl"] < 1e-9


def test_a_vocabulary_that_only_sentencepiece_could_give_is_asked_for(
    made: Path, edgec_here: Run, tmp_path: Path
) -> None:
    done = edgec_here("build", made / "gemma" / "model", "-r", "gguf:F16", "-o", tmp_path / "out")
    assert_refused(done, 2, "tokenizer.model", "original repository")


def test_a_scheme_that_does_not_fit_the_rows_fails_unless_allowed(made: Path, edgec: Run, tmp_path: Path) -> None:
    name = ("--name", "tiny-llama")
    done = edgec("build", made / "llama" / "model", "-r", "gguf:Q4_K_M", "-o", tmp_path / "out", *name)
    assert_refused(done, 1, "gguf:Q4_K_M", "rows of 128", "gguf:Q4_0", "--allow type-fallback")
    assert "convert" not in done.stderr  # the shapes tell it before any work
    assert not (tmp_path / "out").exists()
    done = edgec(
        "build",
        made / "llama" / "model",
        "-r",
        "gguf:Q4_K_M",
        "-o",
        tmp_path / "out",
        "--allow",
        "type-fallback",
        *name,
    )
    assert done.returncode == 0, done.stderr
    package = read_package(tmp_path / "out" / "gguf-Q4_K_M")
    assert package.allowed == ("type-fallback",)
    assert any(deviation.forced for deviation in package.lowered.weights.deviations)


def test_half_precision_and_shards_are_read(smollm2: Model, edgec_here: Run, tmp_path: Path) -> None:
    folder = tiny.save_decoder("llama", smollm2.folder, tmp_path / "model", dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    context = ("--context-length", 128)
    done = edgec_here("build", folder, "-r", "gguf:BF16", *context, "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PARAMETER num_ctx 128" in (tmp_path / "out" / "gguf-BF16" / "Modelfile").read_text()
    told = json.loads(edgec_here("inspect", folder, "--json").stdout)
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert told["geometry"]["kv_heads"] == 2
    assert {row["target"]: bool(row["schemes"]) for row in told["targets"]} == {
        "gguf": True,
        "onnx": True,
        "gptq": True,
        "coreml": True,
        "tflite": True,
        "neo": False,
        "neuron": True,
    }
