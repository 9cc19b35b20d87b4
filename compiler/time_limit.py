"""A limit of time on code that comes with a model, such as a chat template."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from compiler.errors import UnusableInput

TEMPLATE_S = 5.0


class TooSlowError(UnusableInput):
    """What took longer than it may."""


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """End what runs within when it takes longer; only in the main thread of a system with timers does it see the time.

    Raises:
        TooSlowError: it took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"{what} does not end within {seconds:g} s. Refused.")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
