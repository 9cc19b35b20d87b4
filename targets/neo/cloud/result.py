"""Holds what a compilation job gave back to what was asked: Neo has ended jobs well that compiled nothing.

What a compiled model consists of: neo-ai/neo-ai-dlr 457aabf (2022-08), dlr_common.cc and dlr_tvm.cc; of a job that gives its
input back, neo-ai-dlr#73.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from targets.neo.cloud.job import CompilationJob
from targets.neo.cloud.shapes import shapes_of_graph, shapes_of_meta

_LIBRARIES = (".so", ".dll", ".dylib")
_NOT_MODELS = ("libdlr.so", "dlr.dll", "libdlr.dylib")
# JSON files that DLR does not take for a graph.
_NO_GRAPHS = ("model-shapes.json", "hyperparams.json", "version.json")
_ELF, _ZIP = b"\x7fELF", b"PK\x03\x04"
_WIDE_MACHINES = (62, 183)
_MACHINES = {3: "x86", 40: "32-bit ARM", 62: "x86-64", 183: "ARM64"}
META, MODELS, LIBRARY_HEAD = ".meta", (".pt", ".pth"), 20
# ELF's class of 64 bits, and its type of a shared library.
_WIDE, _SHARED = 2, 3


def find_result_faults(
    job: CompilationJob,
    digests: Mapping[str, str],
    sent: Mapping[str, str],
    heads: Mapping[str, bytes],
    meta: bytes | None,
    graph: bytes | None,
) -> Iterator[str]:
    """A sentence for everything about the files that came back that is not as it was asked for.

    Args:
        job: what was asked for.
        digests: SHA-256 of each file that came back, by name.
        sent: the same of what was sent.
        heads: the first 20 bytes of each library and model.
        meta: the file that tells about the model, where there is one.
        graph: the graph, where there is one.
    """
    if not digests:
        yield "Neo gave back an empty archive."
        return
    if set(digests.values()) <= set(sent.values()):
        yield "Neo gave back the files that it was sent: it compiled nothing, although it says that the job is completed."
        return
    if unchanged := [name for name, digest in digests.items() if digest in sent.values()]:
        yield f"{unchanged[0]} came back as it was sent: Neo did not compile it."
        return
    if gives_pytorch(job) and any(name.endswith(MODELS) for name in digests):
        models = [name for name in digests if name.endswith(MODELS)]
        if len(models) > 1:
            yield f"{len(models)} models came back: {', '.join(sorted(models))}; one was sent."
        for name in digests:
            if name.endswith(".so"):
                yield from _of_library(job, name, heads.get(name, b""))
        return
    libraries = [name for name in digests if name.endswith(_LIBRARIES) and PurePosixPath(name).name not in _NOT_MODELS]
    graphs = [name for name in digests if is_graph(name)]
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
    yield from _of_shapes(job, meta, graph)


def gives_pytorch(job: CompilationJob) -> bool:
    """Whether a model for PyTorch's own runtime may come back: instances of the cloud give one for what PyTorch made."""
    return job.framework == "PYTORCH" and job.on_instance


def is_graph(name: str) -> bool:
    """Whether DLR takes a file for the graph."""
    return name.endswith(".json") and PurePosixPath(name).name not in _NO_GRAPHS


def _of_library(job: CompilationJob, name: str, head: bytes) -> Iterator[str]:
    if not name.endswith(".so"):
        yield f"{name} is no library of Linux or Android, which {job.title} has."
        return
    if not _is_elf(head):
        yield f"{name} is no library of Linux: it is no ELF file."
        return
    if head[16:18] not in (_SHARED.to_bytes(2, "little"), _SHARED.to_bytes(2, "big")):
        yield f"{name} is no shared library: ELF has another type for it."
        return
    machine, wanted = machine_of(head), job.machines
    if (head[4] == _WIDE) != (machine in _WIDE_MACHINES):
        yield f"{name} is of another width than its machine. It is damaged."
        return
    if wanted and machine not in wanted:
        names = " or ".join(_MACHINES.get(each, f"the machine {each}") for each in wanted)
        yield f"{name} is for {_MACHINES.get(machine, f'the machine {machine}')}, and {job.title} is {names}."


def _is_elf(head: bytes) -> bool:
    return head.startswith(_ELF) and len(head) >= LIBRARY_HEAD


def machine_of(head: bytes) -> int:
    """The machine that an ELF file's first 20 bytes name, as ELF numbers it."""
    (machine,) = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])
    return int(machine)


def _of_shapes(job: CompilationJob, meta: bytes | None, graph: bytes | None) -> Iterator[str]:
    by_meta, by_graph = shapes_of_meta(meta), shapes_of_graph(graph)
    if by_meta is None and by_graph is None:
        yield (
            f"No file of it tells the shapes of its inputs ({META}, or the graph), so they cannot be held to what was asked."
        )
    for told in filter(None, (by_meta, by_graph)):
        if missing := [name for name in job.inputs if name not in told]:
            yield f"The compiled model does not have the input {missing[0]}, which was asked for."
        if told is by_meta and (extra := [name for name in told if name not in job.inputs]):
            yield f"The compiled model has the input {extra[0]!r:.80}; asked for were: {', '.join(job.inputs)}."
        for name, asked in job.inputs.items():
            shape = told.get(name, list(asked))
            if len(shape) != len(asked) or any(own not in (None, size) for own, size in zip(shape, asked, strict=True)):
                yield f"The compiled model's input {name} has the shape {shape!r:.80}; asked for was {list(asked)}."
