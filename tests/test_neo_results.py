"""What SageMaker Neo gives back, held to what it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from neo_job import ELF, JOB, compiled, compiled_without, graph, meta, write_archive

from compiler.errors import CheckFailed
from compiler.package import FixedShapes, Graph, Lowered, Platform, Port, StoredWeights
from targets.neo.cloud.drive import require_compiled, with_compiled
from targets.neo.cloud.job import CompilationJob, TargetPlatform

_PHONE = TargetPlatform("ANDROID", "ARM64", "MALI")
_BOARD = CompilationJob("ONNX", None, {"pixel_values": (1, 3, 8, 8)}, device="rasp4b")


def _written(members: Mapping[str, bytes], folder: Path) -> Path:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "empty archive"),
        ({"model.pth": b"sent"}, "gave back the files that it was sent"),
        ({"model.pth": b"sent", "compiled.params": b"p"}, "model.pth came back as it was sent"),
        ({"a.pth": b"x", "b.pth": b"y"}, "2 models came back"),
        ({"model.pth": b"x", "lib/libx.so": compiled(183)["compiled.so"]}, "is for ARM64, and ml_c5 is x86-64"),
        (compiled(others={"compiled.so": ELF[:16] + b"\1\0" + ELF[18:] + b"\0" * 40}), "no shared library"),
        (compiled(others={"compiled.so": ELF[:4] + b"\1" + ELF[5:] + b"\0" * 40}), "of another width"),
        (compiled(183), "is for ARM64, and ml_c5 is x86-64"),
        ({"compiled.so": b"MZ" * 20, "compiled_model.json": b"{}", "compiled.params": b"p"}, "no ELF file"),
        ({name: data for name, data in compiled().items() if name != "compiled.params"}, "No file of parameters"),
        (compiled(others={"other.so": ELF + b"\0" * 40}), "2 files could be the library"),
        (compiled(others={"extra.json": b"{}"}), "2 files could be the graph"),
        (compiled(others={"compiled.meta": meta("input_ids", 64)}), "asked for was"),
        (compiled(others={"compiled.meta": meta("ids", 32)}), "has the input 'ids'"),
        (compiled_without(".meta"), "No file of it tells the shapes"),
        ({**compiled_without(".meta"), "compiled_model.json": graph(64)}, r"the shape \[1, 64\]; asked for"),
        (compiled(others={"compiled_model.json": graph(64)}), r"the shape \[1, 64\]; asked for"),
        ({**compiled_without(".meta"), "compiled_model.json": graph(32).replace(b"t_ids", b"t")}, "the input input_ids"),
        ({**{n: d for n, d in compiled().items() if n != "compiled.so"}, "compiled.dll": b"MZ"}, "no library of Linux"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_asked_for_is_refused(members: Mapping[str, bytes], words: str, tmp_path: Path) -> None:
    sent = write_archive(tmp_path / "model.tar.gz", {"model.pth": b"sent"})
    with pytest.raises(CheckFailed, match=words):
        require_compiled(JOB, sent, _written(members, tmp_path / "compiled"))


def test_what_is_as_it_was_asked_for_is_taken(tmp_path: Path) -> None:
    """The shapes by the file that tells of the model, by the graph, or by both."""
    sent = write_archive(tmp_path / "model.tar.gz", {"model.pth": b"sent"})
    with_graph = {"compiled_model.json": graph(32)}
    for number, members in enumerate(
        (compiled(), compiled(others=with_graph), {**compiled_without(".meta"), **with_graph})
    ):
        require_compiled(JOB, sent, _written(members, tmp_path / str(number)))


def test_a_model_for_pytorch_is_none_of_a_boards(tmp_path: Path) -> None:
    sent = write_archive(tmp_path / "model.tar.gz", {"model.onnx": b"sent"})
    with pytest.raises(CheckFailed, match="No library came back"):
        require_compiled(_BOARD, sent, _written({"model.pth": b"x"}, tmp_path / "compiled"))


@pytest.mark.parametrize("machine", [62, 3])
def test_a_raspberry_pi_4_takes_libraries_of_arm_alone(machine: int, tmp_path: Path) -> None:
    sent = write_archive(tmp_path / "model.tar.gz", {"model.onnx": b"sent"})
    members = _written(compiled(machine), tmp_path / "compiled")
    with pytest.raises(CheckFailed, match=r"rasp4b is ARM64 or 32-bit ARM|another width"):
        require_compiled(_BOARD, sent, members)


@pytest.mark.parametrize(
    ("job", "machine", "platform"),
    [
        (JOB, 62, Platform("Linux", "x86_64")),
        (_BOARD, 183, Platform("Linux", "aarch64")),
        (_BOARD, 40, Platform("Linux", "armv7l")),
        (replace(_BOARD, device="qcs605"), 183, Platform("Android", "aarch64")),
        (replace(_BOARD, device=None, platform=_PHONE), 183, Platform("Android", "aarch64")),
    ],
)  # fmt: skip
def test_the_package_is_for_the_machine_of_the_library_that_came(
    job: CompilationJob, machine: int, platform: Platform, tmp_path: Path
) -> None:
    main = Graph("main", ("model.tar.gz",), (Port("input_ids", "int64", (1, 32)),), ())
    lowered = Lowered("dlr", (main,), StoredWeights(32.0, {}), FixedShapes())
    folder = _written(compiled(machine), tmp_path / "compiled")
    found = with_compiled(lowered, folder, job)
    assert found.platform == platform and found.main.files == ("compiled/compiled.so",)


def test_the_graph_is_the_model_where_libraries_lie_beside_it(tmp_path: Path) -> None:
    lowered = Lowered("dlr", (Graph("main", (), (), ()),), StoredWeights(32.0, {}), FixedShapes())
    folder = _written({"model.pth": b"x", "lib/libneo.so": compiled()["compiled.so"]}, tmp_path / "compiled")
    assert with_compiled(lowered, folder, JOB).main.files == ("compiled/model.pth",)
