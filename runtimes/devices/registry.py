"""The devices, by the name of their transport. A new transport is one line here."""

from __future__ import annotations

import importlib

from compiler.errors import UnusableInput
from runtimes.devices.device import Device

# name, module with a function `open_device`
DEVICES: tuple[tuple[str, str], ...] = (
    ("local", "runtimes.devices.local"),
    ("ssh", "runtimes.devices.ssh"),
    ("adb", "runtimes.devices.adb"),
    ("qemu", "runtimes.devices.qemu"),
)


# Transports whose processor is emulated: what is computed there counts, how fast does not.
_EMULATED = ("qemu",)


def is_emulated(text: str) -> bool:
    """Whether a device that measurements name so has an emulated processor."""
    return text.partition(":")[0] in _EMULATED


def require_transport(text: str) -> str:
    """The module of the transport that a device is named by.

    Raises:
        UnusableInput: there is no such transport.
    """
    module = dict(DEVICES).get(text.partition(":")[0])
    if module is None:
        raise UnusableInput(
            f"There is no device {text!r:.80}. Devices are: {', '.join(name for name, _ in DEVICES)}; names such as pi-5-8gb "
            "are for plan alone, and a board itself is ssh://user@host."
        )
    return module


def open_device(text: str) -> Device:
    """The device that `TRANSPORT` or `TRANSPORT:ADDRESS` names.

    Raises:
        UnusableInput: there is no such transport, or nothing at that address.
    """
    device: Device = importlib.import_module(require_transport(text)).open_device(text.partition(":")[2])
    return device
