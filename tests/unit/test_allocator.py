"""Freed memory is used again without new pages, and comes in large ones where the system gives them."""

import json
import platform
import subprocess
import sys
from typing import Any

import pytest

from rft.allocator import LARGE_PAGES, OVERCOMMIT

PROBE = """
import ctypes, json, resource, sys
from pathlib import Path
from rft.allocator import settle_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))


def value(path, key):
    lines = Path(path).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) << 10


memory = "as by default"
resident = value("/proc/self/status", "VmRSS")
if sys.argv[1] != "by default":
    memory = settle_memory()
    assert memory == settle_memory()
given = []
taken = value("/proc/self/status", "VmRSS") - resident
size = value("/proc/self/status", "VmSize")
for block_size in (48 << 20, 48 << 20, 40 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(block_size)
    ctypes.memset(block, 1, block_size)
    large = value("/proc/self/smaps_rollup", "AnonHugePages")
    libc.free(block)
    given.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps({"given": given, "large": large, "taken": taken, "size": size, "memory": memory}))
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc has such settings"
)

NUM_PAGES = (48 << 20) // (64 << 10)
"""Of the first block, where the system's pages are as large as they get."""


def probed(how: str) -> dict[str, Any]:
    """Pages that three large blocks, each freed before the next, were given; bytes of the last one in large
    pages, taken by the settings alone, and of the process's addresses; and what the settings came to."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def gives_large_pages() -> bool:
    try:
        return "[madvise]" in LARGE_PAGES.read_text() and OVERCOMMIT.read_text()[0] != "2"
    except OSError:
        return False


def test_a_large_block_gets_the_pages_of_the_one_before() -> None:
    assert min(probed("by default")["given"]) >= NUM_PAGES
    assert max(probed("kept")["given"][1:]) < 100


@pytest.mark.skipif(not gives_large_pages(), reason="this system gives none to who asks")
def test_what_is_asked_for_comes_in_large_pages() -> None:
    assert probed("by default")["large"] == 0
    found = probed("kept")
    assert found["memory"] == "large pages"
    assert found["large"] >= 40 << 20  # up to a page at either end
    assert found["given"][0] < NUM_PAGES
    assert found["taken"] < 8 << 20  # addresses only


def test_no_addresses_are_taken_where_they_are_limited() -> None:
    found = probed("limited")
    assert found["memory"] == "kept"
    assert found["size"] < 1 << 30
    assert max(found["given"][1:]) < 100
