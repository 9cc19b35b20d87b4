"""A job for SageMaker Neo that tests change, and archives as they like them."""

from __future__ import annotations

import io
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
