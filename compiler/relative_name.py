"""Names of files that a package, an archive or a cache gives relative to its folder."""

from __future__ import annotations

from pathlib import PurePosixPath


def stays_inside(name: str) -> bool:
    """Whether a POSIX name stays within the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
