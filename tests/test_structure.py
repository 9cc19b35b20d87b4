"""What the design promises of the code itself: imports one way, nothing heavy for --help, names that nobody can shadow."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Run

_ROOT = Path(__file__).parent.parent
_ROOMS = ("compiler", "targets", "runtimes", "benchmarks")
_MAY_IMPORT = {
    "compiler": {"compiler"},
    "targets": {"compiler", "targets"},
    "runtimes": {"compiler", "runtimes"},
    "benchmarks": {"compiler", "runtimes", "benchmarks"},
}
_HEAVY = (
    "torch",
    "transformers",
    "onnxruntime",
    "onnxruntime_genai",
    "llama_cpp",
    "onnx",
    "tvm",
    "litert_torch",
    "coremltools",
    "plotly",
)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def _sources(room: str) -> list[Path]:
    return sorted((_ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", _ROOMS)
def test_imports_point_one_way(room: str) -> None:
    for path in _sources(room):
        if path.is_relative_to(_ROOT / "compiler" / "cli") or path.is_relative_to(_ROOT / "benchmarks" / "peers"):
            continue
        rooms = {name.split(".")[0] for name in _imports(path)} & set(_ROOMS)
        assert rooms <= _MAY_IMPORT[room], path


@pytest.mark.parametrize("room", ["targets", "runtimes"])
def test_no_target_imports_another_and_no_runtime_another(room: str) -> None:
    families = {
        "targets": ("gguf", "onnx", "coreml", "tflite", "neo"),
        "runtimes": ("llamacpp", "ortgenai", "litert", "tvm", "torch"),
    }
    for path in _sources(room):
        own = next((name for name in families[room] if path.stem.startswith(name)), None)
        for name in _imports(path):
            parts = name.split(".")
            if own and parts[0] == room and len(parts) > 1:
                other = next((family for family in families[room] if parts[1].startswith(family)), None)
                assert other in (None, own), f"{path} imports {name}"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, compiler.cli.main as m; m.cli(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert not loaded & {*_HEAVY, "numpy", "rich", "huggingface_hub"}


def test_every_command_has_help(edgec: Run) -> None:
    from compiler.cli.main import COMMANDS

    listed = edgec("--help").stdout
    for name, _ in COMMANDS:
        assert f"  {name} " in listed
        assert edgec(name, "--help").returncode == 0


def test_a_users_own_folders_of_our_names_are_never_imported(tmp_path: Path, edgec: Run, minilm_folder: Path) -> None:
    for room in (*_ROOMS, "tests", "examples"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = edgec("build", minilm_folder, "-r", "onnx:fp32", "--name", "shadowed", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert edgec("verify", "out/onnx-fp32", cwd=tmp_path).returncode == 0
    assert edgec("bench", "out/onnx-fp32", "--rounds", 1, cwd=tmp_path).returncode == 0


def test_no_dependency_ships_a_package_of_our_names() -> None:
    owners = metadata.packages_distributions()
    for room in _ROOMS:
        assert set(owners.get(room, [])) <= {"edgec"}, room


def test_no_room_has_a_god_file() -> None:
    for room in _ROOMS:
        for path in _sources(room):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
