"""Weights are listed without loading, as safetensors' own reader sees them; damaged files are refused in a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compiler.errors import UnusableInput
from compiler.formats.safetensors import find_tensors, list_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(
        {
            "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
            "b": torch.ones(4, dtype=torch.bfloat16),
            "c": torch.zeros(2, 2, dtype=torch.float16),
            "empty": torch.zeros(0, 3),
        },
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    return tmp_path


def test_the_list_agrees_with_the_formats_own_reader(folder: Path) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as reader:
        for info in list_tensors(path):
            tensor = reader.get_tensor(info.name)
            assert tuple(tensor.shape) == info.shape
            assert tensor.numel() * tensor.element_size() == info.nbytes
            raw = path.read_bytes()[info.offset : info.offset + info.nbytes]
            assert raw == tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else raw == b""


def _write(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _entry(begin: int, end: int, shape: list[int] | None = None) -> dict:
    return {"dtype": "F32", "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "nbytes", "word"),
    [
        ({"a": _entry(0, 8), "b": _entry(4, 12)}, 12, "overlaps"),
        ({"a": _entry(0, 8), "b": _entry(12, 16)}, 16, "hole"),
        ({"a": _entry(0, 8)}, 4, "truncated"),
        ({"a": _entry(0, 8)}, 12, "follow its last tensor"),
        ({"a": _entry(0, 8, [3])}, 8, "needs another number"),
        ({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}, 1, "a type that edgec does not read"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "no usable dtype"),
        ({}, 0, "no tensors"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path: Path, header: dict, nbytes: int, word: str) -> None:
    path = tmp_path / "model.safetensors"
    _write(path, header, bytes(nbytes))
    with pytest.raises(UnusableInput, match=word):
        list_tensors(path)


def test_every_truncation_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableInput):
            list_tensors(path)


def _shard(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_shards_are_read_together(tmp_path: Path) -> None:
    for index in (1, 2):
        save_file({f"w{index}": torch.ones(index)}, tmp_path / f"model-0000{index}-of-00002.safetensors")
    _shard(tmp_path, {f"w{index}": f"model-0000{index}-of-00002.safetensors" for index in (1, 2)})
    assert {info.name for info in find_tensors(tmp_path)} == {"w1", "w2"}


@pytest.mark.parametrize(
    ("name", "word"), [("model-1.safetensors", "missing"), ("../x.safetensors", "leaves"), ("/etc/x", "leaves")]
)
def test_shards_that_are_missing_or_leave_the_folder_are_refused(tmp_path: Path, name: str, word: str) -> None:
    _shard(tmp_path, {"w": name})
    with pytest.raises(UnusableInput, match=word):
        find_tensors(tmp_path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "outside" / "x.safetensors")
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "x.safetensors").symlink_to(tmp_path / "outside" / "x.safetensors")
    _shard(inside, {"w": "x.safetensors"})
    with pytest.raises(UnusableInput, match="leaves"):
        find_tensors(inside)


def test_pickles_alone_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnusableInput, match="pickle"):
        find_tensors(tmp_path)
