"""XLA on the CPU: what the HLO modules of a package compute, told on any machine before a closed compiler has them.

It is for checking, not for speed. Where several cores share a model, each is a replica on a device of XLA's own, so that their
collectives run too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxlib import _jax, xla_client
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.hlo import aliases_of, parameters_of, read_module, require_plain, results_of, write_module
from compiler.package import Graph, Package
from runtimes.neuron.graphs import session_on
from runtimes.neuron.weights import DTYPES, read_stored, require_stored, stored_by_rank
from runtimes.session import EncodingSession, GenerationSession


def open_session(package: Package, threads: int) -> GenerationSession | EncodingSession:
    """A session on the modules of a package; XLA chooses its threads itself."""
    return session_on(package, Modules(package))


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
        stored = stored_by_rank(package)
        self.replicas = len(stored)
        client: Any = xla_client.make_cpu_client(num_devices=self.replicas)
        self._devices = client.local_devices()[: self.replicas]
        mesh = jax.sharding.Mesh(np.array(self._devices), ("replica",))
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
        self.names = tuple(graph.name for graph in package.lowered.graphs)
        self.modules = {graph.name: Module(client, package, graph, self.replicas) for graph in package.lowered.graphs}
        for module in self.modules.values():
            require_stored(module.parameters, module.results, stored, package)
        self._weights = {name: self._placed([read_stored(each[name]) for each in stored]) for name in stored[0]}

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
                given = np.ascontiguousarray(inputs[each.name], DTYPES[each.dtype])
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
                    states[each.name] = self._placed([np.zeros(each.shape, DTYPES[each.dtype])] * self.replicas)
                arguments.append(states[each.name])
        found = {}
        for number, (result, values) in enumerate(zip(module.results, module.run(arguments), strict=True)):
            if number in module.aliases:
                states[module.parameters[module.aliases[number]].name] = self._joined(values)
            else:
                found[result.name] = np.asarray(values[0], np.float32)
        return found
