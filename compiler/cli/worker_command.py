"""`edgec worker`."""

from __future__ import annotations

import click

from compiler.byte_count import parse_bytes
from compiler.errors import UnusableInput


@click.command("worker")
@click.argument("address")
@click.option(
    "--offer",
    "offers",
    multiple=True,
    metavar="DEVICE",
    help="A device that is measured from here: local for this machine itself, ssh://user@host for a board that it reaches.",
)
@click.option(
    "--memory", metavar="BYTES", help="What builds may take here, such as 8GB; 0 for none [all that is free]."
)
def command(address: str, offers: tuple[str, ...], memory: str | None) -> None:
    """Work for the Dask scheduler at ADDRESS (tcp://host:8786), one thing at a time, until it ends.

    Whoever reaches the scheduler can run programs here: keep it inside a network that you trust.
    """
    from compiler.cli.fleet.worker import serve

    given = None if memory is None else 0 if memory == "0" else parse_bytes(memory)
    if memory is not None and given is None:
        raise UnusableInput(f"{memory!r} is no number of bytes. Write 8GB, 512MiB or 0.")
    serve(address, offers, given)
