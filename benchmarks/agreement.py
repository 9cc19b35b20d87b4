"""Whether a package computes on a device what it computes here: the same input in an agent on either side.

A package that only another machine can run is held to the fp32 model instead.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.harness import Progress, start_runner
from compiler.errors import CheckFailed, UnusableInput
from compiler.inputs.identity import find_identified
from compiler.package import Package
from compiler.package_use import is_usable, require_finished
from runtimes.devices.device import Device
from runtimes.devices.registry import open_device
from runtimes.kinds import kind_of_task
from runtimes.kinds.kind import Outputs
from runtimes.registry import require_measurable
from runtimes.verify.verification import read_verification
from runtimes.workload import Workload

CHECK = "device"
_HERE = "local"
THIS_MACHINE, FP32_MODEL = "this machine", "the fp32 model"
# Of kinds that are not held to their stored weights.
_LIMIT = 0.01
_WORKLOAD = Workload(prompt_tokens=24, generated_tokens=8, rounds=1, repetitions=1, warmup_repetitions=1)


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class _Said:
    outputs: dict[str, _Array]


@dataclass(frozen=True)
class Agreement:
    """How near a device is to this machine.

    Attributes:
        package: the package's title.
        device: the device.
        figure: which distance it is.
        distance: of what is computed there from what is computed here.
        limit: the most that is taken: what verify takes for the runtime's own rounding, which differs among processors.
        max_abs_difference: the largest difference of a value.
        held_to: what it was compared with.
    """

    package: str
    device: str
    figure: str
    distance: float
    limit: float
    max_abs_difference: float
    held_to: str = THIS_MACHINE

    @property
    def passed(self) -> bool:
        """Whether it computes the same there."""
        return bool(np.isfinite(self.max_abs_difference) and self.distance <= self.limit)


def compare_devices(
    packages: Sequence[Package], device: str, *, threads: int = 2, on_progress: Progress = lambda done, total: None
) -> list[Agreement]:
    """Run every package here and there on one seeded input.

    Raises:
        UnusableInput: a package was not verified here, it cannot be run on one of the sides, or the other answers nonsense.
    """
    limits = [_limit_of(package) for package in packages]
    for package in packages:
        require_finished(package)
        require_measurable(package)
    here, there = open_device(_HERE), open_device(device)
    found = []
    for number, (package, limit) in enumerate(zip(packages, limits, strict=True)):
        workload = replace(_WORKLOAD, threads=threads)
        held_to = THIS_MACHINE if is_usable(package) else FP32_MODEL
        own = _outputs(package, here, workload) if held_to == THIS_MACHINE else _expected(package, workload)
        other = _outputs(package, there, workload)
        if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in other.items()}:
            raise UnusableInput(
                f"{package.title} gives other outputs on {device} than here. Another edgec may run there."
            )
        kind = kind_of_task(package.model.task)
        largest = float(np.max([np.abs(other[name] - own[name]).max(initial=0.0) for name in own]))
        figure = kind.stored.figure if kind.stored else "relative error"
        distance = float(np.maximum(0.0, kind.apart(own, other)))
        found.append(Agreement(package.title, device, figure, distance, limit, largest, held_to))
        on_progress(number + 1, len(packages))
    return found


def require_agreement(found: Sequence[Agreement]) -> None:
    """Raise CheckFailed for the first package that computes something else there."""
    for each in found:
        if not each.passed:
            raise CheckFailed(
                CHECK,
                f"{each.package} does not compute on {each.device} what {_COMPUTES[each.held_to]}: {each.figure} "
                f"{each.distance:.2g}, and {each.limit:.2g} is the most that its runtime's rounding is taken for. Do not ship "
                "it for that device.",
            )


_COMPUTES = {THIS_MACHINE: "it computes here", FP32_MODEL: "the fp32 model computes"}


def _expected(package: Package, workload: Workload) -> Outputs:
    """What the fp32 model computes, for a package that cannot be run here."""
    kind = kind_of_task(package.model.task)
    if kind.reference is None:
        raise UnusableInput(f"{package.title} cannot be run here, so that there is nothing to hold the device to.")
    return kind.reference(package, find_identified(package.model).folder, workload)


def _limit_of(package: Package) -> float:
    if not is_usable(package):
        stored = kind_of_task(package.model.task).stored
        return stored.floor if stored else _LIMIT
    found = read_verification(package)
    if found is None or not found.lowered_right:
        raise UnusableInput(
            f"{package.title} was not found to be lowered right here, so that there is nothing to hold the device to. Run "
            f"`edgec verify {package.folder}` first."
        )
    return found.lowering.limit if found.lowering else _LIMIT


def _outputs(package: Package, device: Device, workload: Workload) -> Outputs:
    with ExitStack() as stack:
        runner = start_runner(device, package, workload, stack)
        runner.ask("load")
        said = runner.told(_Said, "outputs")
        runner.ask("end")
    try:
        return {
            name: np.frombuffer(base64.b64decode(each.data, validate=True), "<f4").reshape(each.shape)
            for name, each in said.outputs.items()
        }
    except (binascii.Error, ValueError) as error:
        raise UnusableInput(
            f"The agent on {device.name} answers nonsense. Another release of edgec may run there."
        ) from error
