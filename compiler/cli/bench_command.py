"""`edgec bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.harness import bench
from benchmarks.measurement import Measurement, write_measurements
from benchmarks.workload import Workload
from compiler.cli.display import format_bytes, format_number, print_json, print_table, progress_bars
from compiler.errors import UnusableInput
from compiler.package import check_files, read_package

_MEMORY = ("package_bytes", "peak_rss_bytes", "peak_anon_bytes", "file_mapped_bytes")


@click.command("bench")
@click.argument("packages", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Result file: one JSON object a line.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--generated-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--sequence-length", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--repetitions", type=click.IntRange(1), default=20, show_default=True, help="Encoder runs in a round.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
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
    as_json: bool,
) -> None:
    """Measure each PACKAGE in a process of its own, taking turns round by round."""
    if out is not None and out.is_dir():
        raise UnusableInput(f"The result file {out} is a folder. Name a file.")
    workload = Workload(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        sequence_length=sequence_length,
        rounds=rounds,
        repetitions=repetitions,
        threads=threads,
    )
    measurements = bench_packages(packages, workload, quiet=as_json)
    if out is not None:
        write_measurements(out, measurements)
    if as_json:
        print_json([asdict(measurement) for measurement in measurements])
    else:
        print_measurements(measurements)


def bench_packages(folders: Sequence[Path], workload: Workload, quiet: bool = False) -> list[Measurement]:
    """Check the packages' files and measure them, with a progress bar."""
    read = [read_package(folder) for folder in folders]
    for package in read:
        check_files(package)
    with progress_bars(quiet) as progress:
        task = progress.add_task(f"bench {len(read)} packages, {workload.rounds} rounds", total=None)
        return bench(read, workload, lambda done, total: progress.update(task, completed=done, total=total))


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """The tables of a measurement, decoders and encoders apart, and the reasons of verdicts that are not valid."""
    decoders = [measurement for measurement in measurements if "decode_tok_per_s" in measurement.summary]
    encoders = [measurement for measurement in measurements if "latency_ms_p50" in measurement.summary]
    speed = ["load_s", "ttft_s", "prefill_tok_per_s", "tpot_ms_p50", "tpot_ms_p99", "decode_tok_per_s"]
    if decoders:
        _print_kind("Language models", [*speed, "decode_bandwidth_fraction"], decoders)
    if encoders:
        _print_kind("Encoders", ["load_s", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99"], encoders)
    for measurement in measurements:
        if measurement.verdict["reasons"]:
            print(
                f"  {measurement.package}: {measurement.verdict['word']}: {'; '.join(measurement.verdict['reasons'])}"
            )


def _print_kind(title: str, names: Sequence[str], measurements: Sequence[Measurement]) -> None:
    labels = {name: name.replace("_tok_per_s", " tok/s").replace("_", " ") for name in (*names, *_MEMORY)}
    labels["decode_bandwidth_fraction"] = "share of bandwidth"
    rows = [
        [
            measurement.package,
            *(format_number(measurement.summary[name]) for name in names),
            measurement.verdict["word"],
        ]
        for measurement in measurements
    ]
    print_table(f"{title}: speed", ["package", *(labels[name] for name in names), "verdict"], rows)
    rows = [
        [measurement.package, *(format_bytes(measurement.summary[name]) for name in _MEMORY)]
        for measurement in measurements
    ]
    print_table(f"{title}: memory", ["package", *(labels[name].removesuffix(" bytes") for name in _MEMORY)], rows)
