"""A stage runs in a process of its own: whatever kills it becomes a sentence, and what it cost is known."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import CheckFailed, UnusableInput
from compiler.stages.cache import find_entry, new_entry_folder, store_entry
from compiler.stages.worker import report_progress, run_in_child

# The functions that the children call are in this file; the child finds it through PYTHONPATH.
_HERE = {"PYTHONPATH": str(Path(__file__).parent)}


def double(number: int) -> int:
    report_progress(1, 2)
    report_progress(2, 2)
    return number * 2


def allocate(mebibytes: int) -> int:
    return int(np.ones(mebibytes * 1024 * 1024, np.uint8).sum())


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)


def fail_check() -> None:
    raise CheckFailed("type-fallback", "no such type.")


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "some/file")


def crash() -> None:
    raise ValueError("inside a library")


def _run(name: str, **arguments: object) -> object:
    return run_in_child(f"test_worker:{name}", arguments, label="a stage", environment=_HERE).value


def test_a_result_comes_back_with_progress_and_cost() -> None:
    seen: list[tuple[int, int]] = []
    finished = run_in_child(
        "test_worker:double",
        {"number": 21},
        label="double",
        environment=_HERE,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert finished.value == 42
    assert seen == [(1, 2), (2, 2)]
    assert 0 < finished.seconds < 60


def test_peak_memory_is_the_childs() -> None:
    small = run_in_child("test_worker:allocate", {"mebibytes": 1}, label="a", environment=_HERE).peak_rss_bytes
    large = run_in_child("test_worker:allocate", {"mebibytes": 300}, label="a", environment=_HERE).peak_rss_bytes
    assert 290 * 1024**2 < large - small < 330 * 1024**2


def test_a_kill_is_explained_as_want_of_memory() -> None:
    with pytest.raises(UnusableInput, match=r"a stage.*memory"):
        _run("kill_self", number=int(signal.SIGKILL))


def test_a_crash_is_named() -> None:
    with pytest.raises(UnusableInput, match="SIGSEGV"):
        _run("kill_self", number=int(signal.SIGSEGV))


def test_a_failed_check_keeps_its_name() -> None:
    with pytest.raises(CheckFailed) as caught:
        _run("fail_check")
    assert caught.value.check == "type-fallback"


def test_a_full_disk_is_told() -> None:
    with pytest.raises(UnusableInput, match="disk is full"):
        _run("fill_disk")


def test_an_unexpected_error_is_one_paragraph() -> None:
    with pytest.raises(UnusableInput, match="inside a library") as caught:
        _run("crash")
    assert "\n" not in str(caught.value)


def test_an_entry_is_there_whole_or_not_at_all() -> None:
    key = "0" * 64
    with pytest.raises(RuntimeError), new_entry_folder() as folder:
        (folder / "files" / "a").write_text("x")
        raise RuntimeError
    assert find_entry(key) is None
    with new_entry_folder() as folder:
        (folder / "files" / "a").write_text("x")
        store_entry(folder, key, {"b": 1})
    entry = find_entry(key)
    assert entry is not None and entry.value == {"b": 1}
    (entry.files / "a").write_text("longer")
    assert find_entry(key) is None
