"""The contract of a device: it takes packages, and runs the agent that opens and observes them over there.

The agent answers every line with one JSON line (benchmarks/agent/main.py). A transport carries the two streams and can hold
the agent still; it looks at nothing itself, since what a device's memory and processor do is seen only on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from compiler.package import Package


class Agent(Protocol):
    """A running agent."""

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the answer.

        Raises:
            UnusableInput: the agent is gone, or it answered with an error; the sentence says which.
        """
        ...

    def pause(self) -> None:
        """Stop the agent, so that it takes nothing of the machine."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Device(Protocol):
    """A machine that packages are measured on.

    Attributes:
        name: what measurements call it.
    """

    @property
    def name(self) -> str: ...

    def put(self, package: Package) -> str:
        """Bring a package there; where it lies there."""
        ...

    def start(self, module: str, arguments: Sequence[str], threads: int, distributions: Sequence[str] = ()) -> Agent:
        """Run a module of edgec's with arguments there, as an agent that may use so many threads.

        `distributions` are what it needs where no package says so, as they are installed here.

        Raises:
            UnusableInput: it cannot be started, or they cannot be had there.
        """
        ...
