"""What the design promises of the code itself: imports one way, nothing heavy for --help, names that nobody can shadow."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Run

from compiler.cli.main import COMMANDS
from compiler.task import TASKS
from runtimes.devices.registry import DEVICES
from runtimes.registry import RUNTIMES
from targets.registry import TARGETS

_ROOT = Path(__file__).parent.parent
_ROOMS = ("compiler", "targets", "runtimes", "benchmarks")
_MAY_USE = {
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
# A module of ours in a string: what a stage calls, what a process is started with, what a registry names.
_IN_STRING = re.compile(rf"({'|'.join(_ROOMS)})(\.\w+)+(:\w+)?")


def _sources(folder: str) -> list[Path]:
    return sorted((_ROOT / folder).rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _uses(path: Path) -> Iterator[str]:
    """Every module of ours that a file names: imported, `from targets import onnx` too, or in a string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _IN_STRING.fullmatch(node.value):
            yield node.value.split(":")[0]


# Beside the runtimes themselves, what they and their users share.
_SHARED_BY_RUNTIMES = {
    "context", "stored", "devices", "kinds", "lengths", "registry", "session", "text", "verify", "workload",
}  # fmt: skip
_FAMILIES = _ROOT / "compiler" / "networks" / "families"


def _rooms_used(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _uses(path)} & {*_ROOMS, "edgec"}


def test_uses_are_seen_in_whatever_form_they_are_written(tmp_path: Path) -> None:
    forms = (
        "import targets.onnx.codes",
        "from targets import onnx",
        "from targets.onnx import codes",
        "x = 'targets.onnx.codes:f'",
    )
    for form in forms:
        (tmp_path / "file.py").write_text(form)
        assert any(name.startswith("targets.onnx") for name in _uses(tmp_path / "file.py")), form


@pytest.mark.parametrize("room", _ROOMS)
def test_uses_point_one_way(room: str) -> None:
    above = [_ROOT / "compiler" / "cli", _ROOT / "benchmarks" / "peers"]
    for path in _sources(room):
        if not any(path.is_relative_to(folder) for folder in above):
            assert _rooms_used(path) <= _MAY_USE[room], path


def _families(modules: list[str]) -> list[str]:
    """The folder of a module in one of its own, `targets.onnx` of `targets.onnx.target`, or the module itself."""
    return [".".join(name.split(".")[:2]) if name.count(".") > 1 else name for name in modules]


@pytest.mark.parametrize(
    ("room", "families", "shared"),
    [
        ("targets", _families([module for _, module in TARGETS]), {"registry", "aws"}),
        ("runtimes", _families([each.module for each in RUNTIMES]), _SHARED_BY_RUNTIMES),
        ("runtimes/kinds", [f"runtimes.kinds.{task.kind}" for task in TASKS], {"kind", "outputs"}),
        ("runtimes/devices", [module for _, module in DEVICES], {"board", "device", "emulated", "profile", "registry"}),
        ("compiler/networks/families", [_module(path) for path in _FAMILIES.glob("[a-z]*.py")], set()),
    ],
)
def test_what_is_sealed_uses_nothing_of_its_siblings(room: str, families: list[str], shared: set[str]) -> None:
    """No target uses another, no runtime, kind, transport or family either, and each that is there is in its registry."""
    there = {path.stem for path in (_ROOT / room).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == {name.split(".")[-1] for name in families} | shared

    def family_of(name: str) -> str | None:
        return next((each for each in families if f"{name}.".startswith(f"{each}.")), None)

    for path in _sources(room):
        own = family_of(_module(path))
        others = {family_of(name) for name in _uses(path)} - {None, own}
        # A registry names all of them; nobody else names one that is not its own.
        assert not others or path.name == "registry.py", f"{path} uses {others}"


def test_only_the_command_line_and_python_see_everything() -> None:
    for room in _ROOMS:
        for path in _sources(room):
            if not path.is_relative_to(_ROOT / "compiler" / "cli"):
                assert "edgec" not in _rooms_used(path), path


def test_every_function_that_a_string_names_is_there() -> None:
    found = 0
    for path in [path for room in _ROOMS for path in _sources(room)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or ":" not in node.value:
                continue
            if _IN_STRING.fullmatch(node.value) is None:
                continue
            module, name = node.value.split(":")
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None, f"{path}: {node.value}"
            tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}, node.value
            found += 1
    assert found > 15


def _loaded(code: str) -> set[str]:
    code += "; import sys; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    loaded = _loaded("import compiler.cli.main as m; m.cli(['--help'], standalone_mode=False)")
    assert not loaded & {*_HEAVY, "numpy", "rich", "huggingface_hub"}


def test_importing_the_python_face_and_every_target_imports_nothing_heavy() -> None:
    code = (
        "import edgec; from targets.registry import TARGET_NAMES, load_target; [load_target(n) for n in TARGET_NAMES]"
    )
    assert not _loaded(code) & {*_HEAVY, "rich", "huggingface_hub"}


def test_every_command_has_help(edgec: Run) -> None:
    files = {path.stem.removesuffix("_command") for path in (_ROOT / "compiler" / "cli").glob("*_command.py")}
    assert {name for name, _ in COMMANDS} == files
    listed = edgec("--help").stdout
    for name, _ in COMMANDS:
        assert f"  {name} " in listed
        assert edgec(name, "--help").returncode == 0


def test_a_users_own_folders_of_our_names_are_never_imported(tmp_path: Path, edgec: Run, minilm_folder: Path) -> None:
    for room in (*_ROOMS, "tests", "examples", "edgec"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = edgec("build", minilm_folder, "-r", "onnx:fp32", "--name", "shadowed", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert edgec("verify", "out/onnx-fp32", cwd=tmp_path).returncode == 0
    assert edgec("bench", "out/onnx-fp32", "--rounds", 1, cwd=tmp_path).returncode == 0


def test_no_dependency_ships_a_package_of_our_names() -> None:
    owners = metadata.packages_distributions()
    for room in (*_ROOMS, "edgec"):
        assert set(owners.get(room, [])) <= {"edgec"}, room


def test_no_room_has_a_god_file() -> None:
    for path in [_ROOT / "edgec.py", *(path for room in _ROOMS for path in _sources(room))]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
