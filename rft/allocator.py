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

MOST_BLOCKS = 1 << 13
"""That ask for large pages: each is a mapping, and so is what lies between two, of 65,530 a process may have."""

PROBE_BYTES = 1 << 26

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
    try:
        glibc = ctypes.CDLL("libc.so.6")
    except OSError:
        return "as by default"
    if not _serves(glibc, ctypes.CDLL(None)):
        return "as by default"
    largest = next((size for size in LARGEST_KEPT if glibc.mallopt(M_MMAP_THRESHOLD, size)), 0)
    if not largest:
        return "as by default"
    glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    num_blocks = max(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // largest)
    if num_blocks <= MOST_BLOCKS and _large_pages_are_given():
        is_marked = _ask_for_large_pages(glibc, largest, num_blocks)
        return "large pages" if is_marked else "kept"
    return "kept"


COUNTS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)
"""What glibc tells of its memory, in this order."""


class _Used(ctypes.Structure):
    """`mallinfo2` of malloc.h: bytes."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in COUNTS)


class _UsedAsInt(ctypes.Structure):
    """The same before version 2.33 of glibc: 32 bits of each, so that differences are taken in 32 bits."""

    _fields_ = tuple((name, ctypes.c_int) for name in COUNTS)


def _serves(glibc: Any, process: Any) -> bool:
    """Whether the process's memory is glibc's: what it asks for shows in glibc's own count."""
    name, kind = ("mallinfo2", _Used) if hasattr(glibc, "mallinfo2") else ("mallinfo", _UsedAsInt)
    if not hasattr(glibc, name) or not hasattr(glibc, "mallopt"):
        return False
    used = getattr(glibc, name)
    used.restype = kind

    def num_bytes() -> int:
        counts = used()
        return int(counts.hblkhd + counts.uordblks)

    _declare(process)
    before = num_bytes()
    block = process.malloc(PROBE_BYTES)
    grown = (num_bytes() - before) % (1 << 32)
    process.free(block)
    return bool(block) and PROBE_BYTES <= grown < 2 * PROBE_BYTES


def _declare(libc: Any) -> None:
    """What the functions take and give: addresses are not of C's `int`."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]


def _large_pages_are_given() -> bool:
    """To parts of memory that ask for them, and asking for much that is not used yet does no harm."""
    try:
        is_given = "[madvise]" in LARGE_PAGES.read_text()
        counts_unused = OVERCOMMIT.read_text().strip() == NEVER_OVERCOMMITS
    except OSError:
        return False
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return is_given and not counts_unused and set(limits) == {resource.RLIM_INFINITY}


def _ask_for_large_pages(libc: Any, largest: int, num_blocks: int) -> bool:
    """Have the heap grow by as much as the machine has, mark that, and leave it to the heap; of each block only the
    page with its header is touched. False where the system refused any of it."""
    _declare(libc)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = os.sysconf("SC_PAGE_SIZE")
    size = largest - page  # what is as large as that is a mapping of its own
    blocks = [block for _ in range(num_blocks) if (block := libc.malloc(size))]
    is_marked = len(blocks) == num_blocks
    for block in blocks:
        first = -(-block // page) * page
        length = (block + size - first) // page * page
        is_marked = is_marked and libc.madvise(first, length, MADV_HUGEPAGE) == 0
    for block in blocks:
        libc.free(block)
    return is_marked
