"""The command of AWS's compiler for each graph, exactly as it is run, here or on an AWS machine.

Flags are those of neuronx-cc 2.21 to 2.27 (aws-neuron-sdk, compiler/neuronx-cc/api-reference-guide). `--auto-cast none` is
said because its default was another before 2.22: what is cast stands in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

COMPILER = "neuronx-cc"
SCRIPT = "compile.sh"
LOG = "log-neuron-cc.txt"


def module_name(graph: str) -> str:
    """The file of a graph's HLO module."""
    return f"{graph}.hlo_module.pb"


def neff_name(graph: str) -> str:
    """The file that the compiler makes of it."""
    return f"{graph}.neff"


def arguments(graph: str, device: str) -> list[str]:
    """What the compiler is called with, behind its name, in the package's folder."""
    return [
        "compile", module_name(graph), "--framework", "XLA", "--target", device, "--model-type", "transformer",
        "--auto-cast", "none", "--optlevel", "2", "--output", neff_name(graph),
    ]  # fmt: skip


def script(graphs: Sequence[str], device: str) -> str:
    """A shell script that compiles every graph beside it."""
    lines = [
        "#!/bin/sh",
        "# Compiles the HLO modules beside this file with AWS's neuronx-cc. `edgec build --finish FOLDER` does the same, and",
        "# puts what comes of it into the package; run this by hand where edgec is not installed: sh compile.sh OUT.",
        "set -eu",
        'out="${1:?name a folder that the compiled graphs go into}"',
        'here="$(cd "$(dirname "$0")" && pwd)"',
        'mkdir -p "$out" && cd "$out"',
        *(
            f'cp "$here/{module_name(graph)}" . && {" ".join([COMPILER, *arguments(graph, device)])}'
            for graph in graphs
        ),
    ]
    return "\n".join(lines) + "\n"
