"""`edgec placement`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from compiler.cli.display import print_json, print_table
from compiler.errors import UnusableInput
from compiler.package import Placement, UnsupportedOperator, check_files, read_package
from compiler.placement import Requirement, check_account, check_placement, place
from compiler.target import Target
from runtimes.registry import runtime_of
from targets.registry import load_target


class Share(click.ParamType):
    """`ENGINE>=SHARE`, as a Requirement."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Requirement:
        if isinstance(value, Requirement):
            return value
        match = re.fullmatch(r"([a-z]+)\s*>=\s*(0(?:\.\d+)?|1(?:\.0+)?)", value)
        if match is None:
            self.fail(
                f"{value!r} is not of the form ENGINE>=SHARE with a share of 0 to 1; write ane>=0.99.", param, ctx
            )
        return Requirement(match[1], float(match[2]))


_NOTABLE_PADDING = 1.1
_TARGETS = {".mlpackage": "coreml", ".tflite": "tflite", ".litertlm": "tflite"}
_REQUIRE = click.option(
    "--require",
    multiple=True,
    type=Share(),
    metavar="ENGINE>=SHARE",
    help="As ane>=0.99: the operators that must stay there.",
)


def require_option(command: Any) -> Any:
    """Add `--require` to a click command."""
    return _REQUIRE(command)


@click.command("placement")
@click.argument("package", type=click.Path(path_type=Path))
@require_option
@click.option("--engine", metavar="ENGINE", help="ane of coreml; xnnpack (the default), gpu or nnapi of tflite.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(package: Path, require: tuple[Requirement, ...], engine: str | None, as_json: bool) -> None:
    """Which operators of PACKAGE leave an engine, and why: Apple's Neural Engine; XNNPACK, Android's GPU or NNAPI.

    PACKAGE may be any .mlpackage, .tflite or .litertlm as well.
    """
    files, target, title = _programs(package)
    engine = engine or target.engines[0]
    if engine not in target.engines:
        raise UnusableInput(f"There is no account of {engine} for {title}, only of {', '.join(target.engines)}.")
    check_account(target.engines, title, require)
    placement = place(target, files, engine)
    if as_json:
        print_json({**asdict(placement), "share": placement.share})
    else:
        print(f"{title}: {placement_line(placement)}")
        for heading, found in (("Leave", placement.unsupported), ("Stay or leave, by the source", placement.unsure)):
            if found:
                print_table(heading, ["operator", "count", "reason", "first"], _rows(found))
    check_placement(placement, partial(place, target, files), title, require)


def _programs(package: Path) -> tuple[list[Path], Target, str]:
    """What a package runs, in order, its target, and its name."""
    if (name := _TARGETS.get(package.suffix)) and package.exists():
        return [package], load_target(name), package.name
    read = read_package(package)
    if read.lowered.placement is None:
        raise UnusableInput(
            f"{read.name} is made for no engine that operators could leave; packages of coreml and tflite are."
        )
    check_files(read)
    runtime_of(read)
    target = load_target(read.recipe.partition(":")[0])
    return [read.folder / name for name in read.lowered.main.files], target, read.name


def _rows(found: Sequence[UnsupportedOperator]) -> list[list[str]]:
    """A row for each kind of operator and reason, the most frequent first."""
    counts = Counter((each.operator, each.reason) for each in found)
    first = {(each.operator, each.reason): each.name for each in reversed(found)}
    return [[kind, str(count), reason, first[kind, reason]] for (kind, reason), count in counts.most_common()]


def placement_line(placement: Placement) -> str:
    """Where operators run, in one line."""
    kinds = Counter(each.operator for each in placement.unsupported)
    leaving = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    text = f"{placement.share:.2%} of {placement.operators} operators stay on {placement.engine} ({placement.source})"
    if leaving:
        text += f"; these leave it: {leaving}"
    if placement.unsure:
        text += f"; of {len(placement.unsure)} more it is not certain"
    if placement.padded_bytes > _NOTABLE_PADDING * placement.result_bytes:
        times = placement.padded_bytes / placement.result_bytes
        text += f"; results take {times:.1f} times their bytes there, since last axes are padded"
    return text
