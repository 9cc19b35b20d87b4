"""Which operators of a TFLite model run in XNNPACK: LiteRT on this machine is asked, no table is kept.

Of the GPU and NNAPI there are tables, targets/tflite/delegates.py.

An interpreter puts a DELEGATE in the place of every run of operators that XNNPACK takes (tensorflow/lite/core/subgraph.cc).
The operators that are left are found from the outputs on backwards. Of a file with several signatures it is the first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter

from compiler.errors import UnusableInput
from compiler.formats.litertlm import MODEL, find_section, open_litertlm
from compiler.formats.tflite import parse_tflite, tflite_pieces
from compiler.package import Placement, UnsupportedOperator
from targets.tflite.delegates import predict_placement

ENGINE = "xnnpack"
_DELEGATE = "DELEGATE"
_REASON = "LiteRT leaves it to a kernel of its own, on one thread"


def place_files(files: Sequence[Path], engine: str = ENGINE) -> Placement:
    """The placement of a `.tflite` file or a `.litertlm` bundle on `xnnpack`, `gpu` or `nnapi`.

    Raises:
        UnusableInput: it is damaged.
    """
    (file,) = files
    if file.suffix == ".litertlm":
        with open_litertlm(file) as sections:
            data = bytes(find_section(sections, MODEL, file))
    else:
        data = file.read_bytes()
    if engine == ENGINE:
        return place(data, file.name)
    return predict_placement(parse_tflite(data, file.name), engine)


def write_first(model: Any, file: Path) -> None:
    """Write the first of a model's functions alone, which is planned; LiteRT packs the weights for each that is there."""
    first = copy.copy(model)
    first.subgraphs = model.subgraphs[:1]
    first.signatureDefs = [each for each in model.signatureDefs if each.subgraphIndex == 0]
    with file.open("wb") as stream:
        stream.writelines(tflite_pieces(first))


def place(source: bytes | Path, name: str) -> Placement:
    """The placement of a file, or of its bytes; `name` is what it is called in a refusal.

    Raises:
        UnusableInput: it is damaged.
    """
    told = {"model_path": str(source)} if isinstance(source, Path) else {"model_content": source}
    try:
        interpreter = Interpreter(**told, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UnusableInput(
            f"{name} is no TFLite file, a damaged one, or has an operator that this LiteRT does not know. Build it again."
        ) from error
    # The wrapper has no public name for it.
    operators = interpreter._get_ops_details()
    kept = _kept(operators, [int(each["index"]) for each in interpreter.get_output_details()])
    names = {int(each["index"]): str(each["name"]) for each in interpreter.get_tensor_details()}
    return Placement(
        ENGINE,
        "planned",
        sum(each["op_name"] != _DELEGATE for each in operators),
        tuple(
            UnsupportedOperator(each["op_name"].lower(), names.get(int(each["outputs"][0]), ""), _REASON)
            for each in kept
        ),
    )


def _kept(operators: Sequence[Any], outputs: Sequence[int]) -> list[Any]:
    """Operators that are run one by one, in their order."""
    # A delegate comes after the operators that it stands for, and gives the same tensors.
    maker = {int(tensor): operator for operator in operators for tensor in operator["outputs"]}
    left, seen, kept = list(outputs), set(outputs), {}
    while left:
        operator = maker.get(left.pop())
        if operator is None:
            continue
        if operator["op_name"] != _DELEGATE:
            kept[int(operator["index"])] = operator
        new = {int(tensor) for tensor in operator["inputs"]} - seen
        seen |= new
        left += new
    return [kept[index] for index in sorted(kept)]
