"""A SavedModel or a .keras file as a Model: one signature of it, its variables made constants. Runs in a child process.

What loading would run is looked at first. Of a SavedModel every operator of its graph is held to
compiler/tensorflow_function.py, after the function that saves it again is taken out; of a .keras file every class must be
Keras's own (compiler/inputs/keras.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compiler.digest import digest_json
from compiler.errors import UnusableInput
from compiler.formats.json_file import read_regular
from compiler.stages.cache import remembered_digest
from compiler.tensorflow_function import (
    ARCHITECTURE,
    BATCH,
    DTYPES,
    FREE,
    GRAPH,
    PORT_NAME,
    VALUES,
    WEIGHTS,
    FunctionPort,
    is_weight,
    operators_of,
    refuse_operators,
)

SAVED_MODEL = "saved_model.pb"
KERAS = ".keras"
_LIMIT_BYTES = 1 << 30
_DEFAULT = "serving_default"


def is_saved_model(path: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return (path / SAVED_MODEL).is_file() and not (path / "config.json").is_file()


def saved_files(path: Path) -> list[Path]:
    """The files of a SavedModel, or the .keras file itself."""
    files = [path] if path.is_file() else sorted([path / SAVED_MODEL, *path.glob("variables/variables.*")])
    for file in files:
        if not file.is_file():
            raise UnusableInput(f"{file.name} of {path.name} is no regular file. Put the file itself there.")
    return files


def digest_saved(path: Path) -> str:
    """SHA-256 over the names and contents of what is read of it."""
    return digest_json([[file.name, remembered_digest(file)] for file in saved_files(path)])


def import_function(file: str, out: str) -> None:
    """Write config.json, function.pb and model.safetensors of a SavedModel's signature, or of a Keras model: a stage.

    Raises:
        UnusableInput: it is damaged, has operators that edgec does not run, or inputs that are no tensors of fixed sizes.
    """
    from safetensors.numpy import save_file
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    source, folder = Path(file), Path(out)
    with tempfile.TemporaryDirectory() as work:
        saved = source if source.is_dir() else _exported(source, Path(work) / "exported")
        # The variables live as long as what was loaded.
        loaded = _loaded(saved, source.name, Path(work) / "copy")
        concrete = _signature(loaded, source.name)
        ports = _ports(concrete, source.name)
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    graph = frozen.graph.as_graph_def()
    refuse_operators(operators_of(graph), source.name, frozen=True)
    if len(frozen.inputs) != len(ports[0]):
        raise UnusableInput(
            f"The signature of {source.name} needs more than its inputs and variables, such as a table of words. Save the "
            "model without it."
        )
    inputs = [FunctionPort(*port, tensor.name) for port, tensor in zip(ports[0], frozen.inputs, strict=True)]
    outputs = [FunctionPort(*port, tensor.name) for port, tensor in zip(ports[1], frozen.outputs, strict=True)]
    _require_batches(frozen, inputs, outputs, source.name)
    weights = _take_weights(graph)
    if not weights:
        raise UnusableInput(f"{source.name} has no weights: its signature computes nothing that was trained.")
    if (size := sum(array.nbytes for array in weights.values())) > _LIMIT_BYTES:
        raise UnusableInput(
            f"{source.name} has {size:,} bytes of weights, and TensorFlow's converter takes 1 GB at most here."
        )
    save_file(weights, folder / WEIGHTS, {"format": "np"})
    (folder / GRAPH).write_bytes(graph.SerializeToString(deterministic=True))
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "tensorflow",
        "inputs": [asdict(port) for port in inputs],
        "outputs": [asdict(port) for port in outputs],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _require_batches(frozen: Any, inputs: Sequence[FunctionPort], outputs: Sequence[FunctionPort], model: str) -> None:
    """Hold outputs whose first size is free to what one sample and two samples give.

    Raises:
        UnusableInput: the first size of one is not that of the batch, and so is told by the numbers that go in.
    """
    import tensorflow as tf

    if not any(port.is_batched for port in outputs):
        return
    rows: dict[str, list[int]] = {port.name: [] for port in outputs}
    for count in (1, 2):
        shapes = [tuple(count if size == BATCH else size for size in port.shape) for port in inputs]
        given = [tf.zeros(shape, port.dtype) for shape, port in zip(shapes, inputs, strict=True)]
        try:
            found = frozen(*given)
        except tf.errors.OpError:
            # Not every function takes zeros; what it gives of samples is looked at where it is computed.
            return
        for port, value in zip(outputs, found, strict=True):
            rows[port.name].append(value.shape[0] if value.shape.rank else 0)
    for port in outputs:
        if port.is_batched and (rows[port.name] != [1, 2] or not any(each.is_batched for each in inputs)):
            raise UnusableInput(
                f"The output {port.name} of {model} has as many rows as the numbers that go in decide, and LiteRT's packages "
                "have a row for each sample. Save the model without it."
            )


def _take_weights(graph: Any) -> dict[str, np.ndarray]:
    """The float constants of a graph that have a dimension, by the names of their nodes, which are left empty."""
    import tensorflow as tf

    taken = {}
    for node in graph.node:
        if is_weight(node):
            value = node.attr["value"].tensor
            taken[node.name] = np.ascontiguousarray(tf.make_ndarray(value))
            for field in VALUES:
                value.ClearField(field)
    return taken


Form = tuple[str, str, tuple[int | str, ...]]


def _ports(concrete: Any, model: str) -> tuple[list[Form], list[Form]]:
    """Name, type and shape of each input and output, in the function's own order."""
    _, given = concrete.structured_input_signature
    names = [tensor.name.partition(":")[0] for tensor in concrete.inputs if tensor.dtype.name != "resource"]
    by_name = {spec.name or key: (key, spec) for key, spec in given.items()}
    inputs = [by_name.get(name, (name, None)) for name in names]
    if any(spec is None for _, spec in inputs) or len(inputs) != len(given):
        raise UnusableInput(f"The signature of {model} has inputs without names. Save it with named arguments.")
    outputs = concrete.structured_outputs
    return (
        [_form(name, spec, "input", model) for name, spec in inputs],
        [_form(name, spec, "output", model) for name, spec in sorted(outputs.items())],
    )


def _form(name: str, spec: Any, side: str, model: str) -> Form:
    if not PORT_NAME.fullmatch(name):
        raise UnusableInput(f"The {side} {name!r:.60} of {model} is not a name of letters, digits and _. Rename it.")
    if spec.dtype.name not in DTYPES:
        raise UnusableInput(
            f"The {side} {name} of {model} is of {spec.dtype.name}, and LiteRT's ports are of {', '.join(DTYPES)}. Save the "
            "model without that part."
        )
    if spec.shape.rank is None:
        raise UnusableInput(f"The {side} {name} of {model} has any number of dimensions. Save it with a shape.")
    shape: list[int | str] = [BATCH if place == 0 and size is None else size for place, size in enumerate(spec.shape)]
    if None in shape and side == "input":
        raise UnusableInput(
            f"The input {name} of {model} has the shape {list(spec.shape)}, and LiteRT's files have fixed sizes: only the "
            "first, the batch, may be free. Save the model for one size, such as keras.Input((224, 224, 3))."
        )
    return name, spec.dtype.name, tuple(FREE if size is None else size for size in shape)


def _loaded(saved: Path, model: str, copy: Path) -> Any:
    """A SavedModel as TensorFlow loads it, from a copy in which nothing is left that edgec does not run."""
    import tensorflow as tf

    copy.mkdir()
    (copy / SAVED_MODEL).write_bytes(_without_saving(saved, model))
    if (saved / "variables").is_dir():
        (copy / "variables").symlink_to(saved.resolve() / "variables")
    try:
        return tf.saved_model.load(str(copy))
    except MemoryError:
        raise
    except Exception as error:  # of any class: whatever a damaged graph meets
        raise UnusableInput(
            f"TensorFlow cannot load {model}: a part of it is missing or damaged. Save it again; --debug shows what "
            "TensorFlow says."
        ) from error


def _signature(loaded: Any, model: str) -> Any:
    """The signature that a user means who names none."""
    signatures = dict(loaded.signatures)
    wanted = _DEFAULT if _DEFAULT in signatures else next(iter(signatures), None)
    if wanted is None or (wanted != _DEFAULT and len(signatures) > 1):
        known = ", ".join(sorted(signatures)) or "none"
        raise UnusableInput(
            f"{model} has no signature {_DEFAULT}; it has {known}. Save it with signatures={{'{_DEFAULT}': ...}}."
        )
    return signatures[wanted]


def _without_saving(saved: Path, model: str) -> bytes:
    """saved_model.pb without what would write the variables, every other operator looked at.

    Raises:
        UnusableInput: it is damaged, holds no graph or several, or one that edgec does not run.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    document = saved_model_pb2.SavedModel()
    where = f"{SAVED_MODEL} of {model}"
    try:
        document.ParseFromString(read_regular(saved / SAVED_MODEL, where, _LIMIT_BYTES))
    except DecodeError:
        raise UnusableInput(f"{where} is damaged: it is no SavedModel. Save the model again.") from None
    if len(document.meta_graphs) != 1:
        raise UnusableInput(
            f"{where} holds {len(document.meta_graphs)} graphs, and one is taken. Save the model again."
        )
    graph = document.meta_graphs[0].graph_def
    saver = document.meta_graphs[0].saver_def.save_tensor_name.partition(":")[0]
    saving = [node for node in graph.node if node.name == saver]
    for node in saving:
        called = node.attr["f"].func.name
        for function in [each for each in graph.library.function if each.signature.name == called]:
            graph.library.function.remove(function)
        graph.node.remove(node)
    refuse_operators(operators_of(graph), model, frozen=False)
    return bytes(document.SerializeToString())


def _exported(source: Path, folder: Path) -> Path:
    """The SavedModel that Keras makes of a model's inference."""
    import keras

    from compiler.inputs.keras import check_keras

    check_keras(source)
    try:
        model = keras.saving.load_model(source, compile=False, safe_mode=True)
        model.export(str(folder), verbose=False)
    except MemoryError:
        raise
    except Exception as error:  # of any class: whatever a damaged file meets
        raise UnusableInput(
            f"Keras cannot load {source.name}: a part of it is damaged, or another release of Keras wrote it. Load it where "
            "it was made and save it with model.export('folder'); --debug shows what Keras says."
        ) from error
    return folder
