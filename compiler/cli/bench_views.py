"""What `edgec bench` shows of a server, and of a run without a rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import edgec
from compiler.cli.display import print_json, print_table
from compiler.cli.steps import shown_steps
from compiler.errors import UnusableInput
from compiler.output_file import check_output
from runtimes.workload import Workload

if TYPE_CHECKING:
    from benchmarks.endpoint import Asked, EndpointMeasurement

_UNITS = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600}
_MOST_S = 7 * 24 * 3600
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


def parse_seconds(text: str) -> float:
    """`600`, `600s`, `10min` or `1h` in seconds.

    Raises:
        UnusableInput: it is none of them, or longer than a week.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|m|h)?", text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    if not 0 < seconds <= _MOST_S:
        raise UnusableInput(f"{text!r} is no time. Write 600s, 10min or 1h.")
    return seconds


def show_endpoint(url: str, asked: Asked, out: Path | None, as_json: bool) -> None:
    """Measure a server and tell of it, in a result file too."""
    from benchmarks.endpoint import measure_endpoint
    from benchmarks.sagemaker import SCHEME, measure_sagemaker

    if out is not None:
        check_output(out)
    with shown_steps(quiet=as_json) as steps:
        tell = steps.begin(f"bench {url}", f"{asked.requests} requests").update
        if url.startswith(SCHEME):
            found, interface = measure_sagemaker(url.removeprefix(SCHEME), asked, tell), "sagemaker"
        else:
            found, interface = measure_endpoint(url, asked, tell), "openai"
    if as_json:
        print_json(asdict(found))
        _keep_endpoint(found, interface, out)
        return
    figures = [
        ("TTFT s", "ttft_s_p50", "ttft_s_p90", 3),
        ("TPOT ms", "tpot_ms_p50", "tpot_ms_p90", 2),
        ("latency s", "latency_s_p50", "latency_s_p90", 2),
        ("tok/s of one request", "decode_tok_per_s", None, 1),
        ("tok/s of all together", "all_tok_per_s", None, 1),
    ]
    rows = [
        [name, _number(found.summary[middle], digits), _number(found.summary[tail], digits) if tail else ""]
        for name, middle, tail, digits in figures
    ]
    print_table("Server", ["figure", "median", "p90"], rows)
    name = found.model.rpartition("/")[2]
    print(f"  {name} at {found.endpoint}, {asked.requests} requests, {asked.concurrency} at a time")
    for note in found.notes:
        print(f"  {note}")
    _keep_endpoint(found, interface, out)


def _keep_endpoint(found: EndpointMeasurement, interface: str, out: Path | None) -> None:
    from benchmarks.served import measurement_of

    if out is not None:
        edgec.write_measurements(out, [measurement_of(found, interface)])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_sustained(
    packages: Sequence[Path], workload: Workload, seconds: float, device: str, trust: bool, as_json: bool
) -> None:
    """Run packages without a rest and tell what they hold."""
    with shown_steps(quiet=as_json) as steps:
        step = steps.begin(f"run {len(packages)} packages without a rest", f"{seconds:.0f} s each")
        found = edgec.sustain(packages, seconds, workload, device=device, trust=trust, on_progress=step.update)
    if as_json:
        print_json([{**asdict(each), "held": each.held} for each in found])
        return
    rows = []
    for each in found:
        heat = [moment.hottest_c for moment in each.moments if moment.hottest_c is not None]
        clock = [moment.mhz for moment in each.moments if moment.mhz is not None]
        rows.append(
            [
                each.package,
                f"{each.first_speed:.1f} {each.unit}",
                f"{each.last_speed:.1f} {each.unit}",
                f"{each.held:.0%}",
                "never" if each.throttled_at_s is None else f"after {each.throttled_at_s:.0f} s",
                f"{max(heat):.0f} °C" if heat else "-",
                f"{min(clock):.0f} MHz" if clock else "-",
            ]
        )
    columns = ["package", "first minute", "last tenth", "held", "throttled", "hottest", "lowest clock"]
    print_table(f"{seconds:.0f} s without a rest on {device}", columns, rows)
    for each in found:
        print(f"  {each.package}: {sparkline([moment.speed for moment in each.moments])}{_why(each.reason)}")


def _why(reason: str) -> str:
    return f"  ({reason})" if reason else ""


def sparkline(speeds: Sequence[float]) -> str:
    """Speed through time, from zero to the highest."""
    width = min(_WIDTH, len(speeds))
    parts = [speeds[place * len(speeds) // width : (place + 1) * len(speeds) // width] for place in range(width)]
    means = [sum(part) / len(part) for part in parts]
    top = max(means)
    return "".join(_BARS[min(len(_BARS) - 1, int(mean / top * len(_BARS)))] for mean in means)
