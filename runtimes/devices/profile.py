"""DeviceProfile: the figures of a device, each with its unit, its source and how it is known. What is unknown stays unknown.

Those that edgec brings are in `profiles.toml` beside this file; the user's own are files of the same form in
`~/.config/edgec/devices`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.toml_file import read_toml
from compiler.stages.cache import write_atomically

KINDS = ("measured", "datasheet", "derived", "secondary")
_MEMORY = {"MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30}
_RATE = {f"{unit}/s": factor for unit, factor in _MEMORY.items()}
_COMPUTE = {"GFLOPS": 1e9, "TFLOPS": 1e12, "GOPS": 1e9, "TOPS": 1e12}
# What a figure is, and the units that it may have, in bytes, bytes a second or operations a second.
FIGURES: Mapping[str, Mapping[str, float]] = {
    "memory": _MEMORY,
    "bandwidth": _RATE,
    "decode_bandwidth": _RATE,
    "copy_bandwidth": _RATE,
    "bandwidth_peak": _RATE,
    "ane_bandwidth": _RATE,
    "fp32": _COMPUTE,
    "fp16": _COMPUTE,
    "fp64": _COMPUTE,
    "int8": _COMPUTE,
}
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


@dataclass(frozen=True)
class Figure:
    """A figure of a device.

    Attributes:
        value: in `unit`.
        unit: as people write it.
        kind: how it is known, one of `KINDS`.
        source: who says so.
        amount: the same in bytes, bytes a second or operations a second.
    """

    value: float
    unit: str
    kind: str
    source: str
    amount: float

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


@dataclass(frozen=True)
class DeviceProfile:
    """A device.

    Attributes:
        name: as `--device` of `plan` takes it.
        title: for people.
        machine: as Python's `platform` names it.
        targets: those whose runtimes exist for it.
        cores: how many, where it is known.
        engine_cores: of an accelerator, each with an equal part of the memory; None where programs share the memory.
        memory: in all.
        bandwidth: of a plain read of memory.
        decode_bandwidth: of weights, that a language model's runtime reached.
        copy_bandwidth: bytes read and written by a copy.
        bandwidth_peak: what the memory's rate and width allow.
        ane_bandwidth: of Apple's Neural Engine.
        fp32, fp16, fp64, int8: operations a second of products.
    """

    name: str
    title: str
    machine: str
    targets: tuple[str, ...]
    cores: int | None = None
    engine_cores: int | None = None
    memory: Figure | None = None
    bandwidth: Figure | None = None
    decode_bandwidth: Figure | None = None
    copy_bandwidth: Figure | None = None
    bandwidth_peak: Figure | None = None
    ane_bandwidth: Figure | None = None
    fp32: Figure | None = None
    fp16: Figure | None = None
    fp64: Figure | None = None
    int8: Figure | None = None

    @property
    def read_bandwidth(self) -> Figure | None:
        """What tells most of decoding."""
        return self.decode_bandwidth or self.bandwidth or self.bandwidth_peak


def own_folder() -> Path:
    """Where the user's own profiles are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "edgec" / "devices"


def read_profiles() -> dict[str, DeviceProfile]:
    """Every profile by its name; the user's own take the place of those that edgec brings.

    Raises:
        UnusableInput: a file of the user's is not of the form.
    """
    files = [Path(__file__).with_name("profiles.toml"), *sorted(own_folder().glob("*.toml"))]
    return {profile.name: profile for file in files for profile in read_profile_file(file)}


def find_profile(name: str) -> DeviceProfile:
    """The profile of that name.

    Raises:
        UnusableInput: there is none; the sentence suggests the nearest.
    """
    known = read_profiles()
    if name not in known:
        if ":" in name:
            raise UnusableInput(
                f"{name!r:.60} is a device that is reached, and plans are made for devices that are known. Measure it once: "
                f"edgec devices add NAME --from {name:.60}"
            )
        nearest = _nearest(name.lower(), list(known))
        hint = f" Did you mean {nearest}?" if nearest else ""
        raise UnusableInput(f"There is no device {name!r:.60}.{hint} `edgec devices` lists those that there are.")
    return known[name]


def _nearest(name: str, known: list[str]) -> str | None:
    """What was begun is meant before what has its letters and numbers, and that before what looks alike."""
    words = set(re.findall(r"[a-z]+|\d+", name))
    begun = [each for each in known if name and each.startswith(name)]
    shared = {each: len(words & set(re.findall(r"[a-z]+|\d+", each))) for each in known}
    alike = [each for each in known if shared[each] and shared[each] == max(shared.values())]
    found = begun or alike or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return found[0] if found else None


def profile_of_machine(
    name: str,
    title: str,
    machine: str,
    targets: tuple[str, ...],
    cores: int | None,
    memory: int,
    bandwidth: float | None,
    fp32: float | None = None,
    int8: float | None = None,
) -> DeviceProfile:
    """The profile of a machine that was looked at: bytes of memory, bytes a second that were read, operations a second."""

    def figure(amount: float | None, unit: str, factor: float) -> Figure | None:
        if not amount:
            return None
        return Figure(round(amount / factor, 2), unit, "measured", "edgec, on the machine", amount)

    read = figure(bandwidth, "GB/s", 1e9)
    rates = {"fp32": figure(fp32, "GFLOPS", 1e9), "int8": figure(int8, "GOPS", 1e9)}
    return DeviceProfile(name, title, machine, targets, cores, None, figure(memory, "GB", 1e9), read, **rates)


def require_new(name: str) -> Path:
    """The file of a device that is to be added to the user's own.

    Raises:
        UnusableInput: the name is none, or there is such a file.
    """
    if not _NAME.fullmatch(name):
        raise UnusableInput(f"A device cannot be called {name!r:.60}. Names are of small letters, digits, dots and -.")
    file = own_folder() / f"{name}.toml"
    if file.exists():
        raise UnusableInput(f"There is a device of that name: {file}. Remove the file, or choose another name.")
    return file


def write_profile(profile: DeviceProfile) -> Path:
    """Add a profile to the user's own; its file.

    Raises:
        UnusableInput: as of `require_new`.
    """
    file = require_new(profile.name)
    quoted = json.dumps  # TOML's basic strings and lists are JSON's
    lines = ["[[device]]", f"name = {quoted(profile.name)}", f"title = {quoted(profile.title)}"]
    lines += [f"machine = {quoted(profile.machine)}", f"targets = {quoted(list(profile.targets))}"]
    for key in ("cores", "engine_cores"):
        lines += [f"{key} = {count}"] if (count := getattr(profile, key)) else []
    for key in FIGURES:
        told: Figure | None = getattr(profile, key)
        if told is not None:
            words = {"value": told.value, "unit": told.unit, "kind": told.kind, "source": told.source}
            lines.append(f"{key} = {{ {', '.join(f'{name} = {quoted(value)}' for name, value in words.items())} }}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "\n".join(lines) + "\n")
    return file


def read_profile_file(file: Path) -> list[DeviceProfile]:
    """The profiles of a TOML file.

    Raises:
        UnusableInput: it is not of the form; the sentence names the device and the figure.
    """
    document, _ = read_toml(file, file.name)
    devices = document.get("device")
    if (
        set(document) != {"device"}
        or not isinstance(devices, list)
        or not all(isinstance(each, dict) for each in devices)
    ):
        raise UnusableInput(f"{file.name} is no list of devices. Write [[device]] before each.")
    return [_profile(each, file.name) for each in devices]


def _profile(told: dict[str, Any], file: str) -> DeviceProfile:
    name = told.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UnusableInput(
            f"{file} has a device of the name {name!r:.60}. Names are of small letters, digits, dots and -."
        )
    where = f"The device {name} in {file}"
    known = {field.name for field in fields(DeviceProfile)}
    if unknown := sorted(set(told) - known):
        nearest = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise UnusableInput(f"{where} has an unknown key {unknown[0]!r:.60}.{hint}")
    targets = told.get("targets")
    if not isinstance(told.get("title"), str) or not isinstance(told.get("machine"), str):
        raise UnusableInput(f"{where} lacks a title or a machine, such as aarch64.")
    if not isinstance(targets, list) or not targets or not all(isinstance(each, str) for each in targets):
        raise UnusableInput(f"{where} lacks targets, a list such as ['gguf', 'onnx'].")
    for key in ("cores", "engine_cores"):
        if key in told and (type(told[key]) is not int or told[key] < 1):
            raise UnusableInput(f"{where} has {told[key]!r:.20} {key}.")
    figures = {key: _figure(key, told[key], where) for key in FIGURES if key in told}
    cores, engine_cores = told.get("cores"), told.get("engine_cores")
    return DeviceProfile(name, told["title"], told["machine"], tuple(targets), cores, engine_cores, **figures)


def _figure(key: str, told: Any, where: str) -> Figure:
    units = FIGURES[key]
    if not isinstance(told, dict) or set(told) != {"value", "unit", "kind", "source"}:
        raise UnusableInput(f"{where}: {key} needs a value, a unit, a kind and a source.")
    value, unit, kind, source = told["value"], told["unit"], told["kind"], told["source"]
    if not isinstance(unit, str) or unit not in units:
        raise UnusableInput(f"{where}: {key} has the unit {unit!r:.20}; it is told in {', '.join(units)}.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UnusableInput(f"{where}: {key} is {value!r:.20}, which is no number above 0.")
    if kind not in KINDS or not isinstance(source, str) or not source.strip():
        raise UnusableInput(f"{where}: {key} says not how it is known ({', '.join(KINDS)}) and by whom.")
    return Figure(float(value), unit, kind, source, value * units[unit])
