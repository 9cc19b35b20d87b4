"""What the commands that verify take alike."""

from __future__ import annotations

import click

from compiler.quality import LEAST, QUALITIES

min_quality_option = click.option(
    "--min-quality",
    type=click.Choice(QUALITIES),
    help=f"The least quality that passes [the recipe's, else {LEAST}]; build verifies when it is asked.",
)
allow_option = click.option(
    "--allow",
    multiple=True,
    metavar="CHECK",
    help="Accept the failure of a check by its name: lowering, quality, thresholds; of build type-fallback, placement; a miss "
    "on the side of text by the name that verify prints, such as tokenizer:1a2b3c4d.",
)
