"""One stage in a child process of its own.

A crash or an out-of-memory kill of a converter becomes an error of ours, every stage's seconds and peak memory are
known, and nothing that a stage imported stays behind. The child is `python -P -m compiler.stages.worker REQUEST`; it calls one
function by name and leaves its result, or its error, in a file beside the request. A stage of torch and transformers is forked
from a process that has them loaded (compiler/stages/fork_server.py); what it can do and how it ends is the same.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.stages.cache import new_folder
from compiler.stages.fork_server import ForkServer, NotStartedError, can_fork, end_idle_servers, give_back, take_server

_PROGRESS_FD = "EDGEC_PROGRESS_FD"
# No stage fetches anything of a model, and transformers takes no kernels of the hub.
_CLOSED = {"HF_HUB_OFFLINE": "1", "USE_HUB_KERNELS": "NO"}
# How long OpenMP's threads spin when they wait: so many rounds, as GCC's library takes where there are more threads than
# processors, which it does not see of two stages side by side. They took 13 s so, 36 to 129 s with its usual 300,000.
_SPINS, _WAITS = {"GOMP_SPINCOUNT": "1000"}, ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_MEBIBYTE = 1024 * 1024

Progress = Callable[[int, int], None]
Child = subprocess.Popen[bytes] | ForkServer


class Ended(UnusableInput):
    """A child was ended by edgec itself, because another one failed or the user interrupted."""


class Children:
    """The children of one piece of work; once ended, none of them runs and none starts any more."""

    _every: ClassVar[WeakSet[Children]] = WeakSet()

    def __init__(self) -> None:
        self._running: set[Child] = set()
        self._lock = threading.Lock()
        self.ended = False
        Children._every.add(self)

    def add(self, child: Child) -> None:
        """Take a child that has just started."""
        with self._lock:
            self._running.add(child)
            if self.ended:
                _kill(child)

    def discard(self, child: Child) -> None:
        """Forget a child that has ended."""
        with self._lock:
            self._running.discard(child)

    def end(self) -> None:
        """Kill every child that runs now, and whatever is started later."""
        with self._lock:
            self.ended = True
            for child in self._running:
                _kill(child)


def _kill(child: Child) -> None:
    if isinstance(child, ForkServer):
        child.kill()
        return
    # Without Popen's own lock, which whoever waits for the child may hold.
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


def end_all_children() -> None:
    """Kill the children of all work in this process."""
    for children in list(Children._every):
        children.end()
    end_idle_servers()


@dataclass(frozen=True)
class Finished:
    """A child's end.

    Attributes:
        value: what the function returned, as JSON.
        seconds: wall time, start of the process included.
        peak_rss_bytes: the largest resident set of the process or of one that it waited for.
    """

    value: Any
    seconds: float
    peak_rss_bytes: int


def run_in_child(
    function: str,
    arguments: Mapping[str, Any],
    *,
    label: str,
    before: Sequence[tuple[str, Mapping[str, Any]]] = (),
    on_progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
    debug: bool = False,
    children: Children | None = None,
    forked: bool = False,
) -> Finished:
    """Call `module:function` with JSON `arguments` in a child process and wait for it; first what is to be called `before`.

    Where it can be `forked`, the child begins with torch and transformers loaded.

    Raises:
        EdgecError: the error that the function raised, or a sentence about how the child died.
    """
    children = children or Children()
    if children.ended:
        raise Ended(f"The stage '{label}' was not started, because another one failed.")
    with new_folder(Path(tempfile.gettempdir()), 0o700) as folder:
        request, log = folder / "request.json", folder / "log"
        (folder / "tmp").mkdir()
        called = [*before, (function, dict(arguments))]
        request.write_text(json.dumps({"calls": called, "out": arguments.get("out")}), encoding="utf-8")
        started = time.perf_counter()
        with log.open("wb") as output, _followed(on_progress) as progress:
            own = {**(environment or {}), _PROGRESS_FD: str(progress), "TMPDIR": str(folder / "tmp"), **_variables()}
            ended = None
            if forked and can_fork(environment or {}):
                ended = _fork(request, output.fileno(), progress, own, children)
            returncode, peak = ended or _spawn(request, output, progress, own, children)
        seconds = time.perf_counter() - started
        if debug:
            sys.stderr.write(log.read_text("utf-8", "replace"))
        result = request.with_name("result.json")
        if not result.is_file() and children.ended:
            raise Ended(f"The stage '{label}' was ended, because another one failed.")
        if not result.is_file():
            raise _died(label, returncode, peak, log)
        answer = json.loads(result.read_text(encoding="utf-8"))
        if "error" in answer:
            raise _error_of(answer["error"], label, log)
        return Finished(answer["value"], seconds, answer["peak_rss_bytes"] or peak)


@contextmanager
def _followed(on_progress: Progress | None) -> Iterator[int]:
    """The descriptor to which a child writes its progress; at the end the child's last words have been read."""
    read_fd, write_fd = os.pipe()

    def follow() -> None:
        with os.fdopen(read_fd, encoding="utf-8") as lines:
            for line in lines:
                if on_progress is not None:
                    done, total = line.split()
                    on_progress(int(done), int(total))

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        yield write_fd
    finally:
        os.close(write_fd)
        reader.join(timeout=5)


def _variables() -> dict[str, str]:
    """What every stage's process gets."""
    return {**({} if any(name in os.environ for name in _WAITS) else _SPINS), **_CLOSED}


def _spawn(
    request: Path, output: Any, progress: int, environment: Mapping[str, str], children: Children
) -> tuple[int, int]:
    """The exit code and the peak memory in bytes of a child that is started for this request."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "compiler.stages.worker", str(request)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=(progress,),
        env={**os.environ, **parent_environment(), **environment},
    )
    children.add(process)
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        children.discard(process)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fork(
    request: Path, log: int, progress: int, environment: Mapping[str, str], children: Children
) -> tuple[int, int] | None:
    """As `_spawn`, of a child that is forked; None where the server ended before it had forked."""
    server = take_server(_variables())
    children.add(server)
    try:
        call = (f"{__name__}:run_request", {"request": str(request)})
        returncode, peak_kib = server.run(call, {**os.environ, **environment}, log, progress)
    except NotStartedError:
        server.end()
        return None
    except BaseException:
        server.end()
        raise
    finally:
        children.discard(server)
    if returncode == -signal.SIGKILL:
        # Whatever did that may have meant the server, which holds most of the memory.
        server.end()
    else:
        give_back(server)
    return returncode, peak_kib * 1024


def report_progress(done: int, total: int) -> None:
    """Tell the parent how far the stage is; nothing happens outside a child."""
    if fd := os.environ.get(_PROGRESS_FD):
        with suppress(OSError):
            os.write(int(fd), f"{done} {total}\n".encode())


def _died(label: str, returncode: int, peak_bytes: int, log: Path) -> EdgecError:
    peak = f"its memory had reached {peak_bytes / _MEBIBYTE:,.0f} MiB"
    if returncode == -signal.SIGKILL:
        return UnusableInput(
            f"The stage '{label}' was killed by the system, most likely for want of memory ({peak}). Close other "
            "programs, build with --jobs 1, or use a machine with more memory."
        )
    # A child that cannot write its answer cannot say why.
    if shutil.disk_usage(log.parent).free < _MEBIBYTE:
        return UnusableInput(disk_full_message(None))
    how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
    return UnusableInput(f"The stage '{label}' ended with {how}; {peak}. {_last_words(log)}")


def _error_of(error: Mapping[str, str], label: str, log: Path) -> EdgecError:
    if error["kind"] == "check":
        return CheckFailed(error["check"], error["message"])
    if error["kind"] == "input":
        return UnusableInput(error["message"])
    return UnusableInput(f"The stage '{label}' failed: {error['message']} {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    said = re.sub(r"\s+", " ", lines[-1])[:300] if lines else "nothing"
    return f"Its last line was: {said}. Run again with --debug to see all that it printed."


def run_request(request: str) -> None:
    """Do what a request file asks for, and leave the answer beside it: the work of a child."""
    die_with_parent()
    if "EDGEC_TENSORFLOW" not in os.environ:
        # Libraries of other targets import it wherever it is installed, which takes seconds and half a gigabyte.
        sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]
    place = Path(request)
    asked = json.loads(place.read_text(encoding="utf-8"))
    answer: dict[str, Any] = {}
    try:
        for function, arguments in asked["calls"]:
            module, name = function.split(":")
            answer = {"value": getattr(importlib.import_module(module), name)(**arguments)}
    except CheckFailed as error:
        answer = {"error": {"kind": "check", "check": error.check, "message": str(error)}}
    except EdgecError as error:
        answer = {"error": {"kind": "input", "message": str(error)}}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": _foreign_error(error, asked["out"])}
    answer["peak_rss_bytes"] = _own_peak_rss_bytes()
    result = place.with_name("result.json")
    result.with_suffix(".tmp").write_text(json.dumps(answer), encoding="utf-8")
    result.with_suffix(".tmp").rename(result)


def _own_peak_rss_bytes() -> int | None:
    """VmHWM. What wait4 tells the parent is at least the parent's own size at the time of the fork."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return int(found[1]) * 1024 if found else None


def _foreign_error(error: Exception, out: str | None) -> dict[str, str]:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # Writers in C++ (Core ML's, for one) do not say why they failed.
    full = full or (out is not None and shutil.disk_usage(out).free < _MEBIBYTE)
    if full or "No space left on device" in str(error):
        return {"kind": "input", "message": disk_full_message(getattr(error, "filename", None))}
    if isinstance(error, ModuleNotFoundError):
        return {
            "kind": "input",
            "message": f"{error.name} is not installed. `edgec doctor` says which extra brings it.",
        }
    if isinstance(error, MemoryError):
        return {"kind": "input", "message": "The memory is not enough. Close other programs, or use a larger machine."}
    text = re.sub(r"\s+", " ", str(error)).strip()[:600]
    return {"kind": "foreign", "message": f"{type(error).__name__}: {text}."}


def disk_full_message(filename: str | None) -> str:
    """The sentence for a disk without room."""
    where = f" while writing {Path(filename).name}" if filename else ""
    return f"The disk is full{where}. Free some room, or point EDGEC_CACHE and the output folder to another disk."


_PARENT = "EDGEC_PARENT"


def parent_environment() -> dict[str, str]:
    """What a child must be given so that `die_with_parent` knows its parent."""
    return {_PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, so that a killed edgec leaves no converter behind.

    A parent that ended before that was asked is no parent any more.
    """
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.environ.pop(_PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)


if __name__ == "__main__":
    run_request(sys.argv[1])
