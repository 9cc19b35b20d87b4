"""The inputs of the ONNX file in an archive, held to what a job says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from targets.neo.cloud.archive import list_members, read_member

_MOST = (1 << 31) - 1


def find_file_faults(inputs: Mapping[str, tuple[int, ...]], archive: Path) -> Iterator[str]:
    """A sentence for each input whose name or sizes are not those of the job; `archive` has one .onnx file."""
    import onnx
    from google.protobuf.message import DecodeError

    (name,) = (each for each in list_members(archive) if each.endswith(".onnx"))
    try:
        graph = onnx.load_model_from_string(read_member(archive, name, _MOST)).graph
    except DecodeError:
        yield f"{name} in the archive is no ONNX file."
        return
    weights = {each.name for each in graph.initializer}
    found: dict[str, list[int | str]] = {
        each.name: [
            size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
            for size in each.type.tensor_type.shape.dim
        ]
        for each in graph.input
        if each.name not in weights
    }
    for own, sizes in found.items():
        if free := [str(size) for size in sizes if type(size) is not int or size < 1]:
            yield f"The input {own!r:.80} of {name} has the free size {free[0]!r:.40}; Neo takes fixed ones alone."
        elif own not in inputs or list(inputs[own]) != sizes:
            asked = list(inputs[own]) if own in inputs else "nothing"
            yield f"The input {own!r:.80} of {name} has the shape {sizes}, and DataInputConfig says {asked}."
