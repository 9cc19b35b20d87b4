"""A stage runs in a process of its own: whatever kills it becomes a sentence, and what it cost is known."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from compiler.errors import CheckFailed, UnusableInput
from compiler.stages.cache import find_entry, new_entry_folder, store_entry
from compiler.stages.fork_server import can_fork, give_back, take_server
from compiler.stages.worker import Children, Ended, report_progress, run_in_child

# The functions that the children call are in this file; the child finds it through PYTHONPATH.
_HERE = {"PYTHONPATH": str(Path(__file__).parent)}
_SMALL_DISK = 1024 * 1024


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


def fill_own_folder() -> None:
    assert tempfile.gettempdir() == os.environ["TMPDIR"]
    with suppress(OSError), tempfile.NamedTemporaryFile(delete=False) as file:
        for _ in range(2 * _SMALL_DISK // 4096):
            file.write(bytes(4096))
            file.flush()


def tell_temporary_folders() -> list[str]:
    return [tempfile.gettempdir(), os.environ["TMPDIR"]]


def crash() -> None:
    raise ValueError("inside a library")


def remember(what: str) -> list[str]:
    """What this process was told before, in a module that every child of a server has loaded."""
    known = sys.modules["json"].__dict__.setdefault("known", [])
    known.append(what)
    return list(known)


def situation() -> dict[str, object]:
    loaded = "transformers.modeling_utils" in sys.modules
    said, spins = os.environ.get("EDGEC_SAID"), os.environ.get("GOMP_SPINCOUNT")
    return {"loaded": loaded, "folder": str(Path.cwd()), "said": said, "pid": os.getpid(), "spins": spins}


def last(what: str) -> None:
    print(what, flush=True)
    os._exit(3)


def wait(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


@pytest.fixture(params=[False, True], ids=["started", "forked"])
def forked(request: pytest.FixtureRequest) -> bool:
    """Whether the child is started, or forked from a process that has torch and transformers loaded."""
    return bool(request.param)


def _run(name: str, forked: bool, **arguments: object) -> Any:
    return run_in_child(f"test_worker:{name}", arguments, label="a stage", environment=_HERE, forked=forked).value


def test_a_result_comes_back_with_progress_and_cost(forked: bool) -> None:
    seen: list[tuple[int, int]] = []
    finished = run_in_child(
        "test_worker:double",
        {"number": 21},
        label="double",
        environment=_HERE,
        forked=forked,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert finished.value == 42
    assert seen == [(1, 2), (2, 2)]
    assert 0 < finished.seconds < 60


def test_peak_memory_is_the_childs(forked: bool) -> None:
    small, large = (
        run_in_child(
            "test_worker:allocate", {"mebibytes": size}, label="a", environment=_HERE, forked=forked
        ).peak_rss_bytes
        for size in (1, 300)
    )
    assert 290 * 1024**2 < large - small < 330 * 1024**2


def test_a_kill_is_explained_as_want_of_memory(forked: bool) -> None:
    with pytest.raises(UnusableInput, match=r"a stage.*memory"):
        _run("kill_self", forked, number=int(signal.SIGKILL))


def test_a_crash_is_named(forked: bool) -> None:
    with pytest.raises(UnusableInput, match="SIGSEGV"):
        _run("kill_self", forked, number=int(signal.SIGSEGV))


def test_a_failed_check_keeps_its_name(forked: bool) -> None:
    with pytest.raises(CheckFailed) as caught:
        _run("fail_check", forked)
    assert caught.value.check == "type-fallback"


def test_a_full_disk_is_told(forked: bool) -> None:
    with pytest.raises(UnusableInput, match="disk is full"):
        _run("fill_disk", forked)


def test_a_child_keeps_its_temporary_files_in_its_own_folder(forked: bool) -> None:
    used, own = _run("tell_temporary_folders", forked)
    assert used == own


def test_a_child_without_room_for_its_answer_is_told_as_a_full_disk(
    forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with pytest.raises(UnusableInput, match="disk is full"):
            _run("fill_own_folder", forked)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)


def test_an_unexpected_error_is_one_paragraph(forked: bool) -> None:
    with pytest.raises(UnusableInput, match="inside a library") as caught:
        _run("crash", forked)
    assert "\n" not in str(caught.value)


def test_a_child_that_ends_by_itself_is_told_with_its_last_line(forked: bool) -> None:
    with pytest.raises(UnusableInput, match=r"exit code 3.*so long"):
        _run("last", forked, what="so long")


def test_nothing_of_a_stage_reaches_the_next(forked: bool) -> None:
    assert [_run("remember", forked, what=what) for what in ("a", "b")] == [["a"], ["b"]]


def test_a_forked_child_has_what_takes_long_loaded_and_is_where_its_parent_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _run("situation", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEC_SAID", "later")
    second = _run("situation", True)
    assert first["loaded"] and second["loaded"] and not _run("situation", False)["loaded"]
    assert (first["said"], second["said"], second["folder"]) == (None, "later", str(tmp_path))


def test_threads_that_wait_let_a_stage_beside_them_work(forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user has said how they are to wait."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert _run("situation", forked)["spins"] == "1000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert _run("situation", forked)["spins"] is None


def test_another_environment_takes_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    server = take_server({})
    give_back(server)
    assert take_server({}) is server
    give_back(server)
    monkeypatch.setattr(os, "environ", {**here, "OMP_NUM_THREADS": "1"})
    other = take_server({})
    assert other is not server and server.process.poll() is not None
    other.end()
    assert can_fork(_HERE) and not can_fork({"MALLOC_TRIM_THRESHOLD_": "1"})


def test_a_server_that_has_ended_is_replaced_in_silence() -> None:
    server = take_server({})
    server.process.kill()
    give_back(server)
    assert _run("double", True, number=4) == 8


def test_the_child_of_a_server_ends_with_the_work(tmp_path: Path) -> None:
    """Killed by edgec itself, and by the end of the process that asked for it."""
    children, started = Children(), tmp_path / "started"
    with ThreadPoolExecutor() as pool:
        options: dict[str, Any] = {"label": "wait", "environment": _HERE, "forked": True, "children": children}
        waiting = pool.submit(run_in_child, "test_worker:wait", {"path": str(started)}, **options)
        pid = _pid_in(started)
        children.end()
        with pytest.raises(Ended):
            waiting.result(timeout=20)
    assert not psutil.pid_exists(pid)
    started.unlink()
    code = "from test_worker import _run; import sys; _run('wait', True, path=sys.argv[1])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(started)], env={**os.environ, **_HERE}, cwd=Path(__file__).parents[1]
    )
    pid = _pid_in(started)
    server = psutil.Process(pid).parent()
    assert server is not None and server.ppid() == parent.pid
    parent.kill()
    parent.wait()
    psutil.wait_procs([server], timeout=5)
    assert not server.is_running() and not psutil.pid_exists(pid)


def _pid_in(path: Path) -> int:
    for _ in range(600):
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.1)
    raise AssertionError("the child did not start")


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
