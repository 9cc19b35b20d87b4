"""Libraries that log about what else is installed beside them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Inside, nothing below an error is logged: coremltools complains of parts that only macOS has."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Inside, what native code writes to the process's standard error is dropped: LiteRT tells of devices it has not found."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@functools.cache
def quiet_at_exit() -> None:
    """Drop what native code writes to standard error when the process has ended for Python: LiteRT tells what it destroys."""
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
