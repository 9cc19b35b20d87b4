"""A compilation job, and everything about it that can be held to Neo's tables before it is sent.

Limits and patterns are those of the API (botocore's service model); botocore itself checks neither enumerations, patterns nor
largest lengths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.package import Port
from targets.neo.cloud.options import OptionTarget, find_option_faults
from targets.neo.cloud.tables import (
    ACCELERATORS,
    ARCHITECTURES,
    DEVICES,
    EDGE,
    ELF_OF,
    FRAMEWORKS,
    INSTANCES,
    PLATFORMS,
    SYSTEMS,
    UNPUBLISHED,
    find_device,
)

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_ROLE = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/?(.*)")
_VERSION = re.compile(r"[0-9]\.[A-Za-z0-9.]+")
_MOST_INPUT = 16384
_MOST_ARN, _MOST_URI = 2048, 1024
_CHANNELS = (1, 3, 4)
# Others have one version, or none that can be chosen.
_VERSIONED = ("MXNET", "PYTORCH", "TENSORFLOW", "TFLITE")


@dataclass(frozen=True)
class TargetPlatform:
    """A machine by its parts, where no TargetDevice stands for it."""

    system: str
    architecture: str
    accelerator: str = ""


@dataclass(frozen=True)
class CompilationJob:
    """What Neo is asked for, but where it lies and whose rights it has.

    Attributes:
        framework: as the API has it.
        version: of the framework; None for Neo's default.
        inputs: the shape of each input by name.
        device: a TargetDevice; None where `platform` is given.
        platform: else.
        options: compiler options, as JSON; None without.
    """

    framework: str
    version: str | None
    inputs: Mapping[str, tuple[int, ...]]
    device: str | None = None
    platform: TargetPlatform | None = None
    options: Mapping[str, Any] | None = None

    @property
    def data_input(self) -> str:
        """DataInputConfig: JSON with double quotes, as Neo's reader wants it."""
        return json.dumps({name: list(shape) for name, shape in self.inputs.items()})

    @property
    def machines(self) -> tuple[int, ...]:
        """Those that a library which comes back may be for, as ELF numbers them; none where no page tells."""
        if self.platform is not None:
            return tuple(filter(None, [ELF_OF.get(self.platform.architecture)]))
        device = find_device(self.device) if self.device else None
        return device.elf if device else ()

    @property
    def on_instance(self) -> bool:
        """Whether it is for one of the cloud's machines, other than Inferentia."""
        device = find_device(self.device) if self.device else None
        return device is not None and device.frameworks is INSTANCES

    @property
    def system(self) -> str:
        """That a library which comes back is for, as Python's `platform` names it."""
        device = find_device(self.device) if self.device else None
        told = self.platform.system if self.platform else device.system if device else ""
        return "Android" if told.upper() == "ANDROID" else "Linux"

    @property
    def title(self) -> str:
        """What it is for."""
        if self.platform is None:
            return self.device or ""
        parts = (self.platform.system, self.platform.architecture, self.platform.accelerator)
        return "/".join(part for part in parts if part)


def find_faults(job: CompilationJob, ports: Sequence[Port] = ()) -> Iterator[str]:
    """A sentence for everything that Neo would refuse; `ports` are the model's own inputs, where they are known."""
    yield from _of_target(job)
    yield from _of_framework(job)
    yield from _of_inputs(job)
    yield from _of_model(job, ports)
    yield from find_option_faults(_option_target(job), job.options)


def _of_target(job: CompilationJob) -> Iterator[str]:
    if (job.device is None) == (job.platform is None):
        yield "Give a TargetDevice or a TargetPlatform, one of them: they exclude each other."
        return
    if job.platform is None:
        if job.device in UNPUBLISHED:
            yield f"AWS publishes no frameworks for the TargetDevice {job.device}, so that nothing can be held to them."
        elif find_device(str(job.device)) is None:
            known = ", ".join(device.name for device in DEVICES)
            yield f"{job.device!r} is no TargetDevice. There are: {known}."
        return
    system, architecture, accelerator = job.platform.system, job.platform.architecture, job.platform.accelerator
    for value, known_values, what in (
        (system, SYSTEMS, "Os"), (architecture, ARCHITECTURES, "Arch"), (accelerator, ("", *ACCELERATORS), "Accelerator"),
    ):  # fmt: skip
        if value not in known_values:
            yield f"{value!r} is no {what} of a TargetPlatform. There are: {', '.join(filter(None, known_values))}."
    if architecture not in (taken := PLATFORMS.get((system, accelerator), ())):
        pair = f"{system} with {accelerator}" if accelerator else system
        told = f"Neo has for it: {', '.join(taken)}" if taken else "Neo has nothing for it"
        yield f"{pair} does not go with {architecture}. {told}."


def _of_framework(job: CompilationJob) -> Iterator[str]:
    if job.framework not in FRAMEWORKS:
        yield f"{job.framework!r} is no framework of Neo's. There are: {', '.join(FRAMEWORKS)}."
        return
    device = find_device(job.device) if job.device else None
    if device is not None or job.platform is not None:
        every = EDGE if device is None else device.frameworks
        rows = [row for row in every if row.name == job.framework]
        if not rows:
            known = ", ".join(sorted({each.name for each in every}))
            yield f"{job.title} takes no {job.framework}. It takes: {known}."
            return
        versions = tuple(version for row in rows for version in row.versions)
        if job.version is not None and job.framework not in _VERSIONED:
            yield f"FrameworkVersion is for {', '.join(_VERSIONED)}; Neo takes none for {job.framework}. Leave it out."
        elif job.version is not None and job.version not in versions:
            yield f"{job.title} takes {job.framework} {', '.join(versions)}, not {job.version}."
        if job.version is not None and device is not None and not device.versioned:
            yield f"{device.name} takes no FrameworkVersion: Neo ends such jobs with a ValidationException. Leave it out."
    if job.version is not None and not (_VERSION.fullmatch(job.version) and 3 <= len(job.version) <= 10):
        yield f"{job.version!r} is no FrameworkVersion: it has the form 2.0."


def _of_model(job: CompilationJob, ports: Sequence[Port]) -> Iterator[str]:
    model = {port.name: port.shape for port in ports}
    if missing := [name for name in model if name not in job.inputs]:
        given = ", ".join(job.inputs) or "none"
        yield f"The model has the input {missing[0]}, and DataInputConfig does not name it; it names: {given}."
    if model and (extra := [name for name in job.inputs if name not in model]):
        yield f"DataInputConfig names the input {extra[0]}, which the model has not; it has: {', '.join(model)}."
    dtype = (job.options or {}).get("dtype", "float32")
    typed = job.framework == "PYTORCH" and job.on_instance
    for port in ports:
        if typed and (port.dtype == "int64") != (dtype in ("int64", "long")):
            yield f"The input {port.name} is {port.dtype}, and the dtype of CompilerOptions says {dtype!r:.40}."
    for name, shape in model.items():
        if name in job.inputs and tuple(job.inputs[name]) != tuple(shape):
            yield f"The model's input {name} has the shape {list(shape)}, and DataInputConfig says {list(job.inputs[name])}."


def _of_inputs(job: CompilationJob) -> Iterator[str]:
    if not job.inputs and job.framework not in ("XGBOOST", "SKLEARN"):
        yield "DataInputConfig names no input. Name each with its shape."
    for name, shape in job.inputs.items():
        if not shape or any(type(size) is not int or size < 1 for size in shape):
            yield f"The input {name} has the shape {list(shape)}; every size must be a whole number above 0, none free."
    if job.framework == "PYTORCH" and list(job.inputs) != sorted(job.inputs):
        yield (
            f"Neo's reader of PyTorch models gives inputs in the order of their names, {', '.join(sorted(job.inputs))}, "
            f"and here they come as {', '.join(job.inputs)}. Name them so that both are one."
        )
    for name, shape in job.inputs.items():
        last = len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS
        if last and job.framework in ("PYTORCH", "ONNX", "MXNET", "KERAS"):
            yield f"The input {name} has its channels last; {job.framework} wants batch, channels, height, width."
    if len(job.data_input) > _MOST_INPUT:
        yield f"DataInputConfig has {len(job.data_input)} characters, and {_MOST_INPUT} is the most."


def _option_target(job: CompilationJob) -> OptionTarget:
    if job.platform is not None:
        return OptionTarget(job.title, job.platform.system, job.platform.accelerator, False, True, job.framework)
    device = find_device(job.device) if job.device else None
    system, accelerator = (device.system, device.accelerator) if device is not None else ("", "")
    return OptionTarget(job.title, system, accelerator, job.on_instance, False, job.framework)


def find_request_faults(name: str, role: str, source: str, out: str, seconds: int) -> Iterator[str]:
    """The same of what is said for one run: the job's name, the role, where the archive lies, where the result goes."""
    if not _NAME.fullmatch(name):
        yield f"The job's name {name!r} is not of up to 63 letters, digits and single hyphens between them."
    if not (_ROLE.fullmatch(role) and 20 <= len(role) <= _MOST_ARN):
        yield f"The role {role!r} is no ARN of a role, such as arn:aws:iam::123456789012:role/neo."
    for what, uri in (("archive", source), ("result", out)):
        if not (_S3.fullmatch(uri) and len(uri) <= _MOST_URI):
            yield f"The place of the {what}, {uri!r}, is none in S3, such as s3://bucket/folder."
    if not source.endswith(".tar.gz"):
        yield f"The archive {source!r} has to end in .tar.gz."
    if seconds < 1:
        yield "A job takes at least a second."


def request(job: CompilationJob, name: str, role: str, source: str, out: str, seconds: int) -> dict[str, Any]:
    """What `create_compilation_job` is called with."""
    given: dict[str, Any] = {"S3Uri": source, "Framework": job.framework}
    if job.inputs:
        given["DataInputConfig"] = job.data_input
    if job.version is not None:
        given["FrameworkVersion"] = job.version
    wanted: dict[str, Any] = {"S3OutputLocation": out}
    if job.platform is None:
        wanted["TargetDevice"] = job.device
    else:
        wanted["TargetPlatform"] = {"Os": job.platform.system, "Arch": job.platform.architecture}
        if job.platform.accelerator:
            wanted["TargetPlatform"]["Accelerator"] = job.platform.accelerator
    if job.options:
        wanted["CompilerOptions"] = json.dumps(job.options)
    return {
        "CompilationJobName": name,
        "RoleArn": role,
        "InputConfig": given,
        "OutputConfig": wanted,
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
    }
