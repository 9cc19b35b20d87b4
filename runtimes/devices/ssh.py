"""ssh://[user@]host[:port]: a board with Linux, by the system's own OpenSSH client.

The client is the user's: keys, agents, jump hosts, names of hosts and their keys are as `~/.ssh` has them. Hosts whose key is
not known are refused, and nothing is ever asked for. EDGEC_SSH is the command where it is not `ssh`, such as
`ssh -F other_config`.
"""

from __future__ import annotations

import re

from compiler.errors import UnusableInput
from runtimes.devices.board.board import Board
from runtimes.devices.board.client import user_client
from runtimes.devices.board.openssh import shell_to
from runtimes.devices.device import Device

_ADDRESS = re.compile(
    r"//(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::(?P<port>\d{1,5}))?"
)


def open_device(address: str) -> Device:
    """The board at `//[user@]host[:port]`.

    Raises:
        UnusableInput: the address is not of that form, or there is no OpenSSH client here.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise UnusableInput(f"ssh:{address} is no address of a board. Write ssh://user@host or ssh://user@host:port.")
    missing = "There is no OpenSSH client here. Install it: apt install openssh-client."
    client = user_client("EDGEC_SSH", "ssh", missing)
    host = match["host"].strip("[]")
    named = f"{match['user']}@{host}" if match["user"] else host
    return Board(shell_to(f"ssh:{address}", client, named, int(match["port"]) if match["port"] else None))
