"""Which packages with native code were built on this machine: their digests are kept in the cache."""

from __future__ import annotations

from compiler.package import Package
from compiler.stages.cache import cache_folder, write_atomically


def remember_built(package: Package) -> None:
    """Keep the digest of a package that holds native code."""
    if package.lowered.platform is not None:
        write_atomically(cache_folder("built") / package.digest, "")


def is_built_here(package: Package) -> bool:
    """Whether this machine built exactly this package, and its cache has not been cleared since."""
    return (cache_folder("built") / package.digest).is_file()
