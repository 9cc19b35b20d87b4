"""edgec for Python: what the commands call too.

    import edgec

    model = edgec.open_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    report = edgec.build(model, ["gguf:Q8_0", "onnx:int4-rtn-g32"], "packages")
    found = edgec.verify(report.packages)
    measured = edgec.bench(report.packages, edgec.Workload(rounds=3))

Every function raises `edgec.UnusableInput` for what cannot be worked with and `edgec.CheckFailed` for a check that failed; the
text of both is a paragraph for people. Importing this module imports no library of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.build import BUILD_CHECKS, BuildReport
from compiler.build import build as _build
from compiler.capabilities import Capability, Inspection
from compiler.capabilities import inspect as _inspect
from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.inputs.identity import check_identity, find_identified
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import Package, check_files, read_package
from compiler.package_use import require_usable
from compiler.placement import Requirement
from compiler.quantize.options import QuantizationOptions, with_options
from compiler.recipe import Recipe, Shapes, parse_recipe
from compiler.recipe_file import read_recipe_file
from compiler.stages.executor import Executor, LocalExecutor, Watcher
from compiler.stages.worker import Progress
from runtimes.kinds.kind import Outcome, Request
from runtimes.verify.verification import Verification, read_verification
from runtimes.workload import Workload
from targets.registry import TARGET_NAMES, load_target, schemes_of

if TYPE_CHECKING:
    from benchmarks.agreement import Agreement
    from benchmarks.compare import Comparison
    from benchmarks.matrix.cell import Result
    from benchmarks.measurement import Measurement
    from benchmarks.plan import Plan, Wishes
    from benchmarks.sustain import Sustained
    from runtimes.devices.profile import DeviceProfile

__all__ = [
    "BuildReport", "Capability", "CheckFailed", "EdgecError", "Executor", "Inspection", "LocalExecutor", "Model", "Outcome",
    "Package", "QuantizationOptions", "Recipe", "Request", "Requirement", "Shapes", "UnusableInput", "Verification",
    "Watcher", "Workload", "add_device", "bench", "build", "compare", "finish", "inspect", "open_model", "open_package",
    "parse_recipe", "plan", "read_measurements", "read_recipes", "read_verification", "require_agreement",
    "require_no_regression", "require_passed", "run_matrix", "sustain", "task_of", "use", "verify", "verify_on",
    "with_options", "write_measurements", "write_report",
]  # fmt: skip

Packages = Sequence[Package | Path | str]


def inspect(model: Model | str) -> Inspection:
    """Tell what a model is, its bytes at each scheme, and which targets take it; of a Model no weight is read."""
    opened = open_model(model) if isinstance(model, str) else model
    return _inspect(opened, [load_target(name) for name in TARGET_NAMES])


def read_recipes(file: Path | str) -> list[Recipe]:
    """Recipes from a TOML file with `[[recipe]]` tables."""
    return read_recipe_file(Path(file), TARGET_NAMES, schemes_of)


def task_of(recipes: Sequence[Recipe]) -> str | None:
    """The task that recipes name; None where they name none.

    Raises:
        UnusableInput: they name several.
    """
    tasks = sorted({recipe.task for recipe in recipes if recipe.task})
    if len(tasks) > 1:
        raise UnusableInput(f"The recipes name the tasks {' and '.join(tasks)}. One build is of one; split the file.")
    return tasks[0] if tasks else None


def build(
    model: Model | str,
    recipes: Sequence[Recipe | str],
    out: Path | str,
    *,
    allow: Sequence[str] = (),
    require: Sequence[Requirement] = (),
    force: bool = False,
    executor: Executor | None = None,
    keep: Callable[[Sequence[Package]], Sequence[bool]] | None = None,
) -> BuildReport:
    """Make a package for each recipe in the folder `out`: all of them, or none.

    Args:
        model: a Model, or what `open_model` takes.
        recipes: recipes, or their short form such as `gguf:Q4_K_M`.
        out: the folder that packages go into.
        allow: names of checks whose failure is accepted and recorded.
        require: shares of operators that must stay on an engine.
        force: replace packages of these names that are there.
        executor: how many stages run at a time, and who is told of them.
        keep: is asked of the finished packages, before any appears in `out`, which of them may; `verify` can be asked there.
    """
    from runtimes.kinds import kind_of_task
    from runtimes.verify.verify import own_limits, require_known_checks

    require_known_checks(allow, BUILD_CHECKS)
    parsed = [parse_recipe(each, TARGET_NAMES, schemes_of) if isinstance(each, str) else each for each in recipes]
    task = task_of(parsed)
    opened = open_model(model, task=task, executor=executor) if isinstance(model, str) else model
    for recipe in parsed:
        if recipe.thresholds:
            own_limits(kind_of_task(opened.task), recipe)
    return _build(
        opened, parsed, load_target, Path(out), allow=allow, require=require, force=force, executor=executor, keep=keep
    )


def finish(package: Package | Path | str, out: Path | str, *, force: bool = False, on_progress: Progress) -> Package:
    """Do on this machine what a package of another one still lacks; the finished copy goes into the folder `out`."""
    from compiler.finish import finish as finish_one

    return finish_one(_opened(package), load_target, Path(out), force=force, on_progress=on_progress)


def open_package(folder: Path | str) -> Package:
    """Read a package and hold every file to its hash."""
    package = read_package(Path(folder))
    check_files(package)
    return package


def _opened(given: Package | Path | str) -> Package:
    """A package that the caller has, or a folder's, held to its hashes."""
    return given if isinstance(given, Package) else open_package(given)


def _trusted(packages: Packages, trust: bool) -> list[Package]:
    from runtimes.registry import require_trusted

    opened = [_opened(each) for each in packages]
    for each in opened:
        require_trusted(each, trust)
    return opened


def verify(
    packages: Packages,
    *,
    model: Model | None = None,
    data: Path | None = None,
    max_tokens: int | None = None,
    threads: int = 2,
    allow: Sequence[str] = (),
    min_quality: str | None = None,
    trust: bool = False,
    executor: Executor | None = None,
    on_progress: Callable[[Package], Progress] | None = None,
) -> list[Verification]:
    """Hold packages to their stored weights and to the fp32 model; what is found lies beside each manifest.

    A package that fails is told by `passed`; `require_passed` raises for it.

    Args:
        packages: packages or their folders.
        model: the model they were made of; where this machine built them it knows.
        data: what to measure on: a text for language models, in place of edgec's own passages; for functions a .npz of inputs.
        max_tokens: tokens of it to use at most.
        threads: threads that runtimes may use.
        allow: names of checks whose failure is accepted and recorded.
        min_quality: the least quality that passes, in the place of the recipes' own.
        trust: run native code of packages that another machine built.
        executor: what runs the Reference.
        on_progress: gives each package's progress a place to go.
    """
    from dataclasses import replace

    from runtimes.registry import require_trusted
    from runtimes.verify.verify import MAX_TEXT_TOKENS
    from runtimes.verify.verify import verify as verify_one

    found = []
    for package in [each if isinstance(each, Package) else read_package(Path(each)) for each in packages]:
        if model is not None:
            check_identity(model, package.model)
        require_usable(package, proving=True)
        require_trusted(package, trust)
        source = replace(model, task=package.model.task) if model else find_identified(package.model)
        found.append(
            verify_one(
                package,
                source,
                data=data,
                max_tokens=max_tokens or MAX_TEXT_TOKENS,
                threads=threads,
                allow=allow,
                min_quality=min_quality,
                executor=executor,
                on_progress=on_progress(package) if on_progress else None,
            )
        )
    return found


def require_passed(packages: Packages, found: Sequence[Verification]) -> None:
    """Raise CheckFailed for the first package that did not pass, or UnusableInput where none could be opened."""
    from runtimes.verify.verify import require_passed as require

    read = [each if isinstance(each, Package) else read_package(Path(each)) for each in packages]
    require(list(zip(read, found, strict=True)))


def use(
    package: Package | Path | str,
    request: Request,
    *,
    threads: int = 2,
    context_length: int | None = None,
    trust: bool = False,
) -> Outcome:
    """Use a package once: generate, embed, classify, or answer a question from a passage.

    A language model's cache holds `context_length` tokens. With `trust`, native code of a package that another machine built
    is run.
    """
    from runtimes.kinds import kind_of_task
    from runtimes.registry import open_session, require_trusted

    opened = _opened(package)
    require_trusted(opened, trust)
    kind = kind_of_task(opened.model.task)
    kind.check(opened, request)
    session = open_session(opened, threads, context_length)
    try:
        return kind.use(opened, session, request)
    finally:
        session.close()


def bench(
    packages: Packages,
    workload: Workload | None = None,
    *,
    device: str = "local",
    trust: bool = False,
    on_progress: Progress | None = None,
) -> list[Measurement]:
    """Measure packages on a device, each in an agent of its own, taking turns round by round; `trust` as in `verify`."""
    from benchmarks.harness import bench as measure
    from benchmarks.history import remember
    from benchmarks.predicted import with_predictions

    opened = _trusted(packages, trust)
    tell = on_progress or (lambda done, total: None)
    measured = with_predictions(opened, measure(opened, workload or Workload(), device=device, on_progress=tell))
    remember(list(zip(opened, measured, strict=True)))
    return measured


def sustain(
    packages: Packages,
    seconds: float,
    workload: Workload | None = None,
    *,
    device: str = "local",
    trust: bool = False,
    on_progress: Progress | None = None,
) -> list[Sustained]:
    """Run packages without a rest, one after the other, so many seconds each: what they hold, and when heat slowed them."""
    from benchmarks.sustain import sustain as run

    opened = _trusted(packages, trust)
    tell = on_progress or (lambda done, total: None)
    return run(opened, workload or Workload(), seconds, device=device, on_progress=tell)


def verify_on(
    packages: Packages, device: str, *, threads: int = 2, trust: bool = False, on_progress: Progress | None = None
) -> list[Agreement]:
    """Compare what packages compute on a device with what they compute here; `require_agreement` raises where it differs.

    With `trust`, native code of packages that another machine built is run.
    """
    from benchmarks.agreement import compare_devices

    opened = _trusted(packages, trust)
    return compare_devices(opened, device, threads=threads, on_progress=on_progress or (lambda done, total: None))


def require_agreement(found: Sequence[Agreement]) -> None:
    """Raise CheckFailed for the first package that computes something else on a device."""
    from benchmarks.agreement import require_agreement as require

    require(found)


def run_matrix(
    file: Path | str,
    out: Path | str,
    *,
    cluster: str | None = None,
    store: str | None = None,
    again: bool = False,
    tell: Callable[[str, int, int], None] = lambda title, done, total: None,
) -> list[Result]:
    """Build and measure what the matrix of a TOML file names; what is done already stays, but `again` what is invalid.

    `out` is the folder of the results, `cluster` a Dask scheduler's address, `store` where packages are kept (else `out`).
    """
    from compiler.cli.fleet.begin import begin

    return begin(Path(file), Path(out), cluster, store, tell, again)


def plan(model: Model | str, device: str, wishes: Wishes | None = None) -> Plan:
    """For every recipe its bytes, memory, speed and quality on a device (a profile's name, or `local`); nothing is built."""
    from benchmarks.history import read_history
    from benchmarks.plan import Wishes
    from benchmarks.plan import plan as make
    from benchmarks.profiling import profile_for
    from compiler.inputs.identity import digest_model

    opened, seen = open_model(model) if isinstance(model, str) else model, read_history()
    return make(opened, digest_model(opened), profile_for(device), wishes or Wishes(), load_target, seen, TARGET_NAMES)


def add_device(name: str, device: str, threads: int = 4) -> DeviceProfile:
    """Measure a device (`local`, `ssh://...`) and keep its profile under a name, in ~/.config/edgec/devices."""
    from benchmarks.profiling import keep_profile

    return keep_profile(name, device, threads)


def compare(
    challenger: Sequence[Measurement] | Path | str,
    champion: Sequence[Measurement] | Path | str | None = None,
    *,
    against: str | None = None,
    effect: float = 0.05,
    metrics: Sequence[str] | None = None,
    across_schemes: bool = False,
    allow: Sequence[str] = (),
) -> list[Comparison]:
    """Ratios package by package; a regression is worse by more than `effect`, and `require_no_regression` raises for it.

    Args:
        challenger: measurements, or a result file.
        champion: the run that it is compared with.
        against: a recipe of the challenger's own that its other recipes are compared with.
        effect: how much worse is a regression.
        metrics: what is compared: `quality`, `size`, `memory`, `speed`; all where nothing is said.
        across_schemes: compare packages although their schemes or bits per weight differ.
        allow: names of checks whose failure is accepted: `missing`, `machine`, `runtime`, `quality`.
    """
    from benchmarks.compare import METRICS, compare_recipes
    from benchmarks.compare import compare as compare_runs

    after, found = _measurements(challenger), []
    options: Any = {"metrics": metrics or METRICS, "across_schemes": across_schemes, "allow": allow}
    if champion is not None:
        found += compare_runs(_measurements(champion), after, effect, **options)
    if against is not None:
        found += compare_recipes(after, against, effect, **options)
    return found


def require_no_regression(comparisons: Sequence[Comparison], effect: float = 0.05) -> None:
    """Raise CheckFailed that names the worst regression, when there is one."""
    from benchmarks.compare import require_no_regression as require

    require(comparisons, effect)


def write_report(file: Path | str, measurements: Sequence[Measurement] | Path | str) -> None:
    """Write one HTML page with the charts and tables of measurements."""
    from benchmarks.report.page import write_page

    write_page(Path(file), _measurements(measurements))


def write_measurements(file: Path | str, measurements: Sequence[Measurement]) -> None:
    """Write a result file: one JSON object a line."""
    from benchmarks.measurement import write_measurements as write

    write(Path(file), measurements)


def read_measurements(file: Path | str) -> list[Measurement]:
    """Read a result file."""
    from benchmarks.measurement import read_measurements as read

    return read(Path(file))


def _measurements(given: Sequence[Measurement] | Path | str) -> Sequence[Measurement]:
    return read_measurements(given) if isinstance(given, str | Path) else given
