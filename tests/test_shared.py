"""What machines share, over S3 (moto's server, which speaks its protocol): the store of a matrix, and results of stages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import cluster
from conftest import Run, assert_refused
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import edgec
from benchmarks.matrix.cell import Cell
from benchmarks.matrix.store import Store
from compiler.cli.fleet.run import Work, run_on_cluster
from compiler.cli.fleet.work import BuildOrder, MeasureOrder
from compiler.errors import UnusableInput
from compiler.inputs.identity import digest_model
from compiler.quantize.options import QuantizationOptions
from compiler.recipe import Shapes
from compiler.shared_folder import SharedFolder
from compiler.stages import executor
from compiler.stages import shared as shared_module
from compiler.stages.cache import find_entry, new_entry_folder, store_entry
from compiler.stages.shared import bring_entry, require_shared, share_entry
from runtimes.workload import Workload

_SERVER = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 of its own, in a process of its own, with the bucket `fleet`."""
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        port = next(line for line in server.stdout if line.startswith("port ")).split()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of a bucket, and the environment that leads there."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name, value in _KEYS.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if not files.exists("fleet"):
        files.mkdir("fleet")
    yield f"s3://fleet/{request.node.name[:40]}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def package(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> edgec.Package:
    built = edgec.build(str(tiny_models / "bert"), ["coreml:int4-rtn-g32"], tmp_path_factory.mktemp("p")).packages[0]
    return edgec.open_package(built.folder)


def test_packages_and_texts_come_back_from_s3_whole(bucket: str, package: edgec.Package, tmp_path: Path) -> None:
    store = Store(bucket)
    name = store.put_package(package)
    assert store.put_package(package) == name and store.has_package(name)
    brought = store.get_package(name, tmp_path)
    assert brought.digest == package.digest and brought.folder.is_relative_to(tmp_path)
    store.write("results/a.json", "one")
    store.write("results/a.json", "two")
    assert store.read("results/a.json") == "two"
    store.remove("results/a.json")
    assert store.read("results/a.json") is None
    with pytest.raises(UnusableInput, match="no package"):
        store.get_package("packages/never", tmp_path)


def test_what_another_machine_wrote_is_seen_at_once(bucket: str) -> None:
    """A file system that remembers listings would go on saying that there is none."""
    ours, theirs = SharedFolder(bucket), SharedFolder(bucket)
    assert not ours.exists("a/b") and ours.read("a/b") is None
    command = f"from compiler.shared_folder import SharedFolder; SharedFolder({bucket!r}).write('a/b', b'1')"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parent.parent)
    assert ours.exists("a/b") and theirs.read("a/b") == b"1"


def test_why_s3_cannot_be_used_is_a_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with pytest.raises(UnusableInput, match="no such place"):
        SharedFolder("s3://nobody-made-this/x").write("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnusableInput, match="nothing answers there"):
        SharedFolder(bucket).write("a", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnusableInput, match="no credentials"):
        SharedFolder(bucket).write("a", b"1")
    with pytest.raises(UnusableInput, match="no file system of that kind"):
        SharedFolder("carrier-pigeon://x").read("a")


def _machine(folder: Path, shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this is a machine with an empty cache of its own."""
    monkeypatch.setenv("EDGEC_CACHE", str(folder))
    monkeypatch.setenv("EDGEC_SHARED_CACHE", shared)


def test_a_stage_that_one_machine_has_done_is_not_done_on_another(
    bucket: str, tiny_models: Path, edgec_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("build", tiny_models / "llama", "-r", "gptq:int4-rtn-g32", "-r", "coreml:int4-rtn-g32", "--json", "-o")
    found = []
    for machine in ("one", "two"):
        _machine(tmp_path / f"cache-{machine}", bucket, monkeypatch)
        done = edgec_here(*command, tmp_path / machine)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    first, second = ({each["work"]: each["cached"] for each in report["stages"]} for report in found)
    assert first.keys() == second.keys() and len(first) > 1
    assert not any(first.values()) and all(second.values())
    assert [each["digest"] for each in found[0]["packages"]] == [each["digest"] for each in found[1]["packages"]]


def _entry(content: bytes) -> None:
    with new_entry_folder() as folder:
        (folder / "files" / "deep").mkdir()
        (folder / "files" / "deep" / "data").write_bytes(content)
        share_entry(store_entry(folder, "key", {"a": 1}, ["s"]), ("s",))


def test_of_two_that_make_the_same_the_last_is_found_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    # Neither saw the other's when it looked.
    monkeypatch.setattr(shared_module, "_record", lambda shared, key: None)
    for machine in (b"one", b"two"):
        _machine(tmp_path / machine.decode(), str(shared), monkeypatch)
        _entry(machine)
    monkeypatch.undo()
    _machine(tmp_path / "three", str(shared), monkeypatch)
    entry = bring_entry("key")
    assert entry is not None and entry.value == {"a": 1}
    assert (entry.files / "deep" / "data").read_bytes() == b"two" and find_entry("key") is not None


@pytest.mark.parametrize("damage", ["changed", "gone", "leaves", "record", "absolute"])
def test_what_is_damaged_there_is_made_again_here(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    _machine(tmp_path / "one", str(shared), monkeypatch)
    _entry(b"content")
    record, data = shared / "records" / "key.json", next(each for each in shared.rglob("data") if each.is_file())
    told = json.loads(record.read_text())
    if damage == "changed":
        data.write_bytes(b"Content")
    elif damage == "gone":
        data.unlink()
    elif damage == "record":
        record.write_text(record.read_text()[:-2])
    else:
        name = "../../../../escaped" if damage == "leaves" else str(tmp_path / "escaped")
        record.write_text(json.dumps({**told, "digests": {name: told["digests"]["deep/data"]}, "sizes": {name: 7}}))
    _machine(tmp_path / "two", str(shared), monkeypatch)
    assert bring_entry("key") is None and find_entry("key") is None
    assert not list(tmp_path.rglob("escaped"))
    # Who makes it again mends what is shared.
    with new_entry_folder() as folder:
        (folder / "files" / "data").write_bytes(b"again")
        share_entry(store_entry(folder, "key", 2, []), (), replace=True)
    _machine(tmp_path / "three", str(shared), monkeypatch)
    entry = bring_entry("key")
    assert entry is not None and entry.value == 2 and (entry.files / "data").read_bytes() == b"again"


def test_a_shared_cache_that_may_only_be_read_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    _machine(tmp_path / "one", str(shared), monkeypatch)
    _entry(b"content")
    before = {each: each.stat().st_mtime_ns for each in shared.rglob("*")}
    monkeypatch.setenv("EDGEC_SHARED_CACHE_READONLY", "1")
    _machine(tmp_path / "two", str(shared), monkeypatch)
    require_shared()
    assert bring_entry("key") is not None
    with new_entry_folder() as folder:
        (folder / "files" / "data").write_bytes(b"mine")
        share_entry(store_entry(folder, "other", 1, []), ())
    assert {each: each.stat().st_mtime_ns for each in shared.rglob("*")} == before


def test_a_cache_is_not_shared_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "own", tmp_path / "own" / "stages", tmp_path):
        _machine(tmp_path / "own", str(place), monkeypatch)
        with pytest.raises(UnusableInput, match="Name two places apart"):
            require_shared()


def test_the_limit_of_a_machines_own_cache_holds_for_what_is_brought(
    tiny_models: Path, edgec_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []
    for machine in ("one", "two"):
        _machine(tmp_path / machine, str(tmp_path / "shared"), monkeypatch)
        done = edgec_here("build", tiny_models / "llama", "-r", "gptq:int4-rtn-g32", "-o", tmp_path / f"p-{machine}")
        assert done.returncode == 0, done.stderr
        monkeypatch.setattr(executor, "keep_limit", lambda: held.append("again"))
    assert held == ["again"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://", "names no bucket"),
        ("http://user:secret@127.0.0.1:9/x", "nothing answers|cannot be used"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(address: str, words: str) -> None:
    with pytest.raises(UnusableInput, match=words) as refused:
        SharedFolder(address).write("results/a.json", b"1")
    assert "secret" not in str(refused.value)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    (tmp_path / "there").mkdir()
    with pytest.raises(FileNotFoundError):
        shared.write("a", tmp_path / "gone")

    def full(self: object, given: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    (tmp_path / "mine").write_bytes(b"whole")
    with pytest.raises(UnusableInput, match="a disk is full"):
        shared.write("a", tmp_path / "mine")
    assert not list((tmp_path / "there").iterdir())


def test_a_shared_cache_that_is_not_there_is_said(tiny_models: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec(
        "build", tiny_models / "bert", "-r", "tflite:fp16", "-o", tmp_path / "p",
        EDGEC_CACHE=str(tmp_path / "cache"), EDGEC_SHARED_CACHE="carrier-pigeon://x",
    )  # fmt: skip
    assert_refused(done, 2, "carrier-pigeon")


def test_two_workers_that_share_nothing_but_s3_do_a_matrix(bucket: str, tiny_models: Path, tmp_path: Path) -> None:
    digest = digest_model(edgec.open_model(str(tiny_models / "bert")))
    workload = Workload(sequence_length=32, rounds=3, repetitions=3)
    orders = []
    for recipe in ("tflite:int8", "onnx:fp32"):
        build = BuildOrder(
            str(tiny_models / "bert"), digest, recipe, Shapes(sequence_length=32), QuantizationOptions(), False, ()
        )
        orders.append(MeasureOrder(Cell(str(tiny_models / "bert"), recipe, "local"), build, workload))
    work = Work(tuple(orders), {str(tiny_models / "bert"): 1_000_000})
    with cluster(2, tmp_path, share=False) as (address, _):
        results = run_on_cluster(work, bucket, address, lambda *told: None)
    assert [each.status for each in results] == ["measured"] * 2, [each.reason for each in results]
    assert not list(tmp_path.rglob("*.whole"))


def test_any_file_system_of_fsspec_does(package: edgec.Package, tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}")
    assert store.get_package(store.put_package(package), tmp_path).digest == package.digest
    assert MemoryFileSystem().exists(f"/{tmp_path.name}/packages")
