"""`edgec targets`."""

from __future__ import annotations

import click

from compiler.cli.display import print_json, print_table
from compiler.cli.scheme_names import shorten
from targets.registry import TARGET_NAMES, load_target


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the targets, the schemes they take, and the extra that brings their tools."""
    targets = [load_target(name) for name in TARGET_NAMES]
    if as_json:
        print_json(
            [
                {
                    "target": target.name,
                    "schemes": list(target.schemes),
                    "variants": list(target.variants),
                    "options": list(target.options),
                    "extra": target.extra,
                }
                for target in targets
            ]
        )
        return
    rows = [
        [
            target.name,
            shorten(target.schemes),
            ", ".join(f"@{name}" for name in target.variants) or "-",
            f"edgec[{target.extra}]",
        ]
        for target in targets
    ]
    print_table("Targets", ["target", "schemes", "variants", "extra"], rows)
