"""A folder that several machines see: a path, or anything that fsspec opens (s3://bucket/path).

Whoever looks sees a file whole or not at all: it is written under a name of its own and moved into place, but in object
stores, which do so themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput, missing_extra

_OBJECT_STORES = {"s3", "gs", "gcs", "abfs", "az", "oss", "oci"}


@dataclass(frozen=True)
class SharedFolder:
    """A folder by its address, as fsspec names it; a plain path is a folder of this machine.

    Every method raises UnusableInput where the folder cannot be reached, or refuses.
    """

    address: str

    @property
    def here(self) -> Path | None:
        """Where it is a folder of this machine's file system; None elsewhere."""
        with self._opened() as (files, root):
            return Path(root) if "file" in _protocols(files) else None

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        with self._opened() as (files, root):
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        with self._opened() as (files, root):
            return bool(files.exists(f"{root}/{name}"))

    def write(self, name: str, given: bytes | Path) -> None:
        """Write bytes, or a copy of a file, whole or not at all."""
        with self._opened() as (files, root):
            target = f"{root}/{name}"
            # Nothing has folders there, and making one would make a bucket.
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
            except FileNotFoundError as error:
                raise UnusableInput(f"{self.address} cannot be used: there is no such place. Make it first.") from error

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
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(target))

    def bring_folder(self, name: str, target: Path) -> None:
        """Copy a folder with all that is in it to this machine, where `target` is not yet."""
        with self._opened() as (files, root):
            files.get(f"{root}/{name}/", f"{target}/", recursive=True)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise missing_extra("fsspec", "fleet") from error
        try:
            # Another machine may have written since a listing was seen.
            files, root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise UnusableInput(
                f"{self.address} cannot be opened: no file system of that kind is installed (s3:// needs s3fs)."
            ) from error
        try:
            yield files, str(root).rstrip("/")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise _unusable(self.address, error) from error


def _protocols(files: Any) -> tuple[str, ...]:
    """By what names fsspec knows a file system."""
    return files.protocol if isinstance(files.protocol, tuple) else (str(files.protocol),)


def _unusable(address: str, error: Exception) -> UnusableInput:
    """Why a folder cannot be used, of what a file system or a cloud's client raises."""
    word = type(error).__name__
    if isinstance(error, UnusableInput):
        return error
    if word in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"):
        why = "there are no credentials for it. Give them as its own command line takes them, as AWS_PROFILE or aws configure"
    elif isinstance(error, PermissionError):
        why = "it refuses these credentials. See that they may read and write there"
    elif word in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError") or isinstance(
        error, ConnectionError | TimeoutError
    ):
        why = "nothing answers there. See that the network and the address are right"
    else:
        why = f"it fails with {word}. Try the same with a tool of its own"
    return UnusableInput(f"{address} cannot be used: {why}.")
