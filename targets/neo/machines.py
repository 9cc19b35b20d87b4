"""The machines that TVM compiles for: LLVM's words for them, and the tile of a product of matrices that suits their registers.

A tile of `rows` x `columns` sums stays in registers: 12 of the 16 vectors of AVX2, 16 of the 32 of AVX-512 and of ARM's NEON.
TVM keeps a tile on the stack, from where LLVM takes it into registers, up to 1024 bytes (kMaxStackAlloca).
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput

LOCAL = "local"


@dataclass(frozen=True)
class Machine:
    """What is compiled for.

    Attributes:
        system, machine: as Python's `platform` names them.
        llvm: a target of TVM's.
        lanes: float32 values of a vector.
        rows, columns: of a tile.
        linker: the C++ compiler that links for it; None for this machine's own.
        instructions: those that its code may use and not every such machine has, as /proc/cpuinfo names them.
    """

    system: str
    machine: str
    llvm: Mapping[str, Any]
    lanes: int
    rows: int
    columns: int
    linker: str | None = None
    instructions: tuple[str, ...] = ()

    def width_for(self, outputs: int) -> int:
        """Columns of a tile that waste the fewest of so many outputs, the widest of those."""
        return min(range(self.columns, 0, -self.lanes), key=lambda width: -outputs % width)


_AARCH64 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
_LINKER = "aarch64-linux-gnu-g++"
_CROSS = {
    "x86-64-v3": Machine(
        "Linux",
        "x86_64",
        {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
        8,
        4,
        24,
        "x86_64-linux-gnu-g++",
        # What x86-64-v3 adds (x86-64 psABI).
        ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"),
    ),
    # What a Raspberry Pi 4 has, which a Pi 5 runs too.
    "aarch64": Machine("Linux", "aarch64", {**_AARCH64, "mcpu": "cortex-a72"}, 4, 8, 8, _LINKER),
    "cortex-a76": Machine(
        "Linux", "aarch64", {**_AARCH64, "mcpu": "cortex-a76"}, 4, 8, 8, _LINKER, ("asimddp", "asimdhp", "atomics")
    ),
}
VARIANTS = (LOCAL, *_CROSS)
_NOT_EVERYWHERE = (
    "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "asimddp", "asimdhp", "atomics", "sve",
)  # fmt: skip
# From the widest on: a feature of LLVM's, lanes, rows, columns.
_TILES = (("avx512f", 16, 8, 32), ("avx2", 8, 4, 24), ("neon", 4, 8, 8))


def machine_of(variant: str) -> Machine:
    """The machine of a variant; `local` is asked of LLVM.

    Raises:
        UnusableInput: what links for it is not installed.
    """
    if variant == LOCAL:
        return _this_machine()
    machine = _CROSS[variant]
    own = (platform.system(), platform.machine()) == (machine.system, machine.machine)
    if own or machine.linker is None:
        return replace(machine, linker=None)
    if shutil.which(machine.linker) is None:
        raise UnusableInput(
            f"Compiling for {variant} needs {machine.linker} to link, which is not on the PATH. Debian has it: apt install "
            f"g++-{machine.linker.removesuffix('-g++').replace('_', '-')}."
        )
    return machine


def _masked() -> set[str]:
    """Features that a processor of this name has, and this (virtual) machine does not let programs use."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(errors="replace") if info.is_file() else ""
    if "flags" not in flags:
        return set()
    return {feature for feature, *_ in _TILES if feature != "neon" and f" {feature} " not in flags.replace("\n", " ")}


def _this_machine() -> Machine:
    import tvm

    cpu = tvm.target.codegen.llvm_get_system_cpu()
    features = tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": cpu}))
    known = {str(name) for name in features} - _masked()
    lanes, rows, columns = next((tile for feature, *tile in _TILES if feature in known), (4, 4, 16))
    llvm: dict[str, Any] = {"kind": "llvm", "mcpu": cpu, "vector-width": lanes * 32}
    if "avx512f" not in known and any(str(name).startswith("avx512") for name in features):
        # Of such a processor without those instructions nothing but AVX2 is taken.
        llvm["mcpu"] = "x86-64-v3"
    return Machine(platform.system(), platform.machine(), llvm, lanes, rows, columns, None, _instructions_here())


def _instructions_here() -> tuple[str, ...]:
    """Those of this processor that LLVM may use for it and others may lack."""
    info = Path("/proc/cpuinfo")
    told = info.read_text(errors="replace").replace("\n", " ").split(" ") if info.is_file() else []
    return tuple(name for name in _NOT_EVERYWHERE if name in told)
