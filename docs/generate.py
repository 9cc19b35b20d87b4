"""Write what README and docs show of edgec itself: tables of commands, schemes and limits, help, and recorded output.

python docs/generate.py            rewrite the blocks between `<!-- generated: NAME -->` and `<!-- end -->`
python docs/generate.py --check    exit 1 where one is not what it would be
python docs/generate.py --record MODEL   run the five-minute way on a model and keep what it prints in docs/recorded/
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from compiler import recipe_file  # noqa: E402
from compiler.cli.main import COMMANDS, cli  # noqa: E402
from compiler.cli.scheme_names import shorten  # noqa: E402
from runtimes.kinds import find_kind  # noqa: E402
from runtimes.kinds.kind import Kind  # noqa: E402
from targets.registry import TARGET_NAMES, load_target  # noqa: E402

_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_RECORDED = _ROOT / "docs" / "recorded" / "five-minutes.txt"
_HELP_COLUMNS = 100


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def commands() -> str:
    """The commands, each with its line of help."""
    return _table(["command", "what it does"], [[f"`edgec {name}`", words] for name, words in COMMANDS])


def command_names() -> str:
    """The commands in a line."""
    return ", ".join(f"`{name}`" for name, _ in COMMANDS) + "."


def help_texts() -> str:
    """The help of every command."""
    parts = []
    for name, _ in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        context = click.Context(command, info_name=f"edgec {name}", max_content_width=_HELP_COLUMNS)
        context.help_option_names = ["-h", "--help"]
        text = command.get_help(context)
        parts.append(f"### edgec {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def _limits(kind: Kind, place: int) -> str:
    titles = {column.key: column.title for column in kind.figures}
    return ", ".join(
        f"{titles[kind.limited[name]]} {'≤' if name.startswith('max_') else '≥'} {limit:g}"
        for name, limit in kind.grades[place].limits.items()
    )


def grades() -> str:
    """The words for quality and what deserves them."""
    kinds = [find_kind(name) for name in ("generation", "encoding")]
    rows = [[grade.word, *(_limits(kind, place) for kind in kinds)] for place, grade in enumerate(kinds[0].grades)]
    rows.append(["unusable", *("beyond" for _ in kinds)])
    return _table(["quality", *(kind.title.lower() for kind in kinds)], rows)


def targets() -> str:
    """The targets, what they take, and the extra that brings them."""
    found = [load_target(name) for name in TARGET_NAMES]
    rows = [
        [
            f"`{each.name}`",
            shorten(each.schemes),
            ", ".join([*(f"`@{name}`" for name in each.variants), *(f"`+{name}`" for name in each.options)]) or "-",
            f"`edgec[{each.extra}]`",
        ]
        for each in found
    ]
    return _table(["target", "schemes", "variants and options", "extra"], rows)


def recipe_files() -> str:
    """A recipe file, from the docstring of what reads it."""
    words, _, example = (inspect.getdoc(recipe_file) or "").partition("\n\n")
    return f"{words}\n\n```toml\n{example}\n```"


def five_minutes() -> str:
    """What the five-minute way printed."""
    return f"```text\n{_RECORDED.read_text(encoding='utf-8').rstrip()}\n```"


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "command-names": command_names,
    "help": help_texts,
    "grades": grades,
    "targets": targets,
    "recipe-file": recipe_files,
    "five-minutes": five_minutes,
}


def generated(text: str) -> str:
    """The text with every block as it is to be."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def record(model: str) -> None:
    """Run the first command of the README's five minutes and keep its tables of verification."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "compiler.cli.main", "build", model, "-r", "gguf:Q4_0", "-o", out, "--verify"]
        code = f"import sys; from compiler.cli.main import main; sys.argv = {['edgec', *command[3:]]!r}; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tables = done.stdout[done.stdout.index("Language models against their stored weights") :]
    _RECORDED.parent.mkdir(exist_ok=True)
    lines = [line.rstrip() for line in tables.splitlines()]
    _RECORDED.write_text("\n".join(line for line in lines if line) + "\n", encoding="utf-8")


def main() -> None:
    """Rewrite, check or record."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--record"]:
        record(arguments[1])
    stale = []
    for path in [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if generated(text) != text:
            stale.append(path)
            if arguments[:1] != ["--check"]:
                path.write_text(generated(text), encoding="utf-8")
    if stale and arguments[:1] == ["--check"]:
        names = ", ".join(path.relative_to(_ROOT).as_posix() for path in stale)
        sys.exit(f"Stale: {names}. Run `python docs/generate.py`.")


if __name__ == "__main__":
    main()
