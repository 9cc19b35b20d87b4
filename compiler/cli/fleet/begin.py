"""Begins a matrix: opens its models, plans its cells, runs them, and writes what came of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import edgec
from benchmarks.matrix.cell import Result
from benchmarks.matrix.file import read_matrix
from benchmarks.matrix.outputs import write_outputs
from compiler.build import BUILD_CHECKS
from compiler.cli.fleet.run import Told, plan_work, run_here, run_on_cluster
from compiler.cli.fleet.work import recipe_of
from compiler.errors import missing_extra
from compiler.inputs.identity import digest_model
from compiler.model import Model
from compiler.needs import build_need
from compiler.recipe import Recipe
from compiler.target import reason_against
from runtimes.devices.registry import require_transport
from runtimes.verify.verify import require_known_checks
from targets.registry import load_target

# Where nothing is known of a build: over the bytes of the weights as float32, beside what libraries take.
_OF_WEIGHTS, _LIBRARIES_BYTES = 3, 1_500_000_000


def begin(
    file: Path, out: Path, cluster: str | None, store: str | None, tell: Told, again: bool = False
) -> list[Result]:
    """Run the matrix of a file; what a store has already is not done again, but with `again` what cannot be believed.

    Raises:
        UnusableInput: the file, a model, a recipe, a device or the cluster cannot be used.
    """
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow", "fleet") from error
    matrix = read_matrix(file)
    for device in matrix.devices:
        require_transport(device)
    opened = {name: edgec.open_model(name) for name in matrix.models}
    digests = {name: digest_model(model) for name, model in opened.items()}
    require_known_checks(matrix.allow, BUILD_CHECKS)
    work = plan_work(matrix, digests, again)
    builds = dict.fromkeys((order.cell.model, order.build) for order in work.orders)
    needs = [(name, _memory_of(opened[name], recipe_of(build))) for name, build in builds]
    memory = {name: max(nbytes for model, nbytes in needs if model == name) for name in matrix.models}
    work = replace(work, memory_bytes=memory)
    out.mkdir(parents=True, exist_ok=True)
    address = str(Path(store or out).resolve()) if "://" not in (store or "") else str(store)
    results = run_on_cluster(work, address, cluster, tell) if cluster else run_here(work, address, tell)
    write_outputs(out, results)
    return results


def _memory_of(model: Model, recipe: Recipe) -> int:
    """What a build takes, in bytes."""
    target = load_target(recipe.target)
    need = build_need(target.plan(model, recipe), model) if reason_against(target, model, recipe) is None else None
    return need.memory_bytes if need is not None else _LIBRARIES_BYTES + _OF_WEIGHTS * 4 * model.parameters
