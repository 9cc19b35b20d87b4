"""From a Model and recipes to packages: stages run once each, in child processes, cached, then assembled and renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from compiler.errors import CheckFailed, UnusableInput
from compiler.inputs.open import identify
from compiler.model import Model
from compiler.package import FileRecord, Lowered, ModelIdentity, Package, lowered_from_json, write_manifest
from compiler.placement import Requirement, check_account, check_placement
from compiler.quantize.plan import unfit_rows
from compiler.recipe import Recipe
from compiler.scheme import Scheme, find_scheme
from compiler.stages.cache import (
    Entry,
    drop_entry,
    find_entry,
    new_entry_folder,
    remove_stale,
    stage_environment,
    store_entry,
)
from compiler.stages.worker import Progress, kill_children, run_in_child
from compiler.target import Stage, check_taken

TYPE_FALLBACK = "type-fallback"
_BITS_TOLERANCE = 0.005
_COPY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class StageReport:
    """What a stage cost. `seconds` and `peak_rss_bytes` are None when its result came from the cache."""

    label: str
    recipe: str
    cached: bool
    seconds: float | None
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class BuildReport:
    """The packages of a build, in the order of the recipes, and what each stage cost."""

    packages: tuple[Package, ...]
    stages: tuple[StageReport, ...]


class Watcher:
    """Told of what a build does; the command line draws progress bars from it."""

    def reading(self) -> Progress | None:
        """The model's weights are hashed and looked through; return where the progress should go."""
        return None

    def started(self, stage: Stage, recipe: str) -> Progress | None:
        """A stage's child process starts; return where its progress should go."""
        return None

    def finished(self, stage: Stage, report: StageReport) -> None:
        """A stage is done, or was found in the cache."""


def build(
    model: Model,
    recipes: Sequence[Recipe],
    load_target: Callable[[str], ModuleType],
    out: Path,
    *,
    jobs: int = 1,
    allow: Sequence[str] = (),
    require: Sequence[Requirement] = (),
    watcher: Watcher | None = None,
    debug: bool = False,
) -> BuildReport:
    """Make one package per recipe at `out/<recipe.folder_name>`. Either all appear, or none.

    Args:
        model: what to package.
        recipes: what to make of it.
        load_target: from a target's name to its module.
        out: the folder that the packages go into; it is made when absent.
        jobs: stages that may run at the same time.
        allow: names of checks whose failure is accepted and recorded.
        require: what packages must hold that have an account of where their operators run.
        watcher: is told of stages.
        debug: pass on what the children print.

    Raises:
        UnusableInput: a recipe does not suit the model, an output exists, or a stage could not be done.
        CheckFailed: a check failed that `allow` does not name.
    """
    watcher = watcher or Watcher()
    for recipe in recipes:
        check_taken(load_target(recipe.target), model, recipe)
        check_account(load_target(recipe.target).ENGINES, str(recipe), require)
        _foresee_fallbacks(model, recipe, load_target(recipe.target).SCHEMES, allow)
    _refuse_existing(out, recipes)
    identity = identify(model, watcher.reading())
    planned = [(recipe, load_target(recipe.target).plan(model, recipe)) for recipe in recipes]
    entries, reports = _run_stages(model, identity.digest, planned, jobs, watcher, debug)
    made = []
    for recipe, stage in planned:
        entry = entries[stage.key(identity.digest)]
        lowered = lowered_from_json(entry.value)
        _check_budget(entry, lowered, recipe)
        allowed = _check_fallbacks(lowered, recipe, load_target(recipe.target).SCHEMES, allow)
        allowed += check_placement(lowered.placement, str(recipe), require, allow)
        made.append((recipe, stage, entry, lowered, allowed))
    packages = []
    out.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    with tempfile.TemporaryDirectory(prefix=f".new-{os.getpid()}-", dir=out) as temporary:
        for recipe, stage, entry, lowered, allowed in made:
            folder = Path(temporary) / recipe.folder_name
            packages.append(_assemble(folder, identity, recipe, stage, entry, lowered, allowed))
        for package in packages:
            package.folder.rename(out / package.name)
    final = tuple(replace(package, folder=out / package.name) for package in packages)
    return BuildReport(final, tuple(reports))


def _refuse_existing(out: Path, recipes: Sequence[Recipe]) -> None:
    names = [recipe.folder_name for recipe in recipes]
    if len(set(names)) != len(names):
        raise UnusableInput("The same recipe is given twice.")
    if out.exists() and not out.is_dir():
        raise UnusableInput(f"The output {out} is a file. Name a folder.")
    for name in names:
        if (out / name).exists():
            raise UnusableInput(f"The output folder {out / name} exists already. Remove it, or choose another with -o.")


def _run_stages(
    model: Model,
    digest: str,
    planned: Sequence[tuple[Recipe, Stage]],
    jobs: int,
    watcher: Watcher,
    debug: bool,
) -> tuple[dict[str, Entry], list[StageReport]]:
    """Run every distinct stage, those without inputs first, so that a waiting stage never keeps a ready one out."""
    ordered: dict[str, tuple[int, Stage, str]] = {}

    def collect(stage: Stage, recipe: str) -> int:
        depth = 1 + max((collect(earlier, recipe) for earlier in stage.inputs), default=-1)
        ordered.setdefault(stage.key(digest), (depth, stage, recipe))
        return depth

    for wanted, last in planned:
        collect(last, str(wanted))
    futures: dict[str, Future[Entry]] = {}
    reports: list[StageReport] = []
    lock = threading.Lock()

    def work(key: str, stage: Stage, recipe: str) -> Entry:
        inputs = [futures[earlier.key(digest)].result() for earlier in stage.inputs]
        entry, report = _run_stage(model, key, stage, recipe, inputs, watcher, debug)
        with lock:
            reports.append(report)
            watcher.finished(stage, report)
        return entry

    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        try:
            for key, (_, stage, recipe) in sorted(ordered.items(), key=lambda item: item[1][0]):
                futures[key] = pool.submit(work, key, stage, recipe)
            done, waiting = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            failed = next((future for future in done if future.exception()), None)
            if failed is not None:
                kill_children()
                failed.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_children()
            raise
    return {key: future.result() for key, future in futures.items()}, reports


def _run_stage(
    model: Model, key: str, stage: Stage, recipe: str, inputs: Sequence[Entry], watcher: Watcher, debug: bool
) -> tuple[Entry, StageReport]:
    entry = find_entry(key)
    if entry is not None:
        return entry, StageReport(stage.label, recipe, True, None, None)
    with new_entry_folder() as folder:
        finished = run_in_child(
            stage.function,
            {
                "model": str(model.folder.resolve()),
                "inputs": [str(earlier.files) for earlier in inputs],
                "out": str(folder / "files"),
                **stage.arguments,
            },
            label=stage.label,
            on_progress=watcher.started(stage, recipe),
            environment={**stage.environment, **stage_environment(key)},
            debug=debug,
        )
        entry = store_entry(folder, key, finished.value)
    return entry, StageReport(stage.label, recipe, False, finished.seconds, finished.peak_rss_bytes)


def _check_budget(entry: Entry, lowered: Lowered, recipe: Recipe) -> None:
    """Hold the finished package to the budget of its recipe, which was met by calculation before."""
    settings, bits = recipe.quantization, lowered.weights.effective_bits_per_weight
    nbytes = sum((entry.files / name).stat().st_size for name in entry.digests)
    if recipe.scheme.mixed and settings.max_bytes is not None and nbytes > settings.max_bytes:
        raise CheckFailed(
            "max-bytes",
            f"{recipe} has {nbytes:,} bytes, {nbytes - settings.max_bytes:,} more than asked for: the container has more "
            "beside its matrices than was reckoned. Ask for so many fewer with --max-bytes.",
        )
    if recipe.scheme.mixed and settings.target_bpw is not None and bits > settings.target_bpw + _BITS_TOLERANCE:
        raise CheckFailed(
            "target-bpw",
            f"{recipe} has {bits:.3f} bits per weight, more than the {settings.target_bpw:g} asked for: some matrices have "
            "no place for codes in this container. Ask for fewer with --target-bpw.",
        )


def _check_fallbacks(lowered: Lowered, recipe: Recipe, schemes: Sequence[str], allow: Sequence[str]) -> tuple[str, ...]:
    """Hold the package to its scheme: a tensor that the format forced into another type fails the build."""
    forced = [deviation for deviation in lowered.weights.deviations if deviation.forced]
    if not forced:
        return ()
    if TYPE_FALLBACK in allow:
        return (TYPE_FALLBACK,)
    raise CheckFailed(
        TYPE_FALLBACK,
        f"{recipe}: {len(forced)} tensors cannot be stored as asked. The first is {forced[0].tensor}, stored as "
        f"{forced[0].stored} because {forced[0].reason}; the package would have "
        f"{lowered.weights.effective_bits_per_weight:.2f} bits per weight in place of {recipe.scheme.bits_per_weight:g}. "
        + _what_fits(recipe, schemes),
    )


def _foresee_fallbacks(model: Model, recipe: Recipe, schemes: Sequence[str], allow: Sequence[str]) -> None:
    """Tell from the shapes, before any work, that `_check_fallbacks` will fail for one of llama.cpp's own schemes."""
    unfit = unfit_rows(model, recipe.scheme.name)
    if unfit and TYPE_FALLBACK not in allow:
        name, row = unfit[0]
        raise CheckFailed(
            TYPE_FALLBACK,
            f"{recipe}: {len(unfit)} matrices cannot be stored as asked. The first is {name}: rows of {row} do not divide by "
            f"{recipe.scheme.block}. " + _what_fits(recipe, schemes),
        )


def _what_fits(recipe: Recipe, schemes: Sequence[str]) -> str:
    fitting = _nearest_fitting(recipe.scheme, schemes)
    use = f"Use {recipe.target}:{fitting}, whose blocks fit these rows, or accept" if fitting else "Accept"
    return f"{use} this with --allow {TYPE_FALLBACK}."


def _nearest_fitting(scheme: Scheme, names: Sequence[str]) -> str | None:
    """Of a target's schemes with smaller blocks, the one nearest in bits per weight."""
    known = [found for found in map(find_scheme, names) if found and found.family == scheme.family]
    known = [found for found in known if 0 < found.block < scheme.block]
    nearest = min(known, key=lambda found: abs(found.bits_per_weight - scheme.bits_per_weight), default=None)
    return nearest.name if nearest else None


def _assemble(
    folder: Path,
    identity: ModelIdentity,
    recipe: Recipe,
    stage: Stage,
    entry: Entry,
    lowered: Lowered,
    allowed: tuple[str, ...],
) -> Package:
    files = {}
    for name, digest in entry.digests.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if _copy(entry.files / name, target) != digest:
            drop_entry(entry.key)
            raise UnusableInput(
                f"The cached result of '{stage.label}' was damaged ({name}) and is dropped. Build again."
            )
        files[name] = FileRecord(digest, target.stat().st_size)
    tools = dict(sorted(stage.all_tools().items()))
    package = Package(folder, identity, str(recipe), recipe.full(), lowered, tools, files, allowed)
    write_manifest(package)
    return package


def _copy(source: Path, target: Path) -> str:
    """Copy a file and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_COPY_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    shutil.copymode(source, target)
    return digest.hexdigest()
