"""`edgec bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

import edgec
from benchmarks.measurement import Measurement
from benchmarks.report.predicted import predicted_rows
from compiler.cli.bench_views import parse_seconds, show_endpoint, show_sustained
from compiler.cli.display import format_bytes, print_json, print_table
from compiler.cli.steps import shown_steps
from compiler.cli.trust_option import trust_option
from compiler.errors import UnusableInput
from compiler.output_file import check_output
from compiler.recipe import LARGEST, MOST_THREADS
from runtimes.kinds import find_kind, kind_of_task
from runtimes.kinds.kind import Column, Kind
from runtimes.workload import Workload

_LOAD = Column("load_s", "load s", 2)
_SENSORS = (
    Column("hottest_c", "hottest °C", 0),
    Column("lowest_mhz", "MHz, lowest", 0),
    Column("highest_mhz", "highest", 0),
    Column("power_w", "W", 1),
    Column("joules_per_token", "J per token", 2),
)
_MEMORY = ("package_bytes", "peak_rss_bytes", "peak_anon_bytes", "file_mapped_bytes")


@click.command("bench")
@click.argument("packages", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Result file: one JSON object a line.")
@click.option("--prompt-tokens", type=click.IntRange(1, LARGEST), default=128, show_default=True)
@click.option("--generated-tokens", type=click.IntRange(2, LARGEST), default=64, show_default=True)
@click.option("--sequence-length", type=click.IntRange(1, LARGEST), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1, LARGEST), default=5, show_default=True)
@click.option(
    "--repetitions", type=click.IntRange(1, LARGEST), default=20, show_default=True, help="Encoder runs in a round."
)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), default=2, show_default=True)
@click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="DEVICE",
    help="local, ssh://user@host, adb:SERIAL, qemu:aarch64; without a package http://host:port, an OpenAI-compatible server, "
    "or sagemaker:ENDPOINT.",
)
@click.option(
    "--sustain",
    metavar="SECONDS",
    help="Run each package so long without a rest, such as 600s or 10min; tell what it holds.",
)
@click.option("--requests", type=click.IntRange(1, LARGEST), default=10, show_default=True, help="To a server.")
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=1, show_default=True, help="Requests at the same time."
)
@click.option("--endpoint-model", metavar="NAME", help="The server's name of the model [its first].")
@click.option(
    "--context-length",
    type=click.IntRange(1, LARGEST),
    help="Tokens that a language model's cache holds [the package's own, or what the workload needs].",
)
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    packages: tuple[Path, ...],
    out: Path | None,
    prompt_tokens: int,
    generated_tokens: int,
    sequence_length: int,
    rounds: int,
    repetitions: int,
    threads: int,
    device: str,
    sustain: str | None,
    requests: int,
    concurrency: int,
    endpoint_model: str | None,
    context_length: int | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Measure each PACKAGE in a process of its own, taking turns round by round."""
    if device.startswith(("http://", "https://", "sagemaker:")):
        if packages or sustain is not None:
            raise UnusableInput("What a server serves is measured without packages and --sustain. Leave them out.")
        from benchmarks.endpoint import Asked

        asked = Asked(prompt_tokens, generated_tokens, requests, concurrency, endpoint_model)
        show_endpoint(device, asked, out, as_json)
        return
    if not packages:
        raise UnusableInput("There is no package to measure. Name one, or a server with --device http://host:port.")
    if out is not None:
        check_output(out)
    workload = Workload(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        sequence_length=sequence_length,
        rounds=rounds,
        repetitions=repetitions,
        threads=threads,
        context_length=context_length,
    )
    if sustain is not None:
        if out is not None:
            raise UnusableInput("A sustained run is no measurement that is compared; leave -o out, and take --json.")
        show_sustained(packages, workload, parse_seconds(sustain), device, trust, as_json)
        return
    measurements = bench_with_bar(packages, workload, device, quiet=as_json, trust=trust)
    if out is not None:
        edgec.write_measurements(out, measurements)
    if as_json:
        print_json([asdict(measurement) for measurement in measurements])
    else:
        print_measurements(measurements)


def bench_with_bar(
    packages: edgec.Packages, workload: Workload, device: str, quiet: bool = False, trust: bool = False
) -> list[Measurement]:
    """Measure packages and tell of it."""
    with shown_steps(quiet) as steps:
        step = steps.begin(f"bench {len(packages)} packages", f"{workload.rounds} rounds")
        return edgec.bench(
            packages,
            workload,
            device=device,
            trust=trust,
            on_progress=step.update,
        )


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """The tables of a measurement, one kind after the other, and the reasons where figures are not to be trusted."""
    for name in dict.fromkeys(kind_of_task(each.task).name for each in measurements):
        _print_kind(find_kind(name), [each for each in measurements if kind_of_task(each.task).name == name])
    for measurement in measurements:
        if measurement.verdict.reasons:
            print(f"  {measurement.title}: {measurement.verdict.word}: {'; '.join(measurement.verdict.reasons)}")


def _print_kind(kind: Kind, measurements: Sequence[Measurement]) -> None:
    columns = (_LOAD, *kind.speed)
    rows = [
        [each.title, *(column.show(each.figure(column.key)) for column in columns), each.verdict.word]
        for each in measurements
    ]
    print_table(f"{kind.title}: speed", ["package", *(column.title for column in columns), "verdict"], rows)
    rows = [[each.title, *(format_bytes(each.figure(name)) for name in _MEMORY)] for each in measurements]
    titles = [name.removesuffix("_bytes").replace("_", " ") for name in _MEMORY]
    print_table(f"{kind.title}: memory", ["package", *titles], rows)
    _print_sensors(kind, measurements)
    figures, expected = predicted_rows(measurements)
    if figures:
        rows = [[each.title, *cells] for each, cells in zip(measurements, expected, strict=True)]
        print_table(f"{kind.title}: measured / predicted", ["package", *figures], rows)


def _print_sensors(kind: Kind, measurements: Sequence[Measurement]) -> None:
    """What the machines' sensors told meanwhile, where they have any."""
    rows = []
    for each in measurements:
        seen = each.disturbance.conditions
        told = (seen.hottest_c, seen.lowest_mhz, seen.highest_mhz) if seen is not None else (None, None, None)
        figures = (*told, each.figure("power_w"), each.figure("joules_per_token"))
        if any(figure is not None for figure in figures):
            shown = [column.show(figure) for column, figure in zip(_SENSORS, figures, strict=True)]
            rows.append([each.title, *shown])
    if rows:
        print_table(f"{kind.title}: sensors", ["package", *(column.title for column in _SENSORS)], rows)
