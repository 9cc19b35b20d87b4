"""Memory that a process has and does not need any more."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys


def give_back_memory() -> None:
    """Have glibc return what is free: of matrices of many sizes it keeps fragments, which add up from block to block."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_garbage() -> None:
    """The same, of what only refers to itself too."""
    gc.collect()
    give_back_memory()


# <linux/mman.h>; nothing is lost by it: what is no file's page goes to the swap, or stays.
_MADV_PAGEOUT = 21


def give_back_pages(address: int, nbytes: int) -> None:
    """Have Linux take pages of a mapped file out of this process's memory; they are read again where they are needed again.

    Args:
        address: where they begin; what is on a page with something else stays.
        nbytes: how many.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    begin, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and advise is not None and begin < end:
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT)
