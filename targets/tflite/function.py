"""A TensorFlow function in a TFLite file, by TensorFlow's own converter, under the names of its signature."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.errors import UnusableInput
from compiler.formats.tflite import name_of, read_tflite
from compiler.lineage import model_of, write_lineage
from compiler.package import Deviation, FixedShapes, Graph, Lowered, Port
from compiler.quantize.plan import ARRAYS
from compiler.tensorflow_function import BATCH, Function, FunctionPort, read_function
from targets.tflite.account import stored_weights
from targets.tflite.placement import place_files
from targets.tflite.target import FILE, MAIN

STATIC = "int8-static"
_SHOWN = 3
# Before the names of all that a SavedModel's signature calls.
_CALL = "StatefulPartitionedCall/"


def convert_function(
    model: str, out: str, scheme: str, batch: int, lineage: dict[str, str], samples: str | None = None
) -> dict[str, Any]:
    """Write `model.tflite` with the signature `main`: a stage.

    `int8` rounds weights to 8 bits, a scale for each channel; `int8-static` rounds what goes from operator to operator too, by
    ranges measured on the samples, and leaves no operator in floats but those that take inputs in and give outputs out.

    Raises:
        UnusableInput: LiteRT lacks an operator, or has none of it in whole numbers.
    """
    import tensorflow as tf

    read = model_of(Path(model), lineage)
    function = read_function(Path(model), read.config)
    with tempfile.TemporaryDirectory() as saved:
        _save(function, batch, saved)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=[MAIN])
        _choose(converter, scheme, None if samples is None else _examples(function, Path(samples) / ARRAYS, batch))
        try:
            made = converter.convert()
        except MemoryError:
            raise
        except Exception as error:  # of any class: whatever an operator's lowering meets
            raise UnusableInput(_refusal(str(error), function, read.name, scheme)) from error
    file = Path(out) / FILE
    file.write_bytes(made)
    write_lineage(read, lineage, Path(out), processor=True)
    document = read_tflite(file)
    (signature,) = document.signatureDefs
    # Apps that go by an index go by the file's order.
    order = {side: [name_of(each) for each in getattr(signature, side)] for side in ("inputs", "outputs")}
    inputs = sorted(_sized(function.inputs, batch), key=lambda port: order["inputs"].index(port.name))
    outputs = sorted(_outputs(document, function), key=lambda port: order["outputs"].index(port.name))
    return asdict(
        Lowered(
            runtime="litert",
            graphs=(Graph(MAIN, (FILE,), tuple(inputs), tuple(outputs)),),
            weights=replace(stored_weights(document), deviations=_left_in_floats(document, scheme)),
            placement=place_files([file]),
            shapes=FixedShapes(batch=batch if _is_batched(function) else None),
        )
    )


def _left_in_floats(document: Any, scheme: str) -> tuple[Deviation, ...]:
    """The matrices and filters that the converter leaves in floats where 8 bits are asked for: small ones."""
    if not scheme.startswith("int8"):
        return ()
    reason = "TensorFlow's converter leaves constants of fewer than 1,024 weights as they are"
    found = []
    for subgraph in document.subgraphs:
        for tensor in subgraph.tensors:
            constant = document.buffers[tensor.buffer].data is not None
            if constant and tensor.type == schema.TensorType.FLOAT32 and len(tensor.shape) > 1:
                found.append(Deviation(name_of(tensor), "fp32", reason, forced=False))
    return tuple(found)


def _save(function: Function, batch: int, folder: str) -> None:
    """A SavedModel of the function at fixed sizes, whose signature the converter keeps."""
    import tensorflow as tf

    specs = {port.name: tf.TensorSpec(port.shape, port.dtype, port.name) for port in _sized(function.inputs, batch)}

    def main(**given: Any) -> dict[str, Any]:
        found = function.call(*(given[port.name] for port in function.inputs))
        return {port.name: value for port, value in zip(function.outputs, found, strict=True)}

    module = tf.Module()
    module.main = tf.function(main).get_concrete_function(**specs)
    tf.saved_model.save(module, folder, signatures={MAIN: module.main})


def _sized(ports: tuple[FunctionPort, ...], batch: int) -> tuple[Port, ...]:
    return tuple(
        Port(port.name, port.dtype, tuple(batch if size == BATCH else size for size in port.shape)) for port in ports
    )


def _is_batched(function: Function) -> bool:
    return any(port.is_batched for port in function.inputs)


def _choose(converter: Any, scheme: str, examples: Callable[[], Iterator[Any]] | None) -> None:
    """Tell the converter how weights are to be stored."""
    import tensorflow as tf

    if scheme != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme == STATIC:
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def _examples(function: Function, file: Path, batch: int) -> Callable[[], Iterator[Any]]:
    """What the converter measures ranges on: every sample, `batch` at a time, the last ones repeated to fill."""
    with np.load(file, allow_pickle=False) as given:
        arrays = {port.name: given[port.name] for port in function.inputs}
    count = len(next(iter(arrays.values())))
    step = batch if _is_batched(function) else 1

    def examples() -> Iterator[Any]:
        for start in range(0, count, step):
            chosen = np.minimum(np.arange(start, start + step), count - 1)
            yield MAIN, {port.name: _example(arrays[port.name], port, chosen) for port in function.inputs}

    return examples


def _example(array: np.ndarray, port: FunctionPort, chosen: np.ndarray) -> np.ndarray:
    return array[chosen] if port.is_batched else array[chosen[0]]


def _outputs(document: Any, function: Function) -> tuple[Port, ...]:
    """The outputs as the file has them, in the order of the function's."""
    (signature,) = document.signatureDefs
    tensors = document.subgraphs[signature.subgraphIndex].tensors
    shapes = {name_of(each): tensors[each.tensorIndex].shape for each in signature.outputs}
    return tuple(
        Port(port.name, port.dtype, tuple(int(size) for size in shapes[port.name])) for port in function.outputs
    )


def _refusal(said: str, function: Function, model: str, scheme: str) -> str:
    """Why the converter gave up, by the operators that it names and where they are in the graph."""
    lacking = sorted(set(re.findall(r"tf\.(\w+)", said)) & {operator for _, operator in function.nodes})
    if lacking:
        first = next(name for name, operator in function.nodes if operator == lacking[0])
        more = f" and {len(lacking) - 1} more ({', '.join(lacking[1 : 1 + _SHOWN])})" if len(lacking) > 1 else ""
        return (
            f"LiteRT has no operator for {lacking[0]}{more} of {model}; the first is {first.removeprefix(_CALL)}. Write that "
            "part of the model with operators that LiteRT has, or keep it out of what is saved."
        )
    if scheme == STATIC:
        return (
            f"An operator of {model} has no form in whole numbers in LiteRT, so int8-static cannot hold it. tflite:int8 "
            "rounds the weights alone; --debug shows what the converter says."
        )
    return f"TensorFlow's converter cannot lower {model}; --debug shows what it says. Convert a smaller part of it."
