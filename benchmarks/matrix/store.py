"""Where a matrix keeps packages and results: a folder, or anything that fsspec opens (s3://bucket/path)."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.package import Package, check_files, read_package
from compiler.shared_folder import SharedFolder

RESULTS, PACKAGES = "results", "packages"
_WHOLE = ".whole"


@dataclass(frozen=True)
class Store:
    """A place by its address, as fsspec names it; a plain path is a folder of this machine."""

    address: str

    def read(self, name: str) -> str | None:
        """A text; None where there is none."""
        found = SharedFolder(self.address).read(name)
        try:
            return None if found is None else found.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnusableInput(f"{name} in the store is damaged. Remove it, and it is made again.") from error

    def write(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        SharedFolder(self.address).write(name, text.encode("utf-8"))

    def remove(self, name: str) -> None:
        """Take a text of ours away."""
        SharedFolder(self.address).remove(name)

    def put_package(self, package: Package) -> str:
        """Bring a package there, where it is not there; its name."""
        shared = SharedFolder(self.address)
        # What verify found is beside the manifest, and the manifest's digest says nothing of it.
        found = package.folder / "verification.json"
        seen = hashlib.sha256(found.read_bytes()).hexdigest()[:8] if found.is_file() else "none"
        name = f"{PACKAGES}/{package.name}-{package.digest[:16]}-{seen}"
        if not self.has_package(name):
            for file in sorted(each for each in package.folder.rglob("*") if each.is_file()):
                shared.write(f"{name}/{file.relative_to(package.folder).as_posix()}", file)
            shared.write(f"{name}{_WHOLE}", b"")
        return name

    def has_package(self, name: str) -> bool:
        """Whether a package of that name is there, whole."""
        return SharedFolder(self.address).exists(f"{name}{_WHOLE}")

    def get_package(self, name: str, cache: Path) -> Package:
        """The package of that name: where it lies on this machine, or brought here where it is not here yet, and hashed.

        Raises:
            UnusableInput: it is not there, or not whole.
        """
        shared = SharedFolder(self.address)
        if (here := shared.here) is not None:
            return read_package(here / name)
        folder = cache / name
        if not folder.is_dir():
            if not self.has_package(name):
                raise UnusableInput(f"The store has no package {name}.")
            part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            try:
                for each in shared.names_in(name):
                    shared.bring(f"{name}/{each}", part / each)
            except FileNotFoundError as error:
                raise UnusableInput(f"The package {name} is taken out of the store just now. Try again.") from error
            with suppress(OSError):
                part.rename(folder)
        package = read_package(folder)
        check_files(package)
        return package
