"""What a matrix has done, on whichever machine: build a package, measure a cell. Each looks first whether it is done.

What is passed between machines is data alone: names, numbers and JSON.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import edgec
from benchmarks.matrix.cell import Cell, Result, from_text, to_text
from benchmarks.matrix.store import RESULTS, Store
from benchmarks.profiling import measure_profile, profile_for
from compiler.digest import digest_code, digest_json
from compiler.errors import EdgecError, UnusableInput
from compiler.inputs.identity import remember_model
from compiler.model import Model
from compiler.quantize.options import QuantizationOptions
from compiler.recipe import Recipe, Shapes, parse_recipe
from compiler.records import from_json
from compiler.stages.cache import cache_folder
from compiler.target import reason_against
from runtimes.devices.profile import DeviceProfile
from runtimes.workload import Workload
from targets.registry import TARGET_NAMES, load_target, schemes_of

BUILDS = "builds"
Tell = Callable[[str], None]
LOCAL = "local"


@dataclass(frozen=True)
class BuildOrder:
    """A package to build.

    Attributes:
        model: as the matrix file names it.
        digest: of its content, which another machine's must equal.
        recipe: its short form.
        shapes, quantization: of the matrix file.
        verify: whether it is held to the fp32 model.
        allow: checks whose failure is accepted.
    """

    model: str
    digest: str
    recipe: str
    shapes: Shapes
    quantization: QuantizationOptions
    verify: bool
    allow: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """What came of a BuildOrder: the package's name in the store, or why there is none."""

    status: Literal["built", "refused", "failed"]
    reason: str
    package: str | None
    seconds: float


def recipe_of(order: BuildOrder) -> Recipe:
    """The recipe with what the matrix file says."""
    parsed = parse_recipe(order.recipe, TARGET_NAMES, schemes_of)
    return edgec.with_options(replace(parsed, shapes=order.shapes), order.quantization)


def _identity(order: BuildOrder) -> list[Any]:
    """All that has a say in a package: a calibration text by its content, whatever its path."""
    return [order.digest, recipe_of(order).full(), order.verify, order.allow, digest_code()]


def build_key(order: BuildOrder) -> str:
    """The name of the record of a build in the store."""
    return f"{BUILDS}/{digest_json(_identity(order))[:32]}.json"


def known_build(order: BuildOrder, store: Store) -> Built | None:
    """What came of a build before, where it came to an end and its package is there."""
    known = store.read(build_key(order))
    before = _read(Built, known, build_key(order)) if known is not None else None
    if before is None or before.status == "failed":
        return None
    return before if before.package is None or store.has_package(before.package) else None


def build_one(order: BuildOrder, address: str, tell: Tell = lambda done: None) -> Built:
    """Build and verify a package, and bring it into the store; what failed before is tried again.

    For `tell` see `measure_one`.
    """
    store = Store(address)
    if (before := known_build(order, store)) is not None:
        return before
    began = time.monotonic()
    try:
        built = _build(order, store)
        made = Built(*built, round(time.monotonic() - began, 1))
    except EdgecError as error:
        made = Built("failed", str(error), None, round(time.monotonic() - began, 1))
    except Exception as error:
        made = Built("failed", _unknown(error, "build"), None, round(time.monotonic() - began, 1))
    store.write(build_key(order), json.dumps(asdict(made)) + "\n")
    tell(f"{made.status} {order.model.rpartition('/')[2]} {order.recipe} in {made.seconds:.0f} s")
    return made


def _unknown(error: Exception, what: str) -> str:
    word = type(error).__name__
    return f"the {what} ended in an error that edgec does not know ({word}). Do this one alone to see it: edgec {what}."


def _build(order: BuildOrder, store: Store) -> tuple[Literal["built", "refused"], str, str | None]:
    recipe, model = recipe_of(order), opened(order.model, order.digest)
    reason = reason_against(load_target(recipe.target), model, recipe)
    if reason is not None:
        return "refused", reason, None
    with tempfile.TemporaryDirectory(prefix="edgec-matrix-") as work:
        package = edgec.build(model, [recipe], work).packages[0]
        if order.verify:
            found = edgec.verify([package], model=model, allow=order.allow)[0]
            # How near it is to the fp32 model is for the reader of the table to weigh.
            left = [each for each in found.failures if each.check not in ("quality", "thresholds", *found.accepted)]
            if left:
                raise UnusableInput(f"verify found {left[0].check}: {left[0].sentence}")
        return "built", "", store.put_package(edgec.open_package(package.folder))


@lru_cache(maxsize=8)
def opened(name: str, digest: str) -> Model:
    """The model of that name, which must be the one that the matrix was begun with.

    Raises:
        UnusableInput: this machine has another one under that name.
    """
    from compiler.inputs.identity import digest_model

    model = edgec.open_model(name)
    if digest_model(model) != digest:
        raise UnusableInput(f"{name} is another model on this machine than where the matrix was started.")
    return model


@dataclass(frozen=True)
class MeasureOrder:
    """A cell to measure; `again` where it was, and cannot be believed."""

    cell: Cell
    build: BuildOrder
    workload: Workload
    again: bool = False


def result_key(order: MeasureOrder) -> str:
    """The name of the cell's result in the store. The same word `local` is another device on another machine."""
    where = f"{platform.node()} {platform.machine()}" if order.cell.device == LOCAL else ""
    told = [asdict(order.cell), where, _identity(order.build), asdict(order.workload)]
    return f"{RESULTS}/{digest_json(told)[:32]}.json"


def measure_one(order: MeasureOrder, built: Built, address: str, tell: Tell = lambda done: None) -> str:
    """Measure a cell and write its result; its name in the store. What failed before is tried again, and what is to be.

    `tell` hears of what was done now, and not of what was there.
    """
    store, key = Store(address), result_key(order)
    known = store.read(key)
    if known is None or _is_to_do(from_text(known, key), order.again):
        began = time.monotonic()
        result = _measured(order, built, store)
        seconds = round(time.monotonic() - began + built.seconds, 1)
        store.write(key, to_text(Result(**{**vars(result), "seconds": seconds})))
        tell(f"{result.status} {order.cell.title} in {seconds:.0f} s")
    return key


def _is_to_do(known: Result, again: bool) -> bool:
    """Whether a cell that was done is done again."""
    measured = known.measurement
    if not again or measured is None or measured.is_emulated:
        return known.status == "failed"
    return measured.verdict.word == "invalid"


def read_result(key: str, address: str) -> Result:
    """A result that is there."""
    text = Store(address).read(key)
    if text is None:
        raise UnusableInput(f"The result {key} is gone from the store.")
    return from_text(text, key)


def _measured(order: MeasureOrder, built: Built, store: Store) -> Result:
    cell = order.cell
    if built.package is None:
        return Result(cell, "refused" if built.status == "refused" else "failed", built.reason)
    try:
        package = store.get_package(built.package, cache_folder("fleet"))
        nbytes = _expected_bytes(order.build)
        measurement = edgec.bench([package], order.workload, device=cell.device)[0]
        if measurement.predicted is not None:
            measurement = replace(measurement, predicted=replace(measurement.predicted, package_bytes=nbytes))
    except EdgecError as error:
        return Result(cell, "failed", str(error))
    except Exception as error:
        return Result(cell, "failed", _unknown(error, "bench"))
    same, reason = None, ""
    if cell.device != LOCAL and order.build.verify:
        try:
            same = edgec.verify_on([package], cell.device, threads=order.workload.thread_count)[0]
        except EdgecError as error:
            reason = f"measured, but not compared with this machine: {error}"
    return Result(cell, "measured", reason, package.digest, measurement, same)


def _expected_bytes(order: BuildOrder) -> int | None:
    """What the package was to have in bytes, told from shapes; the model is noted, so that more can be predicted."""
    try:
        recipe, model = recipe_of(order), opened(order.model, order.digest)
        remember_model(model, order.digest)
        return load_target(recipe.target).nbytes(model, recipe)
    except (EdgecError, OSError):
        return None


@lru_cache(maxsize=64)
def device_profile(device: str) -> DeviceProfile:
    """The profile of a device that is there, looked at once."""
    return profile_for(device) if device == LOCAL else measure_profile(device, device, 2)


def _read(kind: type[Built], text: str, name: str) -> Built:
    try:
        return from_json(kind, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UnusableInput(f"{name} in the store is damaged. Remove it, and it is made again.") from error
