"""glibc's memory allocator, set for training on a CPU."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_LARGEST_INT = 2**31 - 1
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD", "GLIBC_TUNABLES")
"""Environment variables with which somebody has chosen an allocator, or set this one, already."""


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that is freed, for the next operation, in place of giving it back to the system.

    A training step allocates and frees the same hundreds of megabytes each time. By default glibc returns large blocks
    to the system, which then has to clear every page again.

    Returns:
        Whether it was set: only with glibc, and only if the environment does not say otherwise.
    """
    if sys.platform != "linux" or any(name in os.environ for name in SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl, for one, has no mallopt
        return False
    set_option = libc.mallopt
    set_option.argtypes, set_option.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(set_option(_M_MMAP_MAX, 0) and set_option(_M_TRIM_THRESHOLD, _LARGEST_INT))
