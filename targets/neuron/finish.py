"""Runs AWS's compiler on every graph of a package, on a machine that has it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from compiler.errors import CheckFailed, UnusableInput
from compiler.finish import Finished
from compiler.formats.neff import require_neff
from compiler.package import Package
from compiler.recipe import recipe_from_full
from compiler.stages.worker import Progress
from targets.neuron.command import COMPILER, arguments, module_name, neff_name
from targets.neuron.error_codes import MEANINGS, explain
from targets.neuron.target import DEVICES

_VERSION = re.compile(r"\d+\.\d+[\w.+-]*")
_MOST_LOG = 1 << 20


def is_here() -> bool:
    """Whether AWS's compiler is on this machine."""
    return shutil.which(COMPILER) is not None


def finish(folder: Path, package: Package, on_progress: Progress) -> Finished:
    """Write a NEFF for each graph into the folder; the compiler's version, and what the package is, as before.

    Raises:
        UnusableInput: the compiler is not installed.
        CheckFailed: it failed, or made nothing.
    """
    program = shutil.which(COMPILER)
    if program is None:
        raise UnusableInput(
            f"{COMPILER} is not on the PATH. It is a part of AWS's Neuron SDK (Amazon's Neuron images have it); its own "
            "documents tell how to install it. Nothing was changed."
        )
    device = recipe_from_full(package.recipe_full).variant or DEVICES[0]
    graphs = [graph.name for graph in package.lowered.graphs]
    # They are names of files, and words of a command.
    if odd := [name for name in graphs if not re.fullmatch(r"[A-Za-z]\w{0,80}", name)]:
        raise UnusableInput(
            f"{package.title} has a graph {odd[0]!r:.80}, which no module of edgec's is called. Refused."
        )
    # Asked first: a program that cannot tell it would compile for an hour in vain.
    version = _version(program)
    for number, graph in enumerate(graphs):
        on_progress(number, len(graphs))
        _compile(program, folder, graph, device, package.title)
    on_progress(len(graphs), len(graphs))
    return Finished({COMPILER: version}, package.lowered)


def _compile(program: str, folder: Path, graph: str, device: str, title: str) -> None:
    """One graph, in a folder of its own: the compiler leaves its logs where it runs."""
    with tempfile.TemporaryDirectory(prefix="edgec-neuron-") as temporary:
        work = Path(temporary)
        shutil.copyfile(folder / module_name(graph), work / module_name(graph))
        printed = work / "printed.log"
        with printed.open("wb") as log:
            done = subprocess.run(
                [program, *arguments(graph, device)],
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        told = b"".join(_tail(path) for path in (printed, *sorted(work.glob("log-neuron-cc*.txt"))))
        if done.returncode != 0:
            code, meaning = explain(told.decode("utf-8", "replace"))
            named = f"error {code}" if code else f"exit code {done.returncode}"
            if done.returncode == -signal.SIGKILL:
                named, meaning = "killed", MEANINGS["F137"]
            raise CheckFailed("neuron", f"{COMPILER} did not compile the graph {graph} of {title} ({named}): {meaning}")
        made = work / neff_name(graph)
        if not made.is_file():
            raise CheckFailed(
                "neuron", f"{COMPILER} ended well and made no {made.name} of {title}. Is it AWS's compiler?"
            )
        try:
            require_neff(made)
        except UnusableInput as error:
            raise CheckFailed(
                "neuron", f"What {COMPILER} made of the graph {graph} of {title} is refused: {error}"
            ) from error
        shutil.copyfile(made, folder / made.name)


def _tail(path: Path) -> bytes:
    """The end of a log, which may have grown large."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _MOST_LOG))
        return stream.read()


def _version(program: str) -> str:
    with tempfile.TemporaryDirectory(prefix="edgec-neuron-") as work:
        try:
            done = subprocess.run(
                [program, "--version"], cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                check=False,
            )  # fmt: skip
        except OSError as error:
            raise UnusableInput(
                f"{program} cannot be started: it is damaged, or the Python that it names is gone. Install Neuron's SDK anew."
            ) from error
    found = _VERSION.search(done.stdout + done.stderr)
    if found is None:
        raise CheckFailed("neuron", f"{COMPILER} --version tells no version. Is it AWS's compiler?")
    return found[0]
