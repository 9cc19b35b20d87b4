"""Whether this machine can use a package: it is finished, and made for such a machine."""

from __future__ import annotations

import platform
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.package import Package


def require_finished(package: Package, *, proving: bool = False) -> None:
    """Refuse a package of which another machine must still do a part; who only proves it takes what can be proved without.

    Raises:
        UnusableInput: it is unfinished.
    """
    unfinished = package.lowered.unfinished
    if unfinished is not None and not (proving and unfinished.provable):
        raise UnusableInput(
            f"{package.title} is unfinished: {unfinished.step} is still to be done on {unfinished.where}. Finish it there; "
            "until then it cannot be run."
        )


def require_usable(package: Package, *, proving: bool = False) -> None:
    """Refuse a package that this machine cannot use, or cannot prove.

    Raises:
        UnusableInput: it is unfinished, or made for another machine.
    """
    require_finished(package, proving=proving)
    needs = package.lowered.platform
    if needs is not None and (needs.system, needs.machine) != (platform.system(), platform.machine()):
        raise UnusableInput(
            f"{package.title} is for {needs.machine} on {needs.system}, and this machine is {platform.machine()} on "
            f"{platform.system()}. Use it there, or build it anew for this machine."
        )
    if needs is not None and (lacking := sorted(set(needs.instructions) - _instructions_here(needs.instructions))):
        raise UnusableInput(
            f"{package.title} is compiled for a processor with {', '.join(lacking)}, which this one has not: it would end "
            "by an illegal instruction. Build it anew on this machine, or for an older processor."
        )


def _instructions_here(asked: tuple[str, ...]) -> set[str]:
    """Those of the instructions that this processor has; all of them where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set(asked)
    told = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return set(told[0].split()) if told else set(asked)


def is_usable(package: Package) -> bool:
    """Whether it is made for such a machine as this one."""
    needs = package.lowered.platform
    if needs is None:
        return True
    same = (needs.system, needs.machine) == (platform.system(), platform.machine())
    return same and set(needs.instructions) <= _instructions_here(needs.instructions)


def is_provable(package: Package) -> bool:
    """Whether it can be verified on this machine."""
    unfinished = package.lowered.unfinished
    return is_usable(package) and (unfinished is None or unfinished.provable)
