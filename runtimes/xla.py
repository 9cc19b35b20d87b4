"""XLA on the CPU: what the HLO modules of a package compute, told on any machine before a closed compiler has them.

It is for checking, not for speed. Where several cores share a model, each is a replica on a device of XLA's own, so that their
collectives run too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxlib import _jax, xla_client
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.hlo import aliases_of, parameters_of, read_module, require_plain, results_of, write_module
from compiler.formats.safetensors import TensorInfo, list_tensors
from compiler.package import Graph, Package
from compiler.task import GENERATION, find_task
from runtimes.lengths import chunk_length, require_room, run_padded
from runtimes.session import EncodingSession, GenerationSession
from runtimes.text import HuggingFaceText

_WEIGHTS = re.compile(r"weights/tp(\d+)_sharded_checkpoint\.safetensors")
_DTYPES: dict[str, Any] = {
    "f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16, "s32": np.int32, "u8": np.uint8, "pred": np.bool_,
}  # fmt: skip
_STORED: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "I32": np.int32}


def open_session(package: Package, threads: int) -> GenerationSession | EncodingSession:
    """A session on the modules of a package; XLA chooses its threads itself."""
    graphs = Modules(package)
    if find_task(package.model.task).kind == GENERATION:
        return DecoderSession(package, graphs)
    return EncoderSession(package, graphs)


class Module:
    """A compiled module: what it takes and gives, on every replica."""

    def __init__(self, client: Any, package: Package, graph: Graph, replicas: int) -> None:
        module = read_module(package.folder / graph.files[0])
        require_plain(module, graph.files[0])
        self.parameters, self.results, self.aliases = parameters_of(module), results_of(module), aliases_of(module)
        # XLA would take memory of ours where a result has a parameter's place.
        del module.input_output_alias.entries[:]
        options = xla_client.CompileOptions()
        options.num_replicas = replicas
        try:
            stablehlo = _jax.mlir.hlo_to_stablehlo(write_module(module))
            devices = xla_client.DeviceList(tuple(client.local_devices()[:replicas]))
            self._executable = client.compile_and_load(stablehlo, devices, options)
        except (RuntimeError, ValueError) as error:
            raise UnusableInput(
                f"XLA does not take {graph.files[0]} of {package.title}: it is no module that edgec wrote, or of another "
                "version of XLA. Build the package again."
            ) from error
        self.states = frozenset(port.name for port in graph.states)

    def run(self, arguments: Sequence[jax.Array]) -> list[list[jax.Array]]:
        """Results, each of all replicas."""
        results = self._executable.execute_sharded(list(arguments))
        return [list(each) for each in results.disassemble_into_single_device_arrays()]


class Modules:
    """The modules of a package, with the weights on the devices of their replicas."""

    def __init__(self, package: Package) -> None:
        files = {int(found[1]): name for name in package.files if (found := _WEIGHTS.fullmatch(name))}
        if sorted(files) != list(range(len(files))) or not files:
            raise UnusableInput(f"{package.title} lacks the weights of a core. Build it again.")
        self.replicas = len(files)
        client: Any = xla_client.make_cpu_client(num_devices=self.replicas)
        self._devices = client.local_devices()[: self.replicas]
        mesh = jax.sharding.Mesh(np.array(self._devices), ("replica",))
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
        self.modules = {graph.name: Module(client, package, graph, self.replicas) for graph in package.lowered.graphs}
        stored = [{info.name: info for info in list_tensors(package.folder / files[rank])} for rank in sorted(files)]
        for module in self.modules.values():
            _require_stored(module, stored, package)
        self._weights = {name: self._placed([_read(each[name]) for each in stored]) for name in stored[0]}

    def _placed(self, values: Sequence[NDArray[Any]]) -> jax.Array:
        """A value of each replica on its device."""
        devices = zip(values, self._devices, strict=True)
        return self._joined([jax.device_put(np.ascontiguousarray(each), device) for each, device in devices])

    def _joined(self, values: Sequence[jax.Array]) -> jax.Array:
        """An array whose shards are those, as XLA takes arguments."""
        shape = (values[0].shape[0] * self.replicas, *values[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self._sharding, list(values))

    def run(
        self, name: str, inputs: Mapping[str, NDArray[Any]], states: dict[str, jax.Array]
    ) -> dict[str, NDArray[Any]]:
        """The results of a graph on its first replica; states are changed."""
        module = self.modules[name]
        arguments = []
        for each in module.parameters:
            if each.name in inputs:
                given = np.ascontiguousarray(inputs[each.name], _DTYPES[each.dtype])
                if given.shape != each.shape:
                    raise UnusableInput(
                        f"the input {each.name} has the shape {list(given.shape)}, the package takes {list(each.shape)}."
                    )
                arguments.append(self._placed([given] * self.replicas))
            elif each.name in self._weights:
                arguments.append(self._weights[each.name])
            elif each.name not in module.states:
                raise UnusableInput(
                    f"The graph {name} takes {each.name!r:.60}, which the package has not. Build it again."
                )
            else:
                if each.name not in states:
                    states[each.name] = self._placed([np.zeros(each.shape, _DTYPES[each.dtype])] * self.replicas)
                arguments.append(states[each.name])
        found = {}
        for number, (result, values) in enumerate(zip(module.results, module.run(arguments), strict=True)):
            if number in module.aliases:
                states[module.parameters[module.aliases[number]].name] = self._joined(values)
            else:
                found[result.name] = np.asarray(values[0], np.float32)
        return found


def _require_stored(module: Module, stored: Sequence[Mapping[str, TensorInfo]], package: Package) -> None:
    """Hold the weights of every rank to what a module takes, and what it takes to types that are known.

    Raises:
        UnusableInput: they are not of one package.
    """
    for each in (*module.parameters, *module.results):
        if each.dtype not in _DTYPES or (not each.shape and each in module.parameters):
            raise UnusableInput(
                f"{package.title} has {each.name!r:.60} of {each.dtype} {list(each.shape)}. Build it again."
            )
    for each in module.parameters:
        found = [rank.get(each.name) for rank in stored]
        if any(found) and not all(
            info is not None
            and info.dtype in _STORED
            and _STORED[info.dtype] == _DTYPES[each.dtype]
            and info.shape == each.shape
            for info in found
        ):
            raise UnusableInput(
                f"The weights of {package.title} do not fit its graphs: {each.name!r:.60} has another type or shape in the "
                "file of a core, or is missing there. Build it again."
            )


def _read(info: TensorInfo) -> NDArray[Any]:
    return np.memmap(info.file, _STORED[info.dtype], "r", info.offset, info.shape)


class EncoderSession:
    """An encoder, of one length or of any of a few."""

    def __init__(self, package: Package, modules: Modules) -> None:
        self._modules = modules
        self.input_names = tuple(port.name for port in package.lowered.main.inputs)
        shapes = package.lowered.shapes
        self._graphs = dict(zip(shapes.sequence_lengths, modules.modules, strict=False)) or {
            0: package.lowered.main.name
        }
        self.longest_sequence = shapes.longest_sequence
        self.fixed_sequence_length = None if len(self._graphs) > 1 else shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        given = {name: inputs[name] for name in self.input_names}
        if len(self._graphs) > 1:
            return run_padded(lambda padded, length: self._call(padded, length), given, tuple(self._graphs))
        return self._call(given, next(iter(self._graphs)))

    def _call(self, inputs: Mapping[str, NDArray[Any]], length: int) -> dict[str, NDArray[Any]]:
        return self._modules.run(self._graphs[length], inputs, {})

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._modules


class DecoderSession:
    """A language model with its cache: chunks of what `prefill` takes, then tokens one by one."""

    def __init__(self, package: Package, modules: Modules) -> None:
        self._modules, self._folder = modules, package.folder
        shapes = package.lowered.shapes
        assert shapes.context_length is not None and shapes.vocabulary is not None
        self.context_length, self.vocabulary = shapes.context_length, shapes.vocabulary
        self._graphs = {
            int(port.shape[1]): graph.name
            for graph in package.lowered.graphs
            for port in graph.inputs
            if port.name == "input_ids"
        }
        self._states: dict[str, jax.Array] = {}
        self._position = 0

    @cached_property
    def text(self) -> HuggingFaceText:
        """The files in the package."""
        return HuggingFaceText(self._folder)

    def _take(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        require_room(self._position + len(token_ids), self.context_length)
        rows, start = [], 0
        while start < len(token_ids):
            length = chunk_length(len(token_ids) - start, self._position, self._graphs, self.context_length)
            chunk = list(token_ids[start : start + length])
            ids = np.asarray([[*chunk, *[0] * (length - len(chunk))]], np.int32)
            inputs = {"input_ids": ids, "position": np.asarray([self._position], np.int32)}
            found = self._modules.run(self._graphs[length], inputs, self._states)
            rows.append(found["logits"][0, : len(chunk)])
            start += len(chunk)
            self._position += len(chunk)
        return np.concatenate(rows)

    def reset(self) -> None:
        self._position = 0
        self._states.clear()

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._take(token_ids)[-1]

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self._take(token_ids)

    def close(self) -> None:
        del self._modules
