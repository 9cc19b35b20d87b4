"""`edgec devices`."""

from __future__ import annotations

from dataclasses import asdict

import click

import edgec
from compiler.cli.display import print_json, print_table
from compiler.errors import UnusableInput
from compiler.recipe import MOST_THREADS
from runtimes.devices.profile import FIGURES, DeviceProfile, Figure, find_profile, own_folder, read_profiles


@click.command("devices")
@click.argument("names", nargs=-1)
@click.option(
    "--from", "source", metavar="DEVICE", help="With `add NAME`: the device to measure, such as ssh://pi@board."
)
@click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), default=4, show_default=True, help="To measure it with."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: tuple[str, ...], source: str | None, threads: int, as_json: bool) -> None:
    """List the devices that `plan` knows, or all figures of those NAMES, each with its source.

    `edgec devices add NAME --from DEVICE` measures one and keeps it; your own are files in ~/.config/edgec/devices.
    """
    if (names[:1] == ("add",)) != (source is not None) or (source is not None and len(names) != 2):
        raise UnusableInput(
            "A device is added with `edgec devices add NAME --from DEVICE`, such as --from ssh://pi@board."
        )
    if source is not None:
        names = (edgec.add_device(names[1], source, threads).name,)
    chosen = [find_profile(name) for name in names] if names else list(read_profiles().values())
    if as_json:
        print_json([asdict(profile) for profile in chosen])
    elif names:
        for profile in chosen:
            _print_figures(profile)
    else:
        rows = [
            [each.name, each.title, _told(each.memory), _told(each.read_bandwidth), ", ".join(each.targets)]
            for each in chosen
        ]
        print_table("Devices", ["name", "device", "memory", "bandwidth (best known)", "targets"], rows)
        print(
            f"  (m) measured, (d) the maker's, (D) derived from its memory, (s) told by others. Your own: {own_folder()}"
        )


_MARKS = {"measured": "m", "datasheet": "d", "derived": "D", "secondary": "s"}


def _told(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure} ({_MARKS[figure.kind]})"


def _print_figures(profile: DeviceProfile) -> None:
    rows = [["cores", str(profile.cores), "", ""]] if profile.cores else []
    for name in FIGURES:
        figure: Figure | None = getattr(profile, name)
        if figure is not None:
            rows.append([name.replace("_", " "), str(figure), figure.kind, figure.source])
    print_table(f"{profile.title} ({profile.name}, {profile.machine})", ["figure", "value", "known as", "source"], rows)
