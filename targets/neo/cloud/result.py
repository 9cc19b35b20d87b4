"""Holds what a compilation job gave back to what was asked: Neo has ended jobs well that compiled nothing.

What a compiled model consists of: neo-ai/neo-ai-dlr 457aabf (2022-08), dlr_common.cc and dlr_tvm.cc; of a job that gives its
input back, neo-ai-dlr#73.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from targets.neo.cloud.job import CompilationJob

_LIBRARIES = (".so", ".dll", ".dylib")
_NOT_MODELS = ("libdlr.so", "dlr.dll", "libdlr.dylib")
# JSON files that DLR does not take for a graph.
_NO_GRAPHS = ("model-shapes.json", "hyperparams.json", "version.json")
_ELF, _ZIP = b"\x7fELF", b"PK\x03\x04"
_MACHINES = {3: "x86", 40: "32-bit ARM", 62: "x86-64", 183: "ARM64"}
META = ".meta"


def find_result_faults(
    job: CompilationJob,
    digests: Mapping[str, str],
    sent: Mapping[str, str],
    heads: Mapping[str, bytes],
    meta: bytes | None,
) -> Iterator[str]:
    """A sentence for everything about the files that came back that is not as it was asked for.

    Args:
        job: what was asked for.
        digests: SHA-256 of each file that came back, by name.
        sent: the same of what was sent.
        heads: the first 20 bytes of each library and model.
        meta: the file that tells about the model, where there is one.
    """
    if not digests:
        yield "Neo gave back an empty archive."
        return
    if set(digests.values()) <= set(sent.values()):
        yield "Neo gave back the files that it was sent: it compiled nothing, although it says that the job is completed."
        return
    if any(name.endswith((".pt", ".pth")) for name in digests):
        # Cloud targets of PyTorch get a model for PyTorch's own runtime back.
        models = [name for name in digests if name.endswith((".pt", ".pth"))]
        unchanged = [name for name, digest in digests.items() if digest in sent.values()]
        if unchanged:
            yield f"{unchanged[0]} came back as it was sent: Neo did not compile it."
        if len(models) > 1:
            yield f"{len(models)} models came back: {', '.join(sorted(models))}; one was sent."
        for name in digests:
            if name.endswith(".so") and not heads.get(name, b"").startswith(_ELF):
                yield f"{name} is no library of Linux: it is no ELF file."
        return
    libraries = [name for name in digests if name.endswith(_LIBRARIES) and PurePosixPath(name).name not in _NOT_MODELS]
    graphs = [name for name in digests if name.endswith(".json") and PurePosixPath(name).name not in _NO_GRAPHS]
    parameters = [name for name in digests if name.endswith(".params")]
    executable = [name for name in digests if name.endswith(".ro")]
    for what, files, least in (
        ("library", libraries, 1), ("graph (.json)", graphs, 0 if executable else 1),
        ("file of parameters (.params)", parameters, 0 if executable else 1),
    ):  # fmt: skip
        if len(files) > 1:
            yield f"{len(files)} files could be the {what}: {', '.join(sorted(files))}. DLR refuses such a folder."
        elif len(files) < least:
            yield f"No {what} came back; there are: {', '.join(sorted(digests))}."
    if executable and not any(name.endswith(META) for name in digests):
        yield f"{executable[0]} came back without a {META} file, which DLR wants beside it."
    for name in libraries:
        yield from _of_library(job, name, heads.get(name, b""))
    if meta is not None:
        yield from _of_meta(job, meta)


def _of_library(job: CompilationJob, name: str, head: bytes) -> Iterator[str]:
    if not name.endswith(".so"):
        yield f"{name} is no library of Linux or Android, which {job.title} has."
        return
    if not head.startswith(_ELF) or len(head) < 20:
        yield f"{name} is no library of Linux: it is no ELF file."
        return
    order = "<" if head[5] == 1 else ">"
    (machine,) = struct.unpack(f"{order}H", head[18:20])
    wanted = job.machine
    if wanted and machine != wanted:
        yield (
            f"{name} is for {_MACHINES.get(machine, f'the machine {machine}')}, and {job.title} is "
            f"{_MACHINES.get(wanted, f'the machine {wanted}')}."
        )


def _of_meta(job: CompilationJob, data: bytes) -> Iterator[str]:
    """Names and shapes of inputs, where the file tells them; -1 and null are sizes that are free."""
    try:
        told: Any = json.loads(data)
        inputs = [(str(each["name"]), each["shape"]) for each in told["Model"]["Inputs"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if missing := [name for name in job.inputs if name not in dict(inputs)]:
        yield f"The compiled model does not have the input {missing[0]}, which was asked for."
    for name, shape in inputs:
        if name not in job.inputs:
            yield f"The compiled model has the input {name!r:.80}; asked for were: {', '.join(job.inputs)}."
            continue
        asked = list(job.inputs[name])
        same = isinstance(shape, list) and len(shape) == len(asked)
        if not same or any(own not in (None, -1, size) for own, size in zip(shape, asked, strict=True)):
            yield f"The compiled model's input {name} has the shape {shape!r:.80}; asked for was {asked}."
