"""`--trust`, of the commands that open packages."""

from __future__ import annotations

import click

trust_option = click.option(
    "--trust", is_flag=True, help="Run the native code of a package that another machine built (target neo)."
)
