"""Packages, models and results that say what edgec never wrote: nothing of them runs, and nothing passes in silence."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import Run, assert_refused
from kit_container import model_folder
from PIL import Image

from compiler.attention_windows import layer_windows, same_up_to
from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from compiler.model import Model
from compiler.package import FileRecord, check_files, read_package, write_manifest
from compiler.sentence import read_sentence_vector
from compiler.tokenizer import start_of_text_ids
from runtimes.kinds.encoding.inputs import require_tokenizer, text_to_inputs
from runtimes.kinds.encoding.pictures import picture_inputs
from targets.gguf.target import WINDOWS
from targets.onnx.windows import cache_slides, same_in_genai


@pytest.fixture(scope="module")
def built(smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile")
    tiny.save_decoder("llama", smollm2.folder, out / "llama")
    for name in ("bert-classify", "vit"):
        tiny.save_encoder(name, minilm_folder, out / name)
    for name, recipes in (
        ("llama", ("onnx:fp32", "gptq:int4-rtn-g32")),
        ("bert-classify", ("onnx:fp32",)),
        ("vit", ("onnx:fp32",)),
    ):
        words = [word for recipe in recipes for word in ("-r", recipe)]
        done = edgec_here("build", out / name, *words, "-o", out / f"{name}-out")
        assert done.returncode == 0, done.stdout + done.stderr
    return out


def _changed(package: Path, name: str, text: str, tmp_path: Path) -> Path:
    """A copy with another text in a file, and a manifest that says so."""
    folder = tmp_path / package.name
    shutil.copytree(package, folder)
    (folder / name).write_text(text)
    read = read_package(folder)
    record = FileRecord(digest_file(folder / name), (folder / name).stat().st_size)
    write_manifest(replace(read, files={**read.files, name: record}))
    return folder


@pytest.mark.parametrize(
    "setting",
    ['"custom_ops_library": "evil.so"', '"enable_profiling": "/tmp/PWNED"', '"config_entries": {"a": "b"}',
     '"provider_options": [{"evil": {}}]'],
)  # fmt: skip
def test_settings_of_genais_that_no_package_has_are_refused(
    setting: str, built: Path, edgec: Run, tmp_path: Path
) -> None:
    package = built / "llama-out" / "onnx-fp32"
    text = (package / "genai_config.json").read_text()
    told = json.loads(text)
    told["model"]["decoder"]["session_options"] |= json.loads(f"{{{setting}}}")
    folder = _changed(package, "genai_config.json", json.dumps(told), tmp_path / "once")
    for command in (("verify", folder), ("run", folder, "-p", "a"), ("bench", folder, "--rounds", 1)):
        assert_refused(edgec(*command), 2, "Refused", "no package of edgec's has")
    assert_refused(edgec("kit", folder, "--for", "sagemaker", "-o", tmp_path / "kit"), 2, "no package of edgec's has")
    # Python reads the last of two, GenAI both.
    twice = text.replace('"session_options": {', f'"session_options": {{{setting}}}, "session_options": {{', 1)
    folder = _changed(package, "genai_config.json", twice, tmp_path / "twice")
    assert_refused(edgec("verify", folder), 2, "'session_options' twice")


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(UnusableInput, match="'a' twice"):
        parse_json('{"b": [{"a": 1, "a": 2}]}', "x.json")


@pytest.mark.parametrize("name", ["bert-classify", "vit"])
def test_what_a_package_says_is_no_code_of_its_kit(name: str, built: Path, edgec_here: Run, tmp_path: Path) -> None:
    package = built / f"{name}-out" / "onnx-fp32"
    config = json.loads((package / "config.json").read_text())
    ran = tmp_path / "ran"
    config["problem_type"] = f"'+str(open({str(ran)!r},'w'))+'"
    config["id2label"] = {**config["id2label"], "0": f'"+str(open({str(ran)!r},"w"))+"\U0001f50e'}
    folder = _changed(package, "config.json", json.dumps(config), tmp_path)
    done = edgec_here("kit", folder, "--for", "sagemaker", "-o", tmp_path / "kit")
    assert done.returncode == 0, done.stderr
    handler = model_folder(tmp_path / "kit", tmp_path) / "code" / "inference.py"
    spec = importlib.util.spec_from_file_location("hostile_handler", handler)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not ran.exists() and module.PROBLEM is None and module.LABELS[0].endswith("\U0001f50e")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_implementation": "kernels-community/flash-attn"}, ("flash-attn",)),
        ({"num_hidden_layers": 1_000_000}, ("layers 1,000,000",)),
        ({"vocab_size": 2_000_000_000}, ("vocabulary 2,000,000,000",)),
        ({"hidden_act": 5}, ("hidden_act",)),
    ],
)
def test_a_gptq_package_is_held_to_what_a_model_is(
    changes: dict[str, Any], words: tuple[str, ...], built: Path, edgec: Run, tmp_path: Path
) -> None:
    package = built / "llama-out" / "gptq-int4-rtn-g32"
    config = json.loads((package / "config.json").read_text()) | changes
    folder = _changed(package, "config.json", json.dumps(config), tmp_path)
    assert_refused(edgec("run", folder, "-p", "a", "-n", 2), 2, *words)


def test_a_file_that_is_not_hashed_belongs_to_no_package(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(built / "bert-classify-out" / "onnx-fp32", folder)
    check_files(read_package(folder))
    (folder / ".verification.json-abcd_123").write_text("being written")
    check_files(read_package(folder))
    (folder / ".verification.json-x").mkdir()
    (folder / ".verification.json-x" / "model.onnx").write_bytes(b"x")
    with pytest.raises(Exception, match="does not belong to the package"):
        check_files(read_package(folder))


def test_a_photo_is_turned_as_it_says(built: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    upright, turned = Image.fromarray(pixels), Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, picture, more in (("a.png", upright, {}), ("b.png", turned, {"exif": exif})):
        data = io.BytesIO()
        picture.save(data, "PNG", **more)
        (tmp_path / name).write_bytes(data.getvalue())
    package = read_package(built / "vit-out" / "onnx-fp32")
    first, second = (picture_inputs(package, tmp_path / name)["pixel_values"] for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(first, second)


def _decoder(layers: int = 4, **config: Any) -> Any:
    return SimpleNamespace(config=config, geometry=SimpleNamespace(layers=layers), is_decoder=True)


@pytest.mark.parametrize(
    ("config", "windows", "llamacpp", "genai"),
    [
        ({"model_type": "llama"}, (None,) * 4, None, None),
        ({"model_type": "llama", "sliding_window": 8}, (None,) * 4, None, 8),
        ({"model_type": "mistral", "sliding_window": 8}, (8,) * 4, 8, 8),
        ({"model_type": "mistral", "sliding_window": None}, (None,) * 4, None, None),
        ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2},
         (None, 8) * 2, 8, 8),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, (None,) * 4, None, None),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
         (None, None, 8, 8), 8, 8),
        ({"model_type": "gemma2", "sliding_window": 8}, (8, None) * 2, None, None),
        ({"model_type": "gemma2", "sliding_window": 8, "layer_types": ["full_attention"] * 4}, (None,) * 4, 8, None),
        ({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 6}, (8,) * 4, None, None),
        ({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2}, (8, None) * 2, 8, None),
        ({"model_type": "cohere2"}, (4096, 4096, 4096, None), None, 4096),
    ],
)  # fmt: skip
def test_windows_are_those_of_each_layer_and_held_to_the_runtimes(
    config: dict[str, Any], windows: tuple[int | None, ...], llamacpp: int | None, genai: int | None
) -> None:
    model = _decoder(**config)
    assert (layer_windows(model), same_up_to(model, WINDOWS), same_in_genai(model)) == (windows, llamacpp, genai)


def test_windows_are_those_of_transformers() -> None:
    import transformers

    for made in (
        transformers.Gemma3TextConfig(num_hidden_layers=7, sliding_window=512),
        transformers.Gemma2Config(num_hidden_layers=4),
        transformers.Cohere2Config(num_hidden_layers=5),
        transformers.Qwen3Config(num_hidden_layers=4, use_sliding_window=True, sliding_window=64, max_window_layers=2),
    ):
        own = json.loads(made.to_json_string(use_diff=False))
        wanted = tuple(made.sliding_window if each == "sliding_attention" else None for each in made.layer_types or ())
        layers = made.num_hidden_layers
        without = {name: value for name, value in own.items() if name != "layer_types"}
        assert layer_windows(_decoder(layers, **own)) == layer_windows(_decoder(layers, **without)) == wanted
    assert not cache_slides(_decoder(model_type="gemma2", sliding_window=4096), 2048)
    assert cache_slides(_decoder(model_type="gemma2", sliding_window=512), 2048)


def test_a_process_without_standard_input_ends_in_a_sentence(built: Path) -> None:
    script = Path(sys.executable).with_name("edgec")
    command = f'"{script}" run "{built / "llama-out" / "onnx-fp32"}" -p - <&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Standard input is empty" in done.stderr, done.stderr


@pytest.mark.parametrize("threads", ["100000", "99999999999999999999"])
def test_more_threads_than_a_system_has_are_refused(threads: str, built: Path, edgec: Run) -> None:
    done = edgec("run", built / "llama-out" / "onnx-fp32", "-p", "a", "--threads", threads)
    assert done.returncode == 2 and "1<=x<=1024" in done.stderr


def test_a_template_that_does_not_end_is_refused_before_genai_has_it(built: Path, edgec: Run, tmp_path: Path) -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    package = built / "llama-out" / "onnx-fp32"
    config = json.loads((package / "tokenizer_config.json").read_text()) | {"chat_template": loops}
    folder = _changed(package, "tokenizer_config.json", json.dumps(config), tmp_path)
    if (folder / "chat_template.jinja").is_file():
        folder = _changed(folder, "chat_template.jinja", loops, tmp_path / "jinja")
    assert_refused(edgec("run", folder, "-p", "hi", "-n", 2), 2, "does not end within")


@pytest.mark.parametrize("template", ["{{ messages.nope.nope }}", "{% for m in messages %}"])
def test_a_damaged_template_is_told(template: str, built: Path, edgec: Run, edgec_here: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(built / "llama", model)
    (model / "chat_template.jinja").write_text(template)
    done = edgec_here("build", model, "-r", "gguf:F32", "-o", tmp_path / "out", "--verify")
    # llama.cpp reads the template when it opens the file, and evaluates it later.
    told = (1, "takes no conversation") if "nope" in template else (2, "is damaged")
    assert done.returncode == told[0] and told[1] in done.stdout + done.stderr
    assert edgec_here("build", model, "-r", "gguf:F32", "-o", tmp_path / "out").returncode == 0
    assert_refused(edgec("run", tmp_path / "out" / "gguf-F32", "-p", "hi", "-n", 2), 2, "chat template")


def test_modules_of_a_models_own_code_are_refused(tmp_path: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnusableInput, match="code of the model's own"):
        read_sentence_vector(tmp_path, 8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_cut_at_the_side_that_the_tokenizer_says(side: str, built: Path, tmp_path: Path) -> None:
    package = built / "bert-classify-out" / "onnx-fp32"
    config = json.loads((package / "tokenizer_config.json").read_text())
    config |= {"truncation_side": side, "model_input_names": ["input_ids", "attention_mask"]}
    read = read_package(_changed(package, "tokenizer_config.json", json.dumps(config), tmp_path))
    session: Any = SimpleNamespace(longest_sequence=6, fixed_sequence_length=None, tokenize=lambda text: None)
    words = "the sea is green and the river north"
    told: list[str] = []
    ids = text_to_inputs(read, session, words, told.append)["input_ids"][0].tolist()
    whole = require_tokenizer(read).encode(words).ids
    assert ids == ([whole[0], *whole[-5:]] if side == "left" else [*whole[:5], whole[-1]])
    assert f"only the {'last' if side == 'left' else 'first'} part" in told[0]
    session.longest_sequence = 64
    assert not text_to_inputs(read, session, "the sea", told.append, "a river")["token_type_ids"].any()


def test_all_that_a_tokenizer_puts_before_a_text_counts() -> None:
    class Tokenizer:
        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            own = [7] if text else []
            return {"input_ids": [1, 2, *own, 3] if add_special_tokens else own}

    assert start_of_text_ids(Tokenizer()) == [1, 2]
