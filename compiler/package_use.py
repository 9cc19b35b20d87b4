"""Whether this machine can use a package: it is finished, and made for such a machine."""

from __future__ import annotations

import platform

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
    if needs is not None and not is_usable(package):
        raise UnusableInput(
            f"{package.title} is for {needs.machine} on {needs.system}, and this machine is {platform.machine()} on "
            f"{platform.system()}. Use it there, or build it anew for this machine."
        )


def is_usable(package: Package) -> bool:
    """Whether it is made for such a machine as this one."""
    needs = package.lowered.platform
    return needs is None or (needs.system, needs.machine) == (platform.system(), platform.machine())


def is_provable(package: Package) -> bool:
    """Whether it can be verified on this machine."""
    unfinished = package.lowered.unfinished
    return is_usable(package) and (unfinished is None or unfinished.provable)
