"""package.json says what a package is and proves that it is whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.digest import digest_file
from compiler.errors import CheckFailed, UnusableInput
from compiler.package import (
    MANIFEST,
    Deviation,
    FileRecord,
    FixedShapes,
    Graph,
    Lowered,
    ModelIdentity,
    Package,
    Platform,
    Port,
    StoredWeights,
    Unfinished,
    check_files,
    manifest_json,
    read_package,
    write_manifest,
)

_text = st.text(st.characters(codec="utf-8"), max_size=12)
_printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
_names = st.from_regex(r"[A-Za-z0-9_]{1,8}(/[A-Za-z0-9_.]{1,8})?", fullmatch=True).filter(lambda name: ".." not in name)
_ports = st.lists(st.builds(Port, _text, _text, st.lists(st.integers(0, 9) | _text, max_size=3).map(tuple)), max_size=3)
_packages = st.builds(
    Package,
    folder=st.just(Path("unused")),
    model=st.builds(
        ModelIdentity,
        _printable,
        _printable,
        _text,
        _text,
        _text,
        st.integers(0),
        st.none() | _text,
        st.lists(_text).map(tuple),
    ),
    recipe=_printable,
    recipe_full=st.dictionaries(_text, st.none() | st.integers() | _text, max_size=3),
    lowered=st.builds(
        Lowered,
        _text,
        st.lists(
            st.builds(
                Graph,
                _text,
                st.lists(_names, min_size=1, max_size=3).map(tuple),
                _ports.map(tuple),
                _ports.map(tuple),
                _ports.map(tuple),
                st.none() | _text,
            ),
            min_size=1,
            max_size=2,
        ).map(tuple),
        st.builds(
            StoredWeights,
            st.floats(0, 64),
            st.dictionaries(_text, st.integers(0), max_size=3),
            st.lists(st.builds(Deviation, _text, _text, _text, st.booleans()), max_size=2).map(tuple),
            st.none() | st.integers(0),
        ),
        st.builds(FixedShapes, st.none() | st.integers(1), st.lists(st.integers(1), max_size=3).map(tuple)),
        st.none(),
        st.none() | st.builds(Platform, _text, _text),
        st.none() | st.builds(Unfinished, _text, _text),
    ),
    tools=st.dictionaries(_text, _text, max_size=3),
    files=st.dictionaries(_names, st.builds(FileRecord, _text, st.integers(0)), max_size=3),
    allowed=st.lists(_text, max_size=2).map(tuple),
)


def _with_its_files(package: Package) -> Package:
    """What is run is among the files."""
    run = {file: FileRecord("0" * 64, 1) for graph in package.lowered.graphs for file in graph.files}
    return replace(package, files={**package.files, **run})


@given(package=_packages.map(_with_its_files))
def test_a_manifest_is_read_back_as_it_was_written(package: Package, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("package")
    (folder / MANIFEST).write_text(manifest_json(package), encoding="utf-8")
    read = read_package(folder)
    assert replace(read, folder=package.folder) == package
    assert read.digest == package.digest
    assert manifest_json(read) == manifest_json(package)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "model.bin").write_bytes(b"weights")
    identity = ModelIdentity("m", "m", "0" * 64, "LlamaForCausalLM", "text-generation", 7, None, ())
    lowered = Lowered("llamacpp", (Graph("main", ("model.bin",), (), ()),), StoredWeights(8.0, {"Q8_0": 7}))
    files = {"model.bin": FileRecord(digest_file(tmp_path / "model.bin"), 7)}
    made = Package(tmp_path, identity, "gguf:Q8_0", {}, lowered, {}, files)
    write_manifest(made)
    return made


def test_a_whole_package_passes(package: Package) -> None:
    check_files(read_package(package.folder))


def test_a_flipped_bit_is_found(package: Package) -> None:
    (package.folder / "model.bin").write_bytes(b"weighus")
    with pytest.raises(CheckFailed, match=r"model\.bin"):
        check_files(package)


def test_a_missing_file_is_found(package: Package) -> None:
    (package.folder / "model.bin").unlink()
    with pytest.raises(CheckFailed, match="missing"):
        check_files(package)


def test_a_file_that_does_not_belong_is_found(package: Package) -> None:
    (package.folder / "extra.so").write_bytes(b"x")
    with pytest.raises(CheckFailed, match=r"extra\.so"):
        check_files(package)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_file_names_that_leave_the_folder_are_refused(package: Package, name: str) -> None:
    document = json.loads((package.folder / MANIFEST).read_text())
    document["files"][name] = {"sha256": "0", "nbytes": 0}
    (package.folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(UnusableInput, match="leaves"):
        read_package(package.folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graphs": []}, "names nothing that can be run"),
        ({"recipe": "gguf:Q8_0\nevil()"}, "control characters"),
        ({"files": {}}, "lists no such file"),
        ({"tools": {"a": 1}}, r"tools\.a is 1, not a string"),
        ({"surprise": 1}, "unknown field 'surprise'"),
    ],
)
def test_a_manifest_of_another_form_is_refused(change: dict[str, object], words: str, package: Package) -> None:
    document = json.loads((package.folder / MANIFEST).read_text())
    (package.folder / MANIFEST).write_text(json.dumps({**document, **change}))
    with pytest.raises(UnusableInput, match=words):
        read_package(package.folder)


def test_another_schema_version_is_refused(package: Package) -> None:
    document = json.loads((package.folder / MANIFEST).read_text()) | {"schema_version": 99}
    (package.folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(UnusableInput, match="99"):
        read_package(package.folder)
