"""The README followed by someone who has nothing else: a clean clone, a bare virtual environment, its commands as they stand.

    python tests/bare.py

Takes about 12 minutes where llama-cpp-python has to be compiled, and three where pip has its wheel. The commands are those
that tests/test_real_models.py takes from the README; here `edgec` and `python` are those of the bare environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_WALK = "four_bit_file or a_chat_with_it or its_speed or own_python or a_gate"


def main() -> None:
    """Clone, install, walk; the exit code is that of the walk."""
    with tempfile.TemporaryDirectory(prefix="edgec-bare-") as work:
        clone, environment = Path(work) / "edgec", Path(work) / "venv"
        _run(["git", "clone", "--quiet", "--depth", "1", _ROOT.as_uri(), str(clone)])
        install = _install_command(clone)
        _run([sys.executable, "-m", "venv", str(environment)])
        started = time.monotonic()
        _run(["bash", "-c", install], cwd=clone, PATH=f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}")
        print(f"{install}: {time.monotonic() - started:.0f} s", flush=True)
        walk = [sys.executable, "-P", "-m", "pytest", "tests/test_real_models.py", "-n0", "-v", "-k", _WALK]
        _run(walk, cwd=_ROOT, EDGEC_READER_BIN=str(environment / "bin"))


def _install_command(clone: Path) -> str:
    """The README's own command to install."""
    found = re.search(r"^ {4}(pip install \S+)", (clone / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit("The README names no command to install.")
    return found[1]


def _run(command: list[str], cwd: Path | None = None, **environment: str) -> None:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
