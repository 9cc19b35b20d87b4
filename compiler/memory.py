"""Memory that a process has and does not need any more."""

from __future__ import annotations

import ctypes
import gc


def give_back_memory() -> None:
    """Have glibc return what is free: of matrices of many sizes it keeps fragments, which add up from block to block."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_garbage() -> None:
    """The same, of what only refers to itself too."""
    gc.collect()
    give_back_memory()
