"""function: a TensorFlow function, from arrays to arrays under the names of its signature."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.model import Model, read_model
from compiler.package import Package
from compiler.quantize.calibrate.arrays import Arrays, keep_arrays, kept_arrays, read_arrays, samples_for
from compiler.recipe import Shapes
from compiler.stages.worker import report_progress
from compiler.tensorflow_function import ENVIRONMENT, TOOLS, FunctionPort, read_function, read_signature
from runtimes.kinds.kind import Expectation, Findings, Kind, Outcome, Prepared, Request, Table
from runtimes.kinds.outputs import (
    COMPARED,
    FIGURES,
    GRADES,
    LIMITED,
    SPEED,
    TIMED,
    Pairs,
    apart,
    chart_of,
    distances,
    repeated,
    summarize,
)
from runtimes.session import EncodingSession
from runtimes.workload import Workload

_DRAWN, _MOST = 8, 256
_SHOWN = 6
_FILE = "expected.npz"
# Of drawn whole numbers: small enough for tables, and some of them not zero.
_LARGEST_DRAWN = 3
_DRAWN_BELOW = {"bool": 2, "uint8": 256, "int8": 128}
Ports = tuple[FunctionPort, ...]


def expect(model: Model, shapes: Shapes, data: Path | None, max_tokens: int) -> Expectation:
    """TensorFlow computes the function of the samples given, or of drawn ones."""
    kept = None
    if data is not None:
        samples_for(read_signature(model.config, model.name)[0], read_arrays(data), data.name)
        kept = keep_arrays(str(data))[0]
    return Expectation(f"{__name__}:write_expected", {"arrays": kept, "name": model.name}, TOOLS, ENVIRONMENT)


def write_expected(model: str, out: str, arrays: str | None, name: str) -> None:
    """Write `expected.json` and `expected.npz`: `in_NAME` and `out_NAME`, each (samples, ...), a sample at a time.

    Raises:
        UnusableInput: the function cannot be loaded or computed.
    """
    source = read_model(Path(model), name)
    function = read_function(source.folder, source.config)
    given = _draw(function.inputs)
    if arrays is not None:
        given = samples_for(function.inputs, read_arrays(kept_arrays(arrays)), source.name)
    count = min(len(next(iter(given.values()))), _MOST)
    found: dict[str, list[NDArray[Any]]] = {port.name: [] for port in function.outputs}
    for number in range(count):
        samples = [given[port.name][number] for port in function.inputs]
        case = [
            sample[None] if port.is_batched else sample for port, sample in zip(function.inputs, samples, strict=True)
        ]
        try:
            results = function.call(*case)
        except Exception as error:  # of any class: whatever an operator meets in these numbers
            raise UnusableInput(
                f"TensorFlow cannot compute {source.name} of sample {number}: an operator does not take its numbers. Give "
                "samples that the function takes with --inputs FILE.npz; --debug shows what TensorFlow says."
            ) from error
        for port, value in zip(function.outputs, results, strict=True):
            made = value.numpy()
            if not made.size or not np.isfinite(made.astype(np.float64)).all() or (port.is_batched and len(made) != 1):
                raise UnusableInput(
                    f"The output {port.name} of {source.name} has of sample {number} no finite numbers, or not one row a "
                    "sample. Give samples that the function is made for with --inputs FILE.npz."
                )
            found[port.name].append(_sample_of(made, port))
        report_progress(number + 1, count)
    arrays_of: dict[str, Any] = {f"in_{port}": array[:count] for port, array in given.items()}
    arrays_of |= {f"out_{port}": np.stack(each) for port, each in found.items()}
    np.savez(Path(out) / _FILE, **arrays_of)
    (Path(out) / "expected.json").write_text(json.dumps({"samples": count}), encoding="utf-8")


def _draw(inputs: Sequence[FunctionPort]) -> Arrays:
    """Samples where none are given: numbers of a normal distribution, small whole ones."""
    generator = np.random.default_rng(0)
    drawn = {}
    for port in inputs:
        shape = (_DRAWN, *(int(size) for size in port.sample_shape))
        whole = generator.integers(0, _DRAWN_BELOW.get(port.dtype, _LARGEST_DRAWN), shape)
        floats = port.dtype.startswith("float")
        drawn[port.name] = (generator.standard_normal(shape) if floats else whole).astype(port.dtype)
    return drawn


def _ports_of(package: Package) -> tuple[Ports, Ports]:
    """(inputs, outputs) of a package, with what of them is a batch."""
    inputs, outputs = read_signature(read_object(package.folder / "config.json"), package.title)
    main = package.lowered.main
    for told, ports in ((inputs, main.inputs), (outputs, main.outputs)):
        if {(port.name, port.dtype) for port in told} != {(port.name, port.dtype) for port in ports}:
            raise UnusableInput(f"config.json of {package.title} names other ports than its manifest. Build it again.")
    return inputs, outputs


def _sizes(package: Package) -> dict[str, tuple[int, ...]]:
    return {port.name: tuple(int(size) for size in port.shape) for port in package.lowered.main.inputs}


def _run(session: EncodingSession, package: Package, ports: Ports, samples: Arrays, number: int) -> Arrays:
    """What the session says of a sample, which those after it join where the package takes several at once.

    Where an input is one for all of a batch, the batch is of that sample alone.
    """
    sizes, given = _sizes(package), {}
    step = 1 if all(port.is_batched for port in ports) else 0
    for port in ports:
        rows, size = samples[port.name], sizes[port.name]
        chosen = (number + step * np.arange(size[0] if port.is_batched else 1)) % len(rows)
        given[port.name] = (rows[chosen] if port.is_batched else rows[number]).reshape(size)
    return session.run(given)


def _sample_of(value: Any, port: FunctionPort) -> NDArray[Any]:
    return np.asarray(value)[0] if port.is_batched else np.asarray(value)


def probe(
    session: EncodingSession,
    package: Package,
    expected: Path,
    stored: Path | None,
    on_progress: Callable[[int, int], None],
) -> Findings:
    """Every sample through the package beside what TensorFlow computed; an output is one row, whatever its shape."""
    count = read_object(expected / "expected.json")["samples"]
    inputs, outputs = _ports_of(package)
    with np.load(expected / _FILE, allow_pickle=False) as told:
        samples = {port.name: told[f"in_{port.name}"] for port in inputs}
        wanted = {port.name: told[f"out_{port.name}"].reshape(count, 1, -1).astype(np.float32) for port in outputs}
    pairs: dict[str, Pairs] = {port.name: [] for port in outputs}
    step = 1 if all(port.is_batched for port in inputs) else 0
    for number in range(count):
        got = _run(session, package, inputs, samples, number)
        for port in outputs:
            rows = np.asarray(got[port.name]) if port.is_batched else np.asarray(got[port.name])[None]
            for place, row in enumerate(rows):
                reference = wanted[port.name][(number + step * place) % count]
                pairs[port.name].append((reference, row.reshape(1, -1).astype(np.float32)))
        on_progress(number + 1, count)
    return Findings(distances(pairs))


def prepare(session: EncodingSession, package: Package, workload: Workload) -> Prepared:
    """Drawn inputs of the package's own shapes."""
    inputs, _ = _ports_of(package)
    sizes = _sizes(package)
    given = {name: np.broadcast_to(array[0], sizes[name]).copy() for name, array in _draw(inputs).items()}
    return repeated(session, given, workload, None)


def check(package: Package, request: Request) -> None:
    """Refuse what a function has no use for.

    Raises:
        UnusableInput: there are no inputs, or something is given in vain.
    """
    given = (request.image, request.passage, request.prompt_name)
    if request.prompts or any(each is not None for each in given):
        raise UnusableInput("This package is a function of arrays. Use --inputs FILE.npz alone.")
    if request.inputs is None:
        needed = ", ".join(f"{port.name} {('samples', *port.sample_shape)}" for port in _ports_of(package)[0])
        raise UnusableInput(f"There is nothing to run on. Add --inputs FILE.npz with {needed}.".replace("'", ""))


def use(package: Package, session: EncodingSession, request: Request) -> Outcome:
    """The outputs of every sample, by name."""
    assert request.inputs is not None
    inputs, outputs = _ports_of(package)
    given = samples_for(inputs, read_arrays(request.inputs), request.inputs.name)
    results: dict[str, list[Any]] = {port.name: [] for port in outputs}
    for number in range(len(next(iter(given.values())))):
        got = _run(session, package, inputs, given, number)
        for port in outputs:
            results[port.name].append(_sample_of(got[port.name], port).tolist())
    rows = tuple(
        (name, str(number), _shown(each)) for name, made in results.items() for number, each in enumerate(made)
    )
    return Outcome(results, "", (Table(package.model.name, ("output", "sample", "values"), rows),))


def _shown(values: Any) -> str:
    flat = np.ravel(values)
    rest = f", ... ({len(flat)} values; --json prints all)" if len(flat) > _SHOWN else ""
    return ", ".join(f"{value:.4g}" for value in flat[:_SHOWN]) + rest


KIND = Kind(
    name="function",
    title="Functions",
    expect=expect,
    probe=probe,
    grades=GRADES,
    limited=LIMITED,
    figures=FIGURES,
    prepare=prepare,
    apart=apart,
    timed=TIMED,
    summarize=summarize,
    speed=SPEED,
    compared=COMPARED,
    chart=chart_of("functions"),
    check=check,
    use=use,
)
