"""From a Model and recipes to packages: stages run once each, in child processes, cached, then assembled and renamed."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from compiler import __version__
from compiler.digest import digest_code, digest_json
from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.inputs.identity import identify, remember_model
from compiler.model import Model, model_files
from compiler.needs import stage_need, with_needs
from compiler.pace import pace, remember_pace
from compiler.package import (
    Deviation,
    FileRecord,
    Lowered,
    ModelIdentity,
    Package,
    foreign_files,
    read_package,
    write_manifest,
)
from compiler.placement import PLACEMENT, Requirement, check_account, check_placement, place
from compiler.recipe import Recipe, folder_names
from compiler.records import from_json
from compiler.scheme import find_scheme
from compiler.stages.cache import Entry, drop_entry, new_folder
from compiler.stages.executor import Executor, LocalExecutor, Source, StageReport, stamp_of
from compiler.stages.stage import Stage, each_stage
from compiler.target import Target, check_taken, reason_against
from compiler.trust import remember_built

TYPE_FALLBACK, UNFINISHED = "type-fallback", "unfinished"
# The checks that can be accepted here.
BUILD_CHECKS = (TYPE_FALLBACK, PLACEMENT)
_BITS_TOLERANCE = 0.005
_COPY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class BuildReport:
    """The packages of a build, in the order of the recipes, what each stage cost, and the packages that failed `keep`."""

    packages: tuple[Package, ...]
    stages: tuple[StageReport, ...]
    dropped: tuple[Package, ...] = ()


@dataclass(frozen=True)
class _Made:
    """A recipe whose stages have run."""

    recipe: Recipe
    stage: Stage
    entry: Entry
    lowered: Lowered
    allowed: tuple[str, ...]


def build(
    model: Model,
    recipes: Sequence[Recipe],
    load_target: Callable[[str], Target],
    out: Path,
    *,
    allow: Sequence[str] = (),
    require: Sequence[Requirement] = (),
    force: bool = False,
    executor: Executor | None = None,
    keep: Callable[[Sequence[Package]], Sequence[bool]] | None = None,
) -> BuildReport:
    """Make one package per recipe at `out/<folder name>` (`folder_names`). Either all appear, or none.

    Where the tool that finishes a package is here and fails, all appear, that one unfinished, and CheckFailed is raised.

    Args:
        model: what to package.
        recipes: what to make of it.
        load_target: from a target's name to the target.
        out: the folder that the packages go into; it is made when absent.
        allow: names of checks whose failure is accepted and recorded.
        require: what packages must hold that have an account of where their operators run.
        force: packages of these names that are there are replaced; nothing else is.
        executor: what runs the stages.
        keep: is asked of the finished packages, before any appears, which of them may.

    Raises:
        UnusableInput: a recipe does not suit the model, an output exists, or a stage could not be done.
        CheckFailed: a check failed that `allow` does not name.
    """
    executor = executor or LocalExecutor()
    targets = {recipe.target: load_target(recipe.target) for recipe in recipes}
    for recipe in recipes:
        target = targets[recipe.target]
        check_taken(target, model, recipe, load_target)
        check_account(target.engines, str(recipe), require)
        _check_forced(target.foresee(model, recipe), None, recipe, model, target, allow)
    names = dict(zip(recipes, folder_names(recipes), strict=True))
    refuse_existing(out, names.values(), force)
    reading = executor.watcher.reading()
    stamp = stamp_of(model_files(model.folder))
    identity = identify(model, reading)
    remember_model(model, identity.digest, reading)
    memo = digest_json([identity.digest, model.task, digest_code()])
    check = ("compiler.inputs.check:check_model", {"task": model.task, "memo": memo})
    sources = {"model": Source(model.folder, identity.digest, stamp, check)}
    planned = [(recipe, with_needs(targets[recipe.target].plan(model, recipe), model)) for recipe in recipes]
    results = executor.run([(str(recipe), stage) for recipe, stage in planned], sources)
    made = []
    for recipe, stage in planned:
        entry = results.entries[executor.key(stage, sources)]
        lowered = from_json(Lowered, entry.value)
        _check_budget(entry, lowered, recipe)
        forced = [deviation for deviation in lowered.weights.deviations if deviation.forced]
        bits = lowered.weights.effective_bits_per_weight
        allowed = _check_forced(forced, bits, recipe, model, targets[recipe.target], allow)
        files = [entry.files / name for name in lowered.main.files]
        place_on = partial(place, targets[recipe.target], files)
        allowed += check_placement(lowered.placement, place_on, str(recipe), require, allow)
        made.append(_Made(recipe, stage, entry, lowered, allowed))
    packages, afterwards = list[Package](), list[Callable[[], None]]()
    not_finished: tuple[Package, EdgecError] | None = None
    with new_folder(out) as temporary:
        for each in made:
            folder = temporary / names[each.recipe]
            tools = {"edgec": __version__, **executor.tools(each.stage)}
            package = _assemble(folder, model, identity, each, tools)
            try:
                package, when_kept = _finished(package, targets[each.recipe.target])
            except EdgecError as error:
                # What was built took long: it stays as it would be where the tool that finishes it is not.
                _drop_leftovers(package)
                not_finished, when_kept = not_finished or (package, error), _nothing
            packages.append(package)
            afterwards.append(when_kept)
        passed = list(keep(packages)) if keep else [True] * len(packages)
        kept = [package for package, good in zip(packages, passed, strict=True) if good]
        move_packages(kept, out, temporary if force else None)
    for call in itertools.compress(afterwards, passed):
        call()
    if not_finished is not None:
        package, reason = not_finished
        there = (
            f" It is in {out / package.name} as it is where that tool is not, UNFINISHED." if package in kept else ""
        )
        raise CheckFailed(UNFINISHED, f"{reason}{there}") from reason
    final = tuple(replace(package, folder=out / package.name) for package in kept)
    dropped = tuple(package for package, good in zip(packages, passed, strict=True) if not good)
    return BuildReport(final, _with_expected(results.reports, [stage for _, stage in planned], model), dropped)


def _finished(package: Package, target: Target) -> tuple[Package, Callable[[], None]]:
    """The package, finished where it is not and this machine can; what is to be called when it is kept."""
    from compiler.finish import finish_in_place, finishes_here

    if package.lowered.unfinished is None or not finishes_here(target):
        return package, _nothing
    return finish_in_place(package, target, lambda done, total: None)


def _nothing() -> None:
    """What is called of a package of which nothing is left to be called."""


def _drop_leftovers(package: Package) -> None:
    """Remove what a tool that failed has left in a folder."""
    for name in foreign_files(package):
        (package.folder / name).unlink(missing_ok=True)


def _with_expected(reports: Sequence[StageReport], planned: Sequence[Stage], model: Model) -> tuple[StageReport, ...]:
    """Reports with what was expected of each stage; what is learned of this machine's pace is kept."""
    known = {(each.label, each.work): each for stage in planned for each in each_stage(stage)}
    stages = [known.get((report.label, report.work)) for report in reports]
    needs = [None if stage is None else stage_need(stage, model) for stage in stages]
    usual = pace()
    told = [
        report
        if need is None
        else replace(report, expected_seconds=usual * need.seconds, expected_peak_bytes=need.memory_bytes)
        for report, need in zip(reports, needs, strict=True)
    ]
    pairs = zip(reports, needs, strict=True)
    remember_pace([(each.seconds, need.seconds) for each, need in pairs if each.seconds is not None and need])
    return tuple(told)


def move_packages(packages: Sequence[Package], out: Path, aside: Path | None) -> None:
    """Put all packages into their place, or none; those that are there go `aside` where that is a folder."""
    moved: list[Package] = []
    replaced: list[str] = []
    try:
        for package in packages:
            if aside is not None and (out / package.name).exists():
                _require_replaceable(out / package.name)
                (out / package.name).rename(aside / f"old-{package.name}")
                replaced.append(package.name)
            if (out / package.name).exists():
                raise UnusableInput(f"The output folder {out / package.name} appeared while the packages were made.")
            package.folder.rename(out / package.name)
            moved.append(package)
    except BaseException:
        for package in moved:
            (out / package.name).rename(package.folder)
        for name in replaced:
            assert aside is not None
            (aside / f"old-{name}").rename(out / name)
        raise


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace what is no package, or holds files of the user's.

    Raises:
        UnusableInput: it is such a folder.
    """
    try:
        foreign = foreign_files(read_package(folder))
    except UnusableInput:
        raise UnusableInput(
            f"{folder} is no package of edgec's, so --force does not replace it. Remove it by hand."
        ) from None
    if foreign:
        raise UnusableInput(
            f"{folder} holds {foreign[0]}, which is not the package's, so --force does not replace it. Move that file away."
        )


def refuse_existing(out: Path, names: Iterable[str], force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UnusableInput(f"The output {out} is a file. Name a folder.")
    for name in (name for name in names if (out / name).exists()):
        if not force:
            raise UnusableInput(
                f"The output folder {out / name} exists already. --force replaces a package, or choose another with -o."
            )
        _require_replaceable(out / name)


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


def _check_forced(
    forced: Sequence[Deviation],
    bits: float | None,
    recipe: Recipe,
    model: Model,
    target: Target,
    allow: Sequence[str],
) -> tuple[str, ...]:
    """Hold the package to its scheme: a tensor that the format forces into another type fails the build.

    `bits` are the effective bits per weight, None where they are only foreseen.
    """
    if not forced:
        return ()
    if TYPE_FALLBACK in allow:
        return (TYPE_FALLBACK,)
    asked = recipe.scheme.bits_per_weight
    ends = "" if bits is None else f"; the package would have {bits:.2f} bits per weight in place of {asked:g}"
    raise CheckFailed(
        TYPE_FALLBACK,
        f"{recipe}: {len(forced)} tensors cannot be stored as asked. The first is {forced[0].tensor}, stored as "
        f"{forced[0].stored} because {forced[0].reason}{ends}. " + _what_fits(recipe, model, target),
    )


def _what_fits(recipe: Recipe, model: Model, target: Target) -> str:
    fitting = _nearest_fitting(recipe, model, target)
    use = (
        f"Use {fitting}, which stores every row of this model, or accept" if fitting else "No other scheme does; accept"
    )
    return f"{use} this with --allow {TYPE_FALLBACK}."


def _nearest_fitting(recipe: Recipe, model: Model, target: Target) -> Recipe | None:
    """The recipe nearest in bits per weight that the target stores this model by as asked; None where there is none."""
    known = [replace(recipe, scheme=found, options=()) for found in map(find_scheme, target.schemes) if found]
    known = [each for each in known if each.scheme.family == recipe.scheme.family and each.scheme != recipe.scheme]
    known.sort(key=lambda each: abs(each.scheme.bits_per_weight - recipe.scheme.bits_per_weight))
    takes = (each for each in known if reason_against(target, model, each) is None and not target.foresee(model, each))
    return next(takes, None)


def _assemble(folder: Path, model: Model, identity: ModelIdentity, made: _Made, tools: dict[str, str]) -> Package:
    """The package in a folder that is new."""
    entry = made.entry
    files = {}
    for name, digest in entry.digests.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy_hashed(entry.files / name, target) != digest:
            drop_entry(entry)
            raise UnusableInput(
                f"The cached result of '{made.stage.label}' was damaged ({name}) and is dropped. Build again."
            )
        files[name] = FileRecord(digest, target.stat().st_size)
    recipe = made.recipe
    asked = recipe.full()
    package = Package(folder, identity, str(recipe), asked, made.lowered, tools, files, made.allowed, model.sentence)
    write_manifest(package)
    remember_built(package)
    return package


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_COPY_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    shutil.copymode(source, target)
    return digest.hexdigest()
