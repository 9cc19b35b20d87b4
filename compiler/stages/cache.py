"""The content-addressed cache: folders named by a complete key, complete or absent.

An entry holds `files/` and `entry.json` with each file's SHA-256; a damaged entry is made again, never used.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.digest import digest_file, digest_json


@dataclass(frozen=True)
class Entry:
    """A complete cache entry.

    Attributes:
        key: its name.
        files: the folder with what the stage wrote.
        digests: SHA-256 of each file, by its POSIX path within `files`.
        value: what the stage returned, as JSON.
    """

    key: str
    files: Path
    digests: dict[str, str]
    value: Any


def cache_root() -> Path:
    """`EDGEC_CACHE`, or edgec's folder in the XDG cache."""
    if own := os.environ.get("EDGEC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgec"


_MARKER = ".edgec"
_MARKED = "Made by edgec. `edgec cache --clear` removes this folder.\n"


def cache_folder(name: str) -> Path:
    """A folder of the cache; one that edgec makes gets a mark, and only what has it is ever removed."""
    folder = cache_root() / name
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), (folder / _MARKER).open("x", encoding="ascii") as stream:
            stream.write(_MARKED)
    return folder


def has_mark(folder: Path) -> bool:
    """Whether edgec made a folder of the cache."""
    return (folder / _MARKER).is_file()


def find_entry(key: str) -> Entry | None:
    """The entry of that key when it is there and its files have the sizes that were recorded; `is_whole` looks into them."""
    folder = cache_root() / "stages" / key
    try:
        record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        entry = Entry(key, folder / "files", record["digests"], record["value"])
        whole = all((entry.files / name).stat().st_size == size for name, size in record["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return entry if whole else None


def is_whole(entry: Entry) -> bool:
    """Whether every file of an entry has the bytes that were stored."""
    try:
        return all(digest_file(entry.files / name) == digest for name, digest in entry.digests.items())
    except OSError:
        return False


@contextmanager
def new_entry_folder() -> Iterator[Path]:
    """A temporary folder beside the entries; removed unless `store_entry` renamed it."""
    with new_folder(cache_folder("stages")) as folder:
        (folder / "files").mkdir()
        yield folder


_NEW = ".edgec-new-"


@contextmanager
def new_folder(parent: Path, mode: int = 0o777) -> Iterator[Path]:
    """A temporary folder in `parent`, removed in the end, and by the next who makes one there if this process is killed.

    A lock on a file beside it tells that its owner lives; unlike a process id, that holds between containers and machines that
    share the folder. What of `parent` was not there and is empty in the end goes too.
    """
    made = [each for each in (parent, *parent.parents) if not each.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    handle, lock = _locked_file(parent)
    folder = lock.with_suffix("")
    try:
        folder.mkdir(mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):
            for each in made:
                each.rmdir()


def _locked_file(parent: Path) -> tuple[int, Path]:
    """(handle, path) of a new lock file that this process holds."""
    while True:
        # Another process may just have taken it away, empty as it was.
        parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_NEW, suffix=".lock", dir=parent)
        locked = _lock(handle)
        # Where a file system has no locks, nobody can take it for a left-over either.
        if locked is None or (locked and Path(name).exists()):
            return handle, Path(name)
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _lock(handle: int) -> bool | None:
    """Lock a file without waiting; whether nobody else holds it, None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_stale(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose owner no longer holds its lock."""
    for lock in parent.glob(f"{_NEW}*.lock"):
        try:
            handle = os.open(lock, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue
        if _lock(handle):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
        os.close(handle)


def store_entry(folder: Path, key: str, value: Any, sources: Sequence[str] = ()) -> Entry:
    """Make `folder` (of `new_entry_folder`) the entry of `key`. When another process was first, its entry stays.

    `sources` are the digests of what it was made of.
    """
    files = sorted(file for file in (folder / "files").rglob("*") if file.is_file())
    names = {file.relative_to(folder / "files").as_posix(): file for file in files}
    record = {
        "digests": {name: digest_file(file) for name, file in names.items()},
        "sizes": {name: file.stat().st_size for name, file in names.items()},
        "value": value,
        "sources": list(sources),
    }
    (folder / "entry.json").write_text(json.dumps(record), encoding="utf-8")
    target = cache_folder("stages") / key
    with exchange():
        if find_entry(key) is None:
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
    return find_entry(key) or Entry(key, target / "files", record["digests"], value)


@contextmanager
def exchange() -> Iterator[None]:
    """Held while an entry takes another's place, so that nobody removes what someone else has just put there."""
    with (cache_folder("stages") / ".lock").open("a") as lock:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Everything that edgec keeps in its cache; the folder may be one that holds other things too, under the same names.
_SUBFOLDERS = ("stages", "partial", "digests", "models", "texts", "pictures", "arrays", "tools", "boards", "fleet")


def clear_cache() -> list[str]:
    """Remove the folders that edgec made; builds then start from the beginning.

    Returns:
        The names of those that stay, because they lack edgec's mark.
    """
    present = [cache_root() / name for name in _SUBFOLDERS if (cache_root() / name).is_dir()]
    ours = [folder for folder in present if has_mark(folder) and not folder.is_symlink()]
    for folder in ours:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        cache_root().rmdir()
    return [folder.name for folder in present if folder not in ours]


def drop_entry(entry: Entry) -> None:
    """Remove an entry that turned out to be damaged, unless another process has put a whole one in its place."""
    with exchange():
        found = find_entry(entry.key)
        if found is None or not is_whole(found):
            shutil.rmtree(cache_root() / "stages" / entry.key, ignore_errors=True)


def remembered_digest(path: Path) -> str:
    """SHA-256 of a file, remembered by its path, size, inode and time of change, so that large weights are read once."""
    stat = path.stat()
    identity = digest_json([str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns])
    memo = cache_folder("digests") / identity
    try:
        known = memo.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    except OSError:
        pass
    digest = digest_file(path)
    write_atomically(memo, digest)
    return digest


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


_STAGE_KEY = "EDGEC_STAGE_KEY"


@contextmanager
def partial_folder() -> Iterator[Path]:
    """A folder for the work of the stage that runs in this process; a run that was killed finds it as it was.

    A second run of the same stage waits until the first has ended. The folder goes when the stage is done.
    """
    key = os.environ.get(_STAGE_KEY)
    if key is None:
        with tempfile.TemporaryDirectory(prefix="edgec-partial-") as temporary:
            yield Path(temporary)
        return
    folder = cache_folder("partial") / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{key}.lock").open("w") as lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def stage_environment(key: str) -> dict[str, str]:
    """What a child process must be given so that `partial_folder` knows its stage."""
    return {_STAGE_KEY: key}
