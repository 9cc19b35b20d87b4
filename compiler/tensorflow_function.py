"""A function of TensorFlow as the folder of a Model holds it: config.json, its graph, and its weights in safetensors.

`function.pb` is TensorFlow's GraphDef with every weight left empty; `model.safetensors` has these under the names of their
nodes. What a graph may do is told by the names of its operators: those that touch files, Python or other machines are refused
before TensorFlow is given the graph.
"""

from __future__ import annotations

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
BATCH = "batch"
_LIMIT_BYTES = 1 << 30
# Operators that reach beyond tensors.
_REACHING = re.compile(
    "File|PyFunc|Save|MergeV2Checkpoints|Print|Dataset|Iterator|Reader|Record|Summary|Rpc|Debug|Dump|Snapshot|LoadAndRemap|"
    "Lmdb|^_?Send|^_?Recv|Remote|ImportEvent|Heartbeat|Session|Infeed|Outfeed|Tpu|TPU|Xla|Proto|Queue"
)


@dataclass(frozen=True)
class FunctionPort:
    """An input or output of a function.

    Attributes:
        name: as its signature has it.
        dtype: numpy's word.
        shape: sizes; `batch` where the first is free.
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
    refuse_operators(operators_of(graph), folder.name)
    with safe_open(folder / WEIGHTS, "numpy") as weights:
        named = {node.name: node for node in graph.node if node.op == "Const"}
        for name in weights.keys():  # noqa: SIM118
            if name not in named:
                raise broken
            named[name].attr["value"].tensor.tensor_content = weights.get_tensor(name).tobytes()

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


def operators_of(graph: Any) -> list[tuple[str, str]]:
    """(operator, node) of a GraphDef, those of the functions that it brings too; calls of these functions are left out."""
    own = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return [(node.op, node.name) for node in nodes if node.op not in own]


def refuse_operators(operators: Iterable[tuple[str, str]], model: str) -> None:
    """Refuse operators that reach beyond tensors, or that TensorFlow has not.

    Raises:
        UnusableInput: there is one.
    """
    from tensorflow.python.framework import op_def_registry

    for operator, node in operators:
        if _REACHING.search(operator):
            raise UnusableInput(
                f"The graph of {model} has the operator {operator!r:.60} (node {node!r:.80}), which reaches beyond tensors: "
                "files, Python, or another machine. edgec runs no such graph. Save the model without it."
            )
        if op_def_registry.get(operator) is None:
            raise UnusableInput(
                f"The graph of {model} has the custom operator {operator!r:.60} (node {node!r:.80}), which TensorFlow lacks, "
                "and edgec loads no code of a model. Save the model with TensorFlow's own operators."
            )
