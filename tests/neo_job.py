"""A job for SageMaker Neo that tests change, and archives as they like them."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

from targets.neo.cloud.job import CompilationJob

ACCOUNT, REGION = "123456789012", "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/neo"
TEXT = {"attention_mask": (1, 32), "input_ids": (1, 32), "token_type_ids": (1, 32)}
JOB = CompilationJob("PYTORCH", "2.0", TEXT, device="ml_c5", options={"dtype": "int64"})
ELF = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HH", 3, 62)


def write_archive(file: Path, members: Mapping[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    """A .tar.gz with members that need not be plain files."""
    with tarfile.open(file, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(data))
    return file


def compiled(machine: int = 62, others: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """What Neo gives back for JOB: the files of a model for DLR."""
    library = ELF[:18] + struct.pack("<H", machine) + b"\0" * 40
    told = {
        "Model": {"Inputs": [{"name": name, "dtype": "int64", "shape": list(shape)} for name, shape in TEXT.items()]}
    }
    return {
        "compiled.so": library, "compiled_model.json": b"{}", "compiled.params": b"p",
        "compiled.meta": json.dumps(told).encode(), "libdlr.so": library, "manifest": b"m", **(others or {}),
    }  # fmt: skip


def compiled_without(ending: str) -> dict[str, bytes]:
    """The same but for the file with that ending."""
    return {name: data for name, data in compiled().items() if not name.endswith(ending)}


def graph(tokens: int) -> bytes:
    """As the compiler of TVM 0.8 writes it: weights are arguments like inputs."""
    names = [*TEXT, "p0"]
    shapes = [[1, tokens] for _ in TEXT] + [[384, 384]]
    nodes = [{"op": "null", "name": name, "inputs": []} for name in names]
    told = {"nodes": nodes, "arg_nodes": list(range(len(names))), "attrs": {"shape": ["list_shape", shapes]}}
    return json.dumps({**told, "node_row_ptr": list(range(len(names) + 1))}).encode()


def meta(name: str, length: int) -> bytes:
    """A .meta file with one input's name and length of its own."""
    shapes = {**{each: list(shape) for each, shape in TEXT.items()}, name: [1, length]}
    return json.dumps(
        {"Model": {"Inputs": [{"name": each, "shape": shape} for each, shape in shapes.items()]}}
    ).encode()
