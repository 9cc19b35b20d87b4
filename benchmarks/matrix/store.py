"""Where a matrix keeps packages and results: a folder, or anything that fsspec opens (s3://bucket/path).

A file is written under a name of its own and moved into place, so that machines that share a store see it whole or not at all.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput, missing_extra
from compiler.package import Package, check_files, read_package

RESULTS, PACKAGES = "results", "packages"
_WHOLE = ".whole"


@dataclass(frozen=True)
class Store:
    """A place by its address, as fsspec names it; a plain path is a folder of this machine."""

    address: str

    def _open(self) -> tuple[Any, str]:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise missing_extra("fsspec", "fleet") from error
        try:
            files, root = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            raise UnusableInput(
                f"The store {self.address} cannot be opened: no file system of that kind is installed (s3:// needs s3fs)."
            ) from error
        return files, str(root).rstrip("/")

    def read(self, name: str) -> str | None:
        """A text; None where there is none."""
        files, root = self._open()
        try:
            return bytes(files.cat_file(f"{root}/{name}")).decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise UnusableInput(f"{name} in the store is damaged. Remove it, and it is made again.") from error

    def write(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        files, root = self._open()
        self._place(files, root, name, text.encode("utf-8"))

    def remove(self, name: str) -> None:
        """Take a text of ours away."""
        files, root = self._open()
        with suppress(FileNotFoundError):
            files.rm_file(f"{root}/{name}")

    def put_package(self, package: Package) -> str:
        """Bring a package there, where it is not there; its name."""
        files, root = self._open()
        # What verify found is beside the manifest, and the manifest's digest says nothing of it.
        found = package.folder / "verification.json"
        seen = hashlib.sha256(found.read_bytes()).hexdigest()[:8] if found.is_file() else "none"
        name = f"{PACKAGES}/{package.name}-{package.digest[:16]}-{seen}"
        if not files.exists(f"{root}/{name}{_WHOLE}"):
            for file in sorted(each for each in package.folder.rglob("*") if each.is_file()):
                self._place(files, root, f"{name}/{file.relative_to(package.folder).as_posix()}", file)
            self._place(files, root, f"{name}{_WHOLE}", b"")
        return name

    def has_package(self, name: str) -> bool:
        """Whether a package of that name is there, whole."""
        files, root = self._open()
        return bool(files.exists(f"{root}/{name}{_WHOLE}"))

    def get_package(self, name: str, cache: Path) -> Package:
        """The package of that name: where it lies on this machine, or brought here where it is not here yet, and hashed.

        Raises:
            UnusableInput: it is not there, or not whole.
        """
        files, root = self._open()
        here = Path(root) / name
        protocols = files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)
        if "file" in protocols:
            return read_package(here)
        folder = cache / name
        if not folder.is_dir():
            if not files.exists(f"{root}/{name}{_WHOLE}"):
                raise UnusableInput(f"The store has no package {name}.")
            part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            files.get(f"{root}/{name}/", f"{part}/", recursive=True)
            with suppress(OSError):
                part.rename(folder)
        package = read_package(folder)
        check_files(package)
        return package

    def _place(self, files: Any, root: str, name: str, given: bytes | Path) -> None:
        target = f"{root}/{name}"
        part = f"{target}.{secrets.token_hex(4)}.part"
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if isinstance(given, Path):
            files.put_file(str(given), part)
        else:
            files.pipe_file(part, given)
        files.mv(part, target)
