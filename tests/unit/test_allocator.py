"""Freed memory is used again without new pages."""

import platform
import subprocess
import sys

import pytest

PROBE = """
import ctypes, resource, sys
from rft.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for size in (48 << 20, 48 << 20, 40 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(how: str) -> list[int]:
    """That three large blocks, each freed before the next, were given."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such a setting")
def test_a_large_block_gets_the_pages_of_the_one_before() -> None:
    given = new_pages("by default")
    kept = new_pages("kept")
    assert min(given) > 10000 / 16  # pages of the system: 4 KiB, or as large as 64
    assert kept[0] > 10000 / 16 and max(kept[1:]) < 100
