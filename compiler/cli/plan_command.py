"""`edgec plan`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict

import click

import edgec
from benchmarks.plan import PROMPT_TOKENS, Option, Plan, Wishes
from benchmarks.prediction import Range
from compiler.cli.display import print_json, print_table
from compiler.cli.quantize_options import ByteCount
from compiler.cli.steps import ShownStages, shown_steps
from compiler.errors import CheckFailed, UnusableInput
from compiler.needs import Need
from compiler.quality import QUALITIES
from compiler.recipe import LARGEST
from compiler.stages.executor import LocalExecutor


@click.command("plan")
@click.argument("model")
@click.option("--device", required=True, help="A name that `edgec devices` lists, or local for this machine.")
@click.option("--context", type=click.IntRange(1, LARGEST), help="Tokens to hold [2048, or what the model takes].")
@click.option("--batch", type=click.IntRange(1, LARGEST), default=1, show_default=True, help="Texts at the same time.")
@click.option("--max-memory", type=ByteCount(), help="At most, such as 3GB [four fifths of the device's].")
@click.option("--min-tok-per-s", type=click.FloatRange(0), help="Tokens a second at least.")
@click.option("--max-kl", type=click.FloatRange(0), help="Mean KL to the fp32 model at most.")
@click.option("--price-per-hour", type=click.FloatRange(0), help="Of the device; tells what a million tokens cost.")
@click.option("--min-quality", type=click.Choice(QUALITIES), default="good", show_default=True)
@click.option(
    "--all", "show_all", is_flag=True, help="Show every recipe, with what it misses, and why others cannot be had."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    debug: bool,
    model: str,
    device: str,
    context: int | None,
    batch: int,
    max_memory: int | None,
    min_tok_per_s: float | None,
    max_kl: float | None,
    price_per_hour: float | None,
    min_quality: str,
    show_all: bool,
    as_json: bool,
) -> None:
    """Tell what to ship to a device: for every recipe of MODEL its bytes, memory, speed and quality. Nothing is built.

    Figures are predicted from shapes, the device's bandwidth and what `bench` measured on this machine before.
    """
    with shown_steps(quiet=as_json) as steps:
        opened = edgec.open_model(model, executor=LocalExecutor(watcher=ShownStages(steps), debug=debug))
    if not opened.is_decoder and any(each is not None for each in (context, min_tok_per_s, price_per_hour)):
        raise UnusableInput(
            f"{opened.name} is no language model: leave --context, --min-tok-per-s and --price-per-hour out, which are of "
            "tokens."
        )
    wishes = Wishes(context, max_memory, min_tok_per_s, max_kl, min_quality, batch)
    found = edgec.plan(opened, device, wishes)
    if as_json:
        told = asdict(found)
        for option, shown in zip(found.options, told["options"], strict=True):
            shown["price_per_million_tokens"] = _price(option, price_per_hour) if price_per_hour is not None else None
        print_json(told)
        _require_chosen(found)
        return
    _print(found, opened.name, device, show_all, price_per_hour)
    for reason in (*found.refused, *(found.unfit if show_all else ())):
        print(f"  {reason}")
    if not show_all and (unsure := sum(each.quality is None for each in found.options if each not in found.front)):
        print(f"  {unsure} more recipes can be had, whose quality was not measured: --all shows them.")
    _require_chosen(found)
    assert found.chosen is not None
    words = ["edgec", "build", model, "-r", found.chosen.recipe, *found.chosen.flags, "--min-quality", min_quality]
    words += ["--context-length", str(found.context)] if found.context else []
    known = found.chosen.tok_per_s or (found.chosen.first_s if found.context is None else None)
    which = "Fastest" if known is not None else "Smallest"
    print(f"{which} of those that hold it all: {found.chosen.recipe}. Make it, and hold it to that quality:")
    print(f"  {shlex.join([*words, '-o', 'packages', '--verify'])}")
    if found.chosen.memory is None:
        print(
            "  How much memory its runtime takes there is not known; the bytes of the package were held to the limit."
        )


def _require_chosen(found: Plan) -> None:
    if found.chosen is None:
        raise CheckFailed("plan", "No recipe holds all of it. --all shows what each misses.")


def _print(found: Plan, model: str, device: str, show_all: bool, price_per_hour: float | None) -> None:
    shown: Sequence[Option] = found.options if show_all else found.front
    decodes = found.context is not None
    columns = ["recipe", "package MB", "memory MB", "first token ms" if decodes else "latency ms"]
    columns += ["tok/s", "at most"] if decodes else []
    columns += ["per 1M tokens"] if decodes and price_per_hour is not None else []
    columns += ["quality", "build MB", "disk MB", "time", ""]
    rows = [
        [
            " ".join((each.recipe, *each.flags)),
            f"{each.package_bytes / 1e6:,.0f}",
            _range(each.memory, 1e6),
            _range(each.first_s, 1e-3),
            *([_range(each.tok_per_s, 1.0), _bound(each.bound_tok_per_s)] if decodes else []),
            *([_told_price(each, price_per_hour)] if decodes and price_per_hour is not None else []),
            "not known" if each.quality is None else f"{each.quality} ({each.known})",
            *_build(each.build),
            "; ".join((*(("chosen",) if each == found.chosen else each.misses), *each.notes)),
        ]
        for each in shown
    ]
    print_table(f"{model} on {device}, predicted", columns, rows)
    print(f"  {columns[3]}: of {PROMPT_TOKENS} tokens. Build, disk, time: what building takes on this machine.")
    if decodes and price_per_hour is not None:
        print("  per 1M tokens: of a device that decodes without a rest, in the currency of the price.")


def _price(option: Option, price_per_hour: float) -> float | None:
    """What a million tokens cost, in the currency of the price; where only a bound of the speed is known, at least that."""
    speed = option.tok_per_s.middle if option.tok_per_s is not None else option.bound_tok_per_s
    return price_per_hour / 3600 / speed * 1e6 if speed else None


def _told_price(option: Option, price_per_hour: float) -> str:
    price = _price(option, price_per_hour)
    if price is None:
        return "-"
    return f"{'' if option.tok_per_s is not None else '≥ '}{price:.{2 if price >= 1 else 5}f}"


def _build(need: Need | None) -> tuple[str, str, str]:
    """Megabytes of memory and of disk, and the time."""
    if need is None:
        return "-", "-", "-"
    time = f"{need.seconds / 60:.0f}min" if need.seconds >= 90 else f"{need.seconds:.0f}s"
    return f"{need.memory_bytes / 1e6:,.0f}", f"{need.disk_bytes / 1e6:,.0f}", time


def _bound(found: float | None) -> str:
    return "-" if found is None else f"{found:.0f}"


def _range(found: Range | None, unit: float) -> str:
    """The figure, and between what it is likely to lie."""
    if found is None:
        return "-"
    low, middle, high = (value / unit for value in (found.low, found.middle, found.high))
    digits = 1 if middle < 10 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f}\N{EN DASH}{high:,.{digits}f})"
