"""How a process that computes on the CPU gets its memory: in large pages, kept until it ends.

By default each large tensor is a mapping of its own: the system gives its pages back when the tensor goes, and
those of the next one are new, to be zeroed at their first touch; and as each page has 4 KiB, the processor spends
much of its time on finding out where they lie, in a virtual machine above all.
"""

import ctypes
import functools
import os
import resource
import sys
from pathlib import Path
from typing import Any, Literal

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Of malloc.h."""

MADV_HUGEPAGE = 14
"""Of sys/mman.h on Linux."""

LARGEST_KEPT = (1 << 30, 1 << 25)
"""Bytes: larger blocks still are mappings of their own. Before version 2.35 glibc takes no more than the second."""

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
NEVER_OVERCOMMITS = "2"

Memory = Literal["large pages", "kept", "as by default"]
"""Freed memory is kept and asks for large pages; it is kept; nothing is changed."""


@functools.cache
def settle_memory() -> Memory:
    """Let the C library keep what is freed for what is asked for next, and have it ask for large pages where the
    system gives these to who asks. To be called before the memory is needed.

    Only glibc on Linux has these settings; a library that was put before it (`LD_PRELOAD`) is left alone.
    """
    if not sys.platform.startswith("linux"):
        return "as by default"
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or _library_of(libc.malloc) != _library_of(libc.mallopt):
        return "as by default"
    largest = next((size for size in LARGEST_KEPT if libc.mallopt(M_MMAP_THRESHOLD, size)), 0)
    if not largest:
        return "as by default"
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    # in smaller blocks the machine's memory would be more mappings than a process may have
    if largest == LARGEST_KEPT[0] and _large_pages_are_given():
        return "large pages" if _ask_for_large_pages(libc, largest) else "kept"
    return "kept"


class _Place(ctypes.Structure):
    """`Dl_info` of dlfcn.h."""

    _fields_ = (
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _library_of(function: Any) -> int | None:
    """Where the library that has the function begins in memory."""
    place = _Place()
    address = ctypes.cast(function, ctypes.c_void_p)
    ctypes.CDLL(None).dladdr(address, ctypes.byref(place))
    return place.base  # type: ignore[no-any-return]


def _large_pages_are_given() -> bool:
    """To parts of memory that ask for them, and asking for much that is not used yet does no harm."""
    try:
        is_given = "[madvise]" in LARGE_PAGES.read_text()
        counts_unused = OVERCOMMIT.read_text().strip() == NEVER_OVERCOMMITS
    except OSError:
        return False
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return is_given and not counts_unused and set(limits) == {resource.RLIM_INFINITY}


def _ask_for_large_pages(libc: ctypes.CDLL, largest: int) -> bool:
    """Have the heap grow by as much as the machine has, mark that, and leave it to the heap; of each block only the
    page with its header is touched. False where the system refused."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = os.sysconf("SC_PAGE_SIZE")
    size = largest - page  # what is as large as that is a mapping of its own
    num_blocks = max(1, page * os.sysconf("SC_PHYS_PAGES") // largest)
    blocks = [block for _ in range(num_blocks) if (block := libc.malloc(size))]
    is_marked = bool(blocks)
    for block in blocks:
        first = -(-block // page) * page
        length = (block + size - first) // page * page
        is_marked = is_marked and libc.madvise(first, length, MADV_HUGEPAGE) == 0
    for block in blocks:
        libc.free(block)
    return is_marked
