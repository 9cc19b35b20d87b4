"""Kits of LiteRT packages: Kotlin that parses, and a script that runs where nothing but the runtime's wheels is."""

from __future__ import annotations

import filecmp
import importlib
import json
import subprocess
import sys
import venv
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tiny
import tree_sitter_kotlin
from conftest import Run, assert_refused
from grammar import errors_of

from compiler.errors import UnusableInput
from compiler.kit import write_kit
from compiler.model import Model
from compiler.package import read_package
from runtimes.registry import open_session
from targets.registry import KITS
from targets.tflite import kit_android


@pytest.fixture(scope="module")
def packages(minilm_folder: Path, smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kits")
    tiny.save_encoder("vit", minilm_folder, root / "vit")
    tiny.save_decoder("llama", smollm2.folder, root / "tiny-llama")
    for model, name in ((minilm_folder, "texts"), (root / "vit", "pictures"), (root / "tiny-llama", "chat")):
        more = ("-r", "tflite:int8+lengths") if name == "texts" else ()
        done = edgec_here("build", model, "-r", "tflite:int8", *more, "--sequence-length", 32, "-o", root / name)
        assert done.returncode == 0, done.stderr
    return root


def test_the_parser_sees_what_is_no_kotlin() -> None:
    assert errors_of("class A { val = }", tree_sitter_kotlin.language())
    assert not errors_of("class A {\n    val b = 1\n}", tree_sitter_kotlin.language())


@pytest.mark.parametrize(
    ("name", "asset", "words"),
    [
        ("chat", "model.litertlm", ("class TinyLlamaKit", "litertlm.Engine", "maxNumTokens: Int = 256", "fun ask(")),
        ("texts", "model.tflite", ("inputIds: IntArray", "writeInt(inputIds)", '"sentence_embedding" to outputs')),
        ("pictures", "model.tflite", ("pixelValues: FloatArray", "1 x 3 x 32 x 32")),
    ],
)
def test_an_android_kit_parses_and_holds_the_package(
    name: str, asset: str, words: tuple[str, ...], packages: Path, edgec_here: Run, tmp_path: Path
) -> None:
    package = packages / name / "tflite-int8"
    done = edgec_here("kit", package, "--for", "android", "-o", tmp_path / "kit", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert {"build.gradle.kts", "README.md", "src/main/AndroidManifest.xml"} <= set(files)
    (wrapper,) = (file for file in files if file.endswith(".kt"))
    source = (tmp_path / "kit" / wrapper).read_text()
    assert errors_of(source, tree_sitter_kotlin.language()) == []
    assert errors_of((tmp_path / "kit" / "build.gradle.kts").read_text(), tree_sitter_kotlin.language()) == []
    for word in words:
        assert word in source
    assert filecmp.cmp(tmp_path / "kit" / "src" / "main" / "assets" / asset, package / asset, shallow=False)
    # The first kit that takes the package.
    again = edgec_here("kit", package, "-o", tmp_path / "again", "--json")
    assert json.loads(again.stdout)["files"] == files


def _bare(folder: Path, kit: Path) -> Path:
    """The Python of an environment that has what the kit's requirements name, from this environment, and nothing else."""
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for line in (kit / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert metadata.version(name) == version
        for file in metadata.files(name) or []:
            top = Path(str(file)).parts[0]
            if top not in ("..", "bin") and not (site / top).exists():
                (site / top).symlink_to(Path(str(file.locate())).parents[len(Path(str(file)).parts) - 2])
    return folder / "bin" / "python"


def test_the_script_of_a_kit_chats_with_the_runtimes_wheel_alone(
    packages: Path, edgec_here: Run, tmp_path: Path
) -> None:
    assert (
        edgec_here("kit", packages / "chat" / "tflite-int8", "--for", "python", "-o", tmp_path / "kit").returncode == 0
    )
    script = tmp_path / "kit" / "run.py"
    # The model never ends a text by itself.
    script.write_text(script.read_text().replace("TOKENS = 256", "TOKENS = 64"))
    assert len(script.read_text().splitlines()) <= 35
    python = _bare(tmp_path / "venv", tmp_path / "kit")
    missing = subprocess.run([python, "-c", "import numpy"], capture_output=True, check=False)
    assert missing.returncode != 0
    done = subprocess.run([python, script, "Is it?"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    (cache,) = (tmp_path / "kit").glob("cache-*")
    assert list(cache.iterdir())


@pytest.mark.parametrize(("package", "times"), [("tflite-int8", 1), ("tflite-int8-lengths", 10)])
def test_the_script_of_a_kit_gives_what_the_package_gives(
    package: str, times: int, packages: Path, edgec_here: Run, tmp_path: Path
) -> None:
    folder = packages / "texts" / package
    assert edgec_here("kit", folder, "--for", "python", "-o", tmp_path / "kit").returncode == 0
    python = _bare(tmp_path / "venv", tmp_path / "kit")
    text = " ".join(["A child is playing with a ball."] * times)
    done = subprocess.run([python, tmp_path / "kit" / "run.py", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["sentence_embedding"]
    ran = edgec_here("run", folder, "-p", text, "--json")
    assert ran.returncode == 0, ran.stderr
    (own,) = json.loads(ran.stdout)
    assert np.allclose(told, own, atol=1e-6)


def test_a_class_for_android_calls_one_signature(packages: Path, edgec_here: Run, tmp_path: Path) -> None:
    package = packages / "texts" / "tflite-int8-lengths"
    done = edgec_here("kit", package, "--for", "android", "-o", tmp_path / "kit")
    assert_refused(done, 2, "several lengths", "+lengths")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("name", 'tiny"""; print(1); """'),
        ("name", "tiny /* never closed"),
        ("recipe", "tflite:int8`. */ val stolen = 1 /* `"),
        ("port", 'a" to x(), "b'),
    ],
)
@pytest.mark.parametrize("system", ["android", "python"])
def test_what_a_package_says_does_not_become_code(
    field: str, text: str, system: str, packages: Path, tmp_path: Path
) -> None:
    package = read_package(packages / "texts" / "tflite-int8")
    if field == "name":
        changed = replace(package, model=replace(package.model, name=text))
    elif field == "recipe":
        changed = replace(package, recipe=text)
    else:
        graph = package.lowered.main
        port = replace(graph.inputs[0], name=text)
        changed = replace(package, lowered=replace(package.lowered, graphs=(replace(graph, inputs=(port,)),)))
    fill = importlib.import_module(next(kit.module for kit in KITS if kit.system == system)).fill_kit
    with pytest.raises(UnusableInput, match="Build"):
        write_kit(changed, tmp_path / "kit", fill)
    assert not (tmp_path / "kit").exists()


def test_a_port_of_an_unknown_type_is_refused(packages: Path, tmp_path: Path) -> None:
    package = read_package(packages / "texts" / "tflite-int8")
    port = replace(package.lowered.main.inputs[0], dtype="float33")
    graph = replace(package.lowered.main, inputs=(port,))
    changed = replace(package, lowered=replace(package.lowered, graphs=(graph,)))
    with pytest.raises(UnusableInput, match="has the type 'float33'"):
        write_kit(changed, tmp_path / "kit", kit_android.fill_kit)


def test_what_a_kit_does_not_fit_is_refused(packages: Path, edgec: Run, tmp_path: Path) -> None:
    package = packages / "pictures" / "tflite-int8"
    assert_refused(edgec("kit", package, "--for", "python", "-o", tmp_path / "kit"), 2, "pictures", "texts")
    assert_refused(edgec("kit", package, "--for", "ios", "-o", tmp_path / "kit"), 2, "litert", "android, python")
    assert not (tmp_path / "kit").exists()
    assert sys.version_info >= (3, 11) and open_session(read_package(package), 1).input_names == ("pixel_values",)
