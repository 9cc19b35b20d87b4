"""The devices, by the name of their transport. A new transport is one line here."""

from __future__ import annotations

import importlib

from compiler.errors import UnusableInput
from runtimes.devices.device import Device

# name, module with a function `open_device`
DEVICES: tuple[tuple[str, str], ...] = (("local", "runtimes.devices.local"),)


def open_device(name: str) -> Device:
    """The device of that name.

    Raises:
        UnusableInput: there is none.
    """
    module = dict(DEVICES).get(name)
    if module is None:
        raise UnusableInput(f"There is no device {name!r}. Devices are: {', '.join(name for name, _ in DEVICES)}.")
    device: Device = importlib.import_module(module).open_device()
    return device
