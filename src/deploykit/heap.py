"""Freed memory goes back to the system, so that the next copy of the weights doesn't come on top of the last one."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim() -> None:
    """Have the C library return the memory that it keeps for later: weights are many pieces, and glibc keeps freed pieces.

    Does nothing where the C library isn't glibc.
    """
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)


def release() -> None:
    """Collect objects that refer to themselves, as modules and graphs do, and return their memory to the system."""
    gc.collect()
    trim()
