"""The documents: every command that they show is one that edgec takes, and every file of them is linked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from compiler.cli.main import cli

_DOCS = Path(__file__).parents[1] / "docs"
_PAGES = sorted((*_DOCS.rglob("*.md"), _DOCS.parent / "README.md"))


def _commands() -> list[tuple[str, str]]:
    """Page and command, of each line of a console that starts edgec."""
    found = []
    for page in _PAGES:
        if "_build" in page.parts:
            continue
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            joined = block.replace("\\\n", " ")
            for line in joined.splitlines():
                command = line.removeprefix("$ ").split("  #")[0].split(" | ")[0].split(" && ")[0]
                if line.startswith("$ edgec ") and "[" not in command:
                    found.append((page.name, command))
    return found


@pytest.mark.parametrize(("page", "command"), _commands())
def test_a_command_that_is_shown_is_taken(page: str, command: str) -> None:
    """Its options are there and take such values; files need not be."""
    _, name, *arguments = shlex.split(command)
    outer = click.Context(cli, obj=False)
    found = cli.get_command(outer, name)
    assert found is not None, f"{page}: there is no edgec {name}"
    try:
        found.make_context(name, arguments, parent=outer)
    except click.UsageError as error:
        assert "does not exist" in error.message, f"{page}: {command}: {error.message}"


def test_enough_commands_are_shown() -> None:
    assert len(_commands()) > 30
