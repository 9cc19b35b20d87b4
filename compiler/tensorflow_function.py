"""A function of TensorFlow as the folder of a Model holds it: config.json, its graph, and its weights in safetensors.

`function.pb` is TensorFlow's GraphDef with every weight left empty; `model.safetensors` has these under the names of their
nodes. What a graph may do is told by the names of its operators: those that touch files, Python or other machines are refused
before TensorFlow is given the graph.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_regular
from compiler.records import from_json

ARCHITECTURE = "TensorFlowFunction"
GRAPH, WEIGHTS = "function.pb", "model.safetensors"
TOOLS = ("tensorflow", "numpy", "safetensors")
# For a stage's process: it may import TensorFlow, which is to be quiet, without a GPU, and to add in one order.
ENVIRONMENT = {
    "EDGEC_TENSORFLOW": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "KERAS_BACKEND": "tensorflow",
}
BATCH, FREE = "batch", "free"
DTYPES = ("float32", "int32", "int64", "bool", "uint8", "int8")
# What reads the variables while a SavedModel is loaded, and nothing afterwards.
_LOADING = ("RestoreV2",)
# Operators that TensorFlow counts as keeping state, and which only call a part of the graph.
_CALLING = ("StatefulPartitionedCall", "If", "While", "Case")
PORT_NAME = re.compile(r"[A-Za-z_]\w{0,99}")
_MOST_ELEMENTS = 1 << 28
_LIMIT_BYTES = 1 << 30
_FLOATS = ("float16", "float32", "float64")
# Where a constant of a GraphDef may have its values.
VALUES = ("half_val", "float_val", "double_val", "tensor_content")
# Operators that reach beyond tensors.
_REACHING = re.compile(
    "Restore|Vocab|FixedUnigram|Collective|Nccl|Abort|Stage|Barrier|Mutex|File|PyFunc|Save|MergeV2Checkpoints|Print|"
    "Dataset|Iterator|Reader|Record|Summary|Rpc|Debug|Dump|Snapshot|LoadAndRemap|Lmdb|^_?Send|^_?Recv|Remote|ImportEvent|Heartbeat|Session|Infeed|Outfeed|Tpu|TPU|Xla|Proto|Queue"
)


@dataclass(frozen=True)
class FunctionPort:
    """An input or output of a function.

    Attributes:
        name: as its signature has it.
        dtype: numpy's word.
        shape: sizes; `batch` where the first is that of a batch, `free` for other sizes of outputs that are not told.
        tensor: its name in the graph.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    tensor: str

    @property
    def is_batched(self) -> bool:
        """Whether the first size is that of a batch."""
        return self.shape[:1] == (BATCH,)

    @property
    def sample_shape(self) -> tuple[int | str, ...]:
        """Sizes of one sample."""
        return self.shape[1:] if self.is_batched else self.shape


@dataclass(frozen=True)
class _Signature:
    inputs: tuple[FunctionPort, ...]
    outputs: tuple[FunctionPort, ...]


@dataclass(frozen=True)
class Function:
    """A function that TensorFlow runs.

    Attributes:
        call: takes tensors or arrays in the order of `inputs`, gives a list of tensors in that of `outputs`.
        nodes: name and operator of every node of its graph.
    """

    call: Callable[..., Any]
    inputs: tuple[FunctionPort, ...]
    outputs: tuple[FunctionPort, ...]
    nodes: tuple[tuple[str, str], ...]


def read_signature(config: Mapping[str, Any], folder: str) -> tuple[tuple[FunctionPort, ...], tuple[FunctionPort, ...]]:
    """(inputs, outputs) of a function by its config.json.

    Raises:
        UnusableInput: they are not told in the form that edgec writes.
    """
    try:
        told = from_json(_Signature, {"inputs": config.get("inputs"), "outputs": config.get("outputs")})
    except ValueError as error:
        raise UnusableInput(
            f"config.json of {folder} does not tell inputs and outputs as edgec writes them ({error}). Give the SavedModel or "
            "the .keras file itself."
        ) from error
    for port in (*told.inputs, *told.outputs):
        free = [size for place, size in enumerate(port.shape) if isinstance(size, str) and (place or size != BATCH)]
        sizes = [size for size in port.shape if isinstance(size, int)]
        known = all(size == FREE for size in free) and (port in told.outputs or not free)
        small = all(0 < size <= _MOST_ELEMENTS for size in sizes) and math.prod(sizes) <= _MOST_ELEMENTS
        if not (PORT_NAME.fullmatch(port.name) and port.dtype in DTYPES and known and small):
            raise UnusableInput(
                f"config.json of {folder} has an input or output {port.name!r:.60} of a name, type or size that edgec does "
                "not write. Give the SavedModel or the .keras file itself."
            )
    if not told.inputs or not told.outputs:
        raise UnusableInput(f"config.json of {folder} names no input or no output. Give the SavedModel itself.")
    return told.inputs, told.outputs


def read_function(folder: Path, config: Mapping[str, Any]) -> Function:
    """The function that a folder holds. TensorFlow is imported, and given the graph.

    Raises:
        UnusableInput: the graph is damaged, reaches beyond tensors, or its weights are not all there.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from safetensors import safe_open

    inputs, outputs = read_signature(config, folder.name)
    graph = tf.compat.v1.GraphDef()
    broken = UnusableInput(f"{GRAPH} of {folder.name} is damaged. Give the SavedModel or the .keras file again.")
    try:
        graph.ParseFromString(read_regular(folder / GRAPH, f"{GRAPH} of {folder.name}", _LIMIT_BYTES))
    except (DecodeError, FileNotFoundError):
        raise broken from None
    refuse_operators(operators_of(graph), folder.name, frozen=True)
    empty = {node.name: node.attr["value"].tensor for node in graph.node if is_weight(node) and not has_values(node)}
    with safe_open(folder / WEIGHTS, "numpy") as weights:
        # TensorFlow would take zeros for a weight that is not there.
        if set(weights.keys()) != set(empty):
            raise broken
        for name, tensor in empty.items():
            array = weights.get_tensor(name)
            shape = tuple(size.size for size in tensor.tensor_shape.dim)
            if array.shape != shape or tf.dtypes.as_dtype(tensor.dtype).as_numpy_dtype != array.dtype:
                raise broken
            tensor.tensor_content = array.tobytes()

    def place() -> None:
        tf.graph_util.import_graph_def(graph, name="")

    try:
        whole = tf.compat.v1.wrap_function(place, [])
        taken = [[whole.graph.as_graph_element(port.tensor) for port in ports] for ports in (inputs, outputs)]
        pruned = whole.prune(*taken)
    except (ValueError, KeyError, tf.errors.OpError) as error:
        raise broken from error

    def call(*given: Any) -> Any:
        return pruned(*map(tf.convert_to_tensor, given))

    return Function(call, inputs, outputs, tuple((node.name, node.op) for node in graph.node))


def is_weight(node: Any) -> bool:
    """Whether a node of a GraphDef is a constant of floats with a dimension."""
    import tensorflow as tf

    if node.op != "Const":
        return False
    value = node.attr["value"].tensor
    return tf.dtypes.as_dtype(value.dtype).name in _FLOATS and len(value.tensor_shape.dim) > 0


def has_values(node: Any) -> bool:
    """Whether a constant has its values in the graph."""
    value = node.attr["value"].tensor
    return any(len(getattr(value, name)) for name in VALUES)


def operators_of(graph: Any) -> list[tuple[str, str]]:
    """(operator, node) of a GraphDef, those of the functions that it brings too; calls of these functions are left out."""
    own = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return [(node.op, node.name) for node in nodes if node.op not in own]


def refuse_operators(operators: Iterable[tuple[str, str]], model: str, *, frozen: bool) -> None:
    """Refuse operators that reach beyond tensors, or that TensorFlow has not; of a frozen graph those that keep a state too.

    Raises:
        UnusableInput: there is one.
    """
    from tensorflow.python.framework import op_def_registry

    for operator, node in operators:
        if _REACHING.search(operator) and (frozen or operator not in _LOADING):
            raise UnusableInput(
                f"The graph of {model} has the operator {operator!r:.60} (node {node!r:.80}), which reaches beyond tensors: "
                "files, Python, or another machine. edgec runs no such graph. Save the model without it."
            )
        definition = op_def_registry.get(operator)
        if frozen and definition is not None and definition.is_stateful and operator not in _CALLING:
            raise UnusableInput(
                f"The graph of {model} has the operator {operator!r:.60} (node {node!r:.80}), which keeps a state, reads a "
                "table or draws random numbers, so that it is no function of its inputs. Save the model without it."
            )
        if definition is None:
            raise UnusableInput(
                f"The graph of {model} has the custom operator {operator!r:.60} (node {node!r:.80}), which TensorFlow lacks, "
                "and edgec loads no code of a model. Save the model with TensorFlow's own operators."
            )
