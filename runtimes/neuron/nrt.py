"""Neuron's runtime, on a machine with Inferentia2 or Trainium, by AWS's own `nrtpy`: the NEFF files of a finished package.

`nrtpy` is of AWS's package index alone and needs the chip: this file was never run on one. The tests run it on a stand-in with
nrtpy's interface (aws-neuron/aws-neuron-sdk 81ce03ae, neuron-runtime/nrtpy) that computes what the modules say. Tensors of a
NEFF are called `input0`, `output0` and so on in the module's order, or as the module calls them; both are taken, and their
shapes are held to the module's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by it
import nrtpy
import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.hlo import Tensor, aliases_of, parameters_of, read_module, results_of
from compiler.formats.neff import require_neff
from compiler.package import Graph, Package
from runtimes.neuron.graphs import session_on
from runtimes.neuron.weights import DTYPES, read_stored, require_stored, stored_by_rank
from runtimes.session import EncodingSession, GenerationSession


def open_session(package: Package, threads: int) -> GenerationSession | EncodingSession:
    """A session on the first NeuronCore that the process may see (NEURON_RT_VISIBLE_CORES).

    Raises:
        UnusableInput: the package is not compiled, is shared among cores, or the chip does not take it.
    """
    if package.lowered.unfinished is not None:
        raise UnusableInput(
            f"{package.title} is not compiled yet, and this machine has Neuron's runtime, which takes compiled graphs. "
            f"Finish it first: edgec build --finish {package.folder.name}."
        )
    if (ranks := len(stored_by_rank(package))) > 1:
        raise UnusableInput(
            f"{package.title} is shared among {ranks} cores, each with a graph of its own that waits for the others. edgec "
            "runs packages of one core alone; build it without +tp."
        )
    try:
        return session_on(package, Neffs(package))
    except RuntimeError as error:
        # libnrt's errors, and nrtpy's own.
        raise UnusableInput(
            f"Neuron's runtime does not take {package.title}: it is compiled for another chip or by a newer compiler, the "
            "core's memory is full, or no NeuronCore is free (neuron-ls shows them). --debug shows the runtime's own error."
        ) from error


class Neff:
    """A loaded graph: what it takes and gives, and how its NEFF calls them."""

    def __init__(self, package: Package, graph: Graph) -> None:
        module = read_module(package.folder / graph.files[0])
        self.parameters, self.results, self.aliases = parameters_of(module), results_of(module), aliases_of(module)
        file = package.folder / f"{graph.name}.neff"
        if file.name not in package.files:
            raise UnusableInput(f"{package.title} lacks {file.name}. Finish it again.")
        require_neff(file)
        self.model: Any = nrtpy.NrtpyModel.load_from_neff(file)
        self.inputs = _called(self.parameters, self.model.input_tensors_info, f"{file.name} of {package.title}")
        self.outputs = _called(self.results, self.model.output_tensors_info, f"{file.name} of {package.title}")
        self.states = frozenset(port.name for port in graph.states)
        # Results are written there, call by call; those that take a state's place are not.
        named = enumerate(zip(self.results, self.outputs, strict=True))
        self.made = {
            called: _placed(np.zeros(each.shape, DTYPES[each.dtype]))
            for number, (each, called) in named
            if number not in self.aliases
        }


def _called(wanted: Sequence[Tensor], told: Mapping[str, Any], where: str) -> list[str]:
    """The NEFF's own name of each tensor, in the module's order.

    Raises:
        UnusableInput: it has others, or of other shapes.
    """
    names = [each.name for each in wanted]
    if set(names) != set(told):
        numbers = {int(found[1]): name for name in told if (found := re.fullmatch(r"\D*(\d+)", name))}
        if sorted(numbers) != list(range(len(wanted))):
            raise UnusableInput(
                f"{where} has {len(told)} tensors ({', '.join(list(told)[:4])} ...), and its module has {len(wanted)}, or has "
                "others: they are not of one graph. Finish the package again."
            )
        names = [numbers[number] for number in range(len(wanted))]
    for each, name in zip(wanted, names, strict=True):
        shape = tuple(int(size) for size in told[name].shape)
        if shape != each.shape:
            raise UnusableInput(
                f"{where} has {name} of shape {list(shape)}, and its module {list(each.shape)}: they are not of one graph. "
                "Finish the package again."
            )
    return names


class Neffs:
    """The graphs of a package on one core, with the weights in its memory once."""

    def __init__(self, package: Package) -> None:
        self.names = tuple(graph.name for graph in package.lowered.graphs)
        self._graphs = {graph.name: Neff(package, graph) for graph in package.lowered.graphs}
        stored = stored_by_rank(package)
        for graph in self._graphs.values():
            require_stored(graph.parameters, graph.results, stored, package)
        self._weights = {name: _placed(read_stored(info)) for name, info in stored[0].items()}

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]], states: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """The results of a graph; a state is one tensor of the core's, which the graph reads and writes."""
        graph = self._graphs[name]
        given: dict[str, Any] = {}
        for each, called in zip(graph.parameters, graph.inputs, strict=True):
            given[called] = self._argument(each, graph, inputs, states)
        outputs = {
            called: given[graph.inputs[graph.aliases[number]]] if number in graph.aliases else graph.made[called]
            for number, called in enumerate(graph.outputs)
        }
        graph.model(inputs=given, outputs=outputs)
        return {
            each.name: np.asarray(outputs[called].numpy(), np.float32)
            for number, (each, called) in enumerate(zip(graph.results, graph.outputs, strict=True))
            if number not in graph.aliases
        }

    def _argument(self, tensor: Tensor, graph: Neff, inputs: Mapping[str, NDArray[Any]], states: dict[str, Any]) -> Any:
        if tensor.name in inputs:
            value = np.ascontiguousarray(inputs[tensor.name], DTYPES[tensor.dtype])
            if value.shape != tensor.shape:
                raise UnusableInput(
                    f"the input {tensor.name} has the shape {list(value.shape)}, the package takes {list(tensor.shape)}."
                )
            return _placed(value)
        if tensor.name in self._weights:
            return self._weights[tensor.name]
        if tensor.name not in graph.states:
            raise UnusableInput(f"A graph takes {tensor.name!r:.60}, which the package has not. Build it again.")
        if tensor.name not in states:
            states[tensor.name] = _placed(np.zeros(tensor.shape, DTYPES[tensor.dtype]))
        return states[tensor.name]


def _placed(value: NDArray[Any]) -> Any:
    """A tensor in the core's memory."""
    return nrtpy.NrtpyTensor.from_numpy(np.ascontiguousarray(value))
