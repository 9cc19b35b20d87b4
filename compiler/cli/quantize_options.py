"""The options of `edgec build` that say how codes are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from compiler.byte_count import parse_bytes
from compiler.quantization import STORAGES
from compiler.recipe import LARGEST


class ByteCount(click.ParamType):
    """`90MB`, `1.5GiB` or plain bytes, as an int."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not (count := parse_bytes(value)):
            self.fail(f"{value!r} is not a number of bytes; write 90MB, 1.5GiB or 90000000.", param, ctx)
        return count


_OPTIONS = (
    click.option(
        "--calibration",
        metavar="TEXT",
        help="FILE or hf:DATASET that GPTQ and imatrix calibrate on, a folder of pictures, or an .npz of a function's inputs "
        "[the model's own text].",
    ),
    click.option("--calibration-samples", type=click.IntRange(1, LARGEST), help="How many samples of it [128]."),
    click.option("--calibration-tokens", type=click.IntRange(16, LARGEST), help="Tokens of a sample [512]."),
    click.option("--seed", type=int, help="Of the text that the model writes itself [0]."),
    click.option("--head", type=click.Choice(STORAGES), help="How our schemes store the output head [auto: int8]."),
    click.option(
        "--embedding",
        type=click.Choice(STORAGES),
        help="How they store the token embedding [auto: int4, or int8 where it is the head].",
    ),
    click.option(
        "--smaller-groups",
        is_flag=True,
        default=None,
        help="Halve the groups of matrices whose rows the scheme's do not divide.",
    ),
    click.option(
        "--portable-scales",
        is_flag=True,
        default=None,
        help="The same codes and scales in every target, such as LiteRT takes: GPTQ runs once for all, at some more loss.",
    ),
    click.option(
        "--activation-order/--no-activation-order",
        default=None,
        help="Whether GPTQ rounds columns with large inputs first [yes].",
    ),
    click.option("--damping", type=float, help="Share of the Hessian's mean that GPTQ adds to its diagonal [0.01]."),
    click.option("--feedback", type=float, help="Share of the error of earlier layers that GPTQ makes good [0.5]."),
    click.option("--refinements", type=click.IntRange(0, LARGEST), help="Rounds of least squares after GPTQ [2]."),
    click.option("--target-bpw", type=click.FloatRange(1, 32), help="Budget of a mixed scheme, bits per weight."),
    click.option("--max-bytes", type=ByteCount(), help="The same as bytes of the package, such as 90MB."),
)


def quantize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
