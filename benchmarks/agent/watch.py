"""A process beside the agent that looks at something again and again, and which no library in the agent can hold up."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_LONGEST = 1 << 16
_MOST_FILES = 4096
_FIRST_S = 0.1


class Watch(Generic[T]):
    """Looks from `begin` to `end`.

    It is a copy of this process, to be made before anything large is imported. Where processes cannot be copied, it sees
    nothing.

    Args:
        look: is given what it returned before (None at first), and whether this is not the first or last look, which are taken
            before and after what is watched; it returns what is known now, as JSON.
        read: makes of the last of these, or of None, what `end` returns.
        pause_s: between two looks.
    """

    def __init__(self, look: Callable[[Any, bool], Any], read: Callable[[Any], T], pause_s: float) -> None:
        self._read = read
        self._ends: tuple[int, int] | None = None
        if not hasattr(os, "fork"):
            return
        asked, ask = os.pipe()
        told, tell = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            # Nothing of the parent's own may run in this copy of it, whatever happens.
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                _keep_open(asked, tell)
                _watch(look, pause_s, asked, tell)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(tell)
        self._ends = (ask, told)

    def begin(self) -> None:
        """Start to look."""
        if self._ends is not None:
            os.write(self._ends[0], b"b")

    def end(self) -> T:
        """Stop, and tell what was seen."""
        if self._ends is None:
            return self._read(None)
        os.write(self._ends[0], b"e")
        told = os.read(self._ends[1], _LONGEST)
        return self._read(json.loads(told) if told else None)

    def close(self) -> None:
        """End the process that watches."""
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            os.waitpid(self._child, 0)
            self._ends = None


def _keep_open(*kept: int) -> None:
    """Close all else but the standard streams: the ends of another watch's pipes would keep that from ending."""
    last = 2
    for descriptor in sorted(kept):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, _MOST_FILES)


def _watch(look: Callable[[Any, bool], Any], pause_s: float, asked: int, tell: int) -> None:
    """Look from each `b` to the next `e`, until the other end is closed."""
    while os.read(asked, 1) == b"b":
        found = look(None, False)
        # What is short is looked at once all the same.
        wait_s = min(pause_s, _FIRST_S)
        while not select.select([asked], [], [], wait_s)[0]:
            found, wait_s = look(found, True), pause_s
        if os.read(asked, 1) != b"e":
            return
        os.write(tell, json.dumps(look(found, False)).encode())
