"""`edgec kit`."""

from __future__ import annotations

from pathlib import Path

import click

from compiler.cli.display import print_json
from compiler.package import check_files, read_package
from targets.coreml.kit import write_kit


@click.command("kit")
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "--for", "system", type=click.Choice(["ios"]), default="ios", show_default=True, help="What the kit is for."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the kit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(package: Path, system: str, out: Path, as_json: bool) -> None:
    """Put PACKAGE into a Swift package with a typed wrapper and the tokenizer's files."""
    read = read_package(package)
    check_files(read)
    files = write_kit(read, out)
    if as_json:
        print_json({"folder": str(out), "files": files})
    else:
        click.echo(f"{out}: {len(files)} files. README.md says how an app uses it.")
