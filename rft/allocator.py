"""How this process's memory is handed back to the system: as late as possible."""

import ctypes
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Of malloc.h."""

LARGEST_KEPT = (1 << 30, 1 << 25)
"""Bytes: larger blocks still go back at once. Some versions take no more than the second."""

MOST_KEPT = (1 << 31) - 1
"""Bytes of free memory at the end of the heap; the most that mallopt takes."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked for next; False where it cannot be told to.

    By default each large tensor on a CPU is a mapping of its own: the system gives it back when the tensor
    goes, and the next one's pages are new, to be zeroed one by one at their first touch. A training pass
    spends an eighth of its time so. Only glibc has this setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
    return any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_KEPT)
