"""A folder that several machines see: a path, or anything that fsspec opens (s3://bucket/path).

Whoever looks sees a file whole or not at all: it is written under a name of its own and moved into place, but in object
stores, which do so themselves.
"""

from __future__ import annotations

import errno
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput, missing_extra
from compiler.formats.json_file import LIMIT_BYTES
from compiler.relative_name import stays_inside

# Nothing has folders there, making one would make a bucket, and listings are remembered.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"}
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
_UNREACHED = ("EndpointConnectionError", "ClientConnectorError", "ConnectTimeoutError", "ReadTimeoutError", "gaierror")


@dataclass(frozen=True)
class SharedFolder:
    """A folder by its address, as fsspec names it; a plain path is a folder of this machine.

    Every method raises UnusableInput where the folder cannot be reached, or refuses.
    """

    address: str

    @property
    def title(self) -> str:
        """Its address without a name and a password, which it may have."""
        return re.sub(r"//[^/@]*@", "//", self.address)

    @property
    def here(self) -> Path | None:
        """Where it is a folder of this machine's file system; None elsewhere."""
        with self._opened() as (files, root):
            return Path(root or "/") if "file" in _protocols(files) else None

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none.

        Raises:
            UnusableInput: it is larger than any text of edgec's.
        """
        with self._opened() as (files, root):
            try:
                nbytes = files.info(f"{root}/{name}").get("size") or 0
                if nbytes > LIMIT_BYTES:
                    raise UnusableInput(
                        f"{name} in {self.title} has {nbytes:,} bytes, and at most {LIMIT_BYTES:,} are read. Remove it."
                    )
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        with self._opened() as (files, root):
            return bool(files.exists(f"{root}/{name}"))

    def write(self, name: str, given: bytes | Path) -> None:
        """Write bytes, or a copy of a file, whole or not at all.

        Raises:
            FileNotFoundError: the file that is given is gone.
        """
        if isinstance(given, Path):
            given.stat()
        with self._opened() as (files, root):
            target = f"{root}/{name}"
            whole = bool(_OBJECT_STORES & set(_protocols(files)))
            part = target if whole else f"{target}.{secrets.token_hex(4)}.part"
            try:
                if not whole:
                    files.makedirs(target.rpartition("/")[0], exist_ok=True)
                if isinstance(given, Path):
                    files.put_file(str(given), part)
                else:
                    files.pipe_file(part, given)
                if not whole:
                    files.mv(part, target)
            except BaseException as error:
                if not whole:
                    with suppress(Exception):
                        files.rm_file(part)
                if isinstance(error, FileNotFoundError):
                    raise UnusableInput(
                        f"{self.title} cannot be used: there is no such place. Make it first."
                    ) from error
                raise

    def remove(self, name: str) -> None:
        """Take a file of ours away."""
        with self._opened() as (files, root), suppress(FileNotFoundError):
            files.rm_file(f"{root}/{name}")

    def bring(self, name: str, target: Path) -> None:
        """Copy a file to this machine.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._opened() as (files, root):
            if not files.exists(f"{root}/{name}"):
                raise FileNotFoundError(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(target))

    def names_in(self, folder: str) -> list[str]:
        """The files of a folder, and of those in it, relative to it.

        Raises:
            UnusableInput: one leaves the folder.
        """
        with self._opened() as (files, root):
            begin = f"{root}/{folder}/"
            found = [str(each) for each in files.find(begin)]
            names = [each.removeprefix("/" if not begin.startswith("/") else "") for each in found]
            inside = [each[len(begin) :] for each in names if each.startswith(begin)]
        if len(inside) != len(found) or not all(stays_inside(each) for each in inside):
            raise UnusableInput(f"{folder} in {self.title} has a file that leaves it. Remove the folder.")
        return inside

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise missing_extra("fsspec", "fleet") from error
        try:
            kind = fsspec.core.split_protocol(self.address)[0]
            # Another machine may have written since a listing was seen.
            options = {"use_listings_cache": False} if kind in _OBJECT_STORES else {}
            files, root = fsspec.core.url_to_fs(self.address, **options)
            root = str(root).rstrip("/")
            if not root and _OBJECT_STORES & set(_protocols(files)):
                raise UnusableInput(f"{self.title} names no bucket. Write {kind}://bucket/folder.")
            yield files, root
        except FileNotFoundError:
            raise
        except (ImportError, ValueError) as error:
            raise UnusableInput(
                f"{self.title} cannot be opened: no file system of that kind is installed (s3:// needs s3fs)."
            ) from error
        except Exception as error:
            raise _unusable(self.title, error) from error


def _protocols(files: Any) -> tuple[str, ...]:
    """By what names fsspec knows a file system."""
    return files.protocol if isinstance(files.protocol, tuple) else (str(files.protocol),)


def _unusable(title: str, error: Exception) -> UnusableInput:
    """Why a folder cannot be used, of what a file system or a cloud's client raises."""
    word = type(error).__name__
    if isinstance(error, UnusableInput):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "a disk is full, there or here. Free some room"
    elif word in _CREDENTIALS:
        why = "there are no credentials for it. Give them as its own command line takes them, as AWS_PROFILE or aws configure"
    elif isinstance(error, PermissionError):
        why = "it refuses you. See that your credentials, or your user, may read and write there"
    elif isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        why = "a file stands where a folder belongs, or a folder where a file does. Name another place"
    elif word in _UNREACHED or isinstance(error, ConnectionError | TimeoutError):
        why = "nothing answers there. See that the network and the address are right"
    else:
        why = f"its file system failed for a reason that edgec does not know ({word}). Try it with a tool of its own"
    return UnusableInput(f"{title} cannot be used: {why}.")
