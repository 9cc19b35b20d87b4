"""`edgec kit`."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from compiler.cli.display import print_json
from compiler.cli.trust_option import trust_option
from compiler.errors import UnusableInput
from compiler.kit import Kit, write_kit
from compiler.package import Package, check_files, read_package
from compiler.package_use import require_finished
from runtimes.registry import require_trusted
from targets.registry import KITS


@click.command("kit")
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "system",
    type=click.Choice([kit.system for kit in KITS]),
    help="What the kit is for [the first that takes the package].",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the kit.")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(package: Path, system: str | None, out: Path, trust: bool, as_json: bool) -> None:
    """Put PACKAGE into what an app, a board or AWS takes: a Swift package, an Android library, a container, an endpoint."""
    read = read_package(package)
    check_files(read)
    require_finished(read)
    chosen = _choose(read, system)
    require_trusted(read, trust)
    fill = importlib.import_module(chosen.module).fill_kit
    files = write_kit(read, out, fill)
    if as_json:
        print_json({"folder": str(out), "files": files})
    else:
        click.echo(f"{out}: {len(files)} files. README.md says how they are used.")


def _choose(package: Package, system: str | None) -> Kit:
    """The kit that was asked for, or the first that takes the package."""
    runtime = package.lowered.runtime
    fitting = [kit for kit in KITS if runtime in kit.runtimes]
    found = next((kit for kit in fitting if system in (None, kit.system)), None)
    if found is None:
        kits = ", ".join(kit.system for kit in fitting) or "none"
        wanted = f"the kit for {system} does not take its packages" if system else "no kit takes its packages"
        raise UnusableInput(f"{package.title} is run by {runtime}, and {wanted}. Kits that do: {kits}.")
    return found
