"""Freed memory is used again without new pages, and comes in large ones where the system gives them."""

import ctypes
import json
import mmap
import platform
import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import rft.allocator
from rft.allocator import LARGE_PAGES, LARGEST_KEPT

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
for block_size in json.loads(sys.argv[2]):
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

BLOCKS = (48 << 20, 48 << 20, 40 << 20)
"""Bytes of the blocks that the probe asks for."""
NUM_PAGES = [size // (64 << 10) for size in BLOCKS]
"""Of each, where the system's pages are as large as they get."""


def probed(how: str) -> dict[str, Any]:
    """Pages that three large blocks, each freed before the next, were given; bytes of the last one in large
    pages, taken by the settings alone, and of the process's addresses; and what the settings came to."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how, json.dumps(BLOCKS)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def large_pages_go_to_all() -> bool:
    return LARGE_PAGES.is_file() and "[always]" in LARGE_PAGES.read_text()


def test_a_large_block_gets_the_pages_of_the_one_before() -> None:
    if not large_pages_go_to_all():
        given = probed("by default")["given"]
        assert all(pages >= size for pages, size in zip(given, NUM_PAGES, strict=True))
    assert max(probed("kept")["given"][1:]) < 100


@pytest.mark.skipif(
    not rft.allocator._large_pages_are_given(), reason="this system gives none to who asks"
)
def test_what_is_asked_for_comes_in_large_pages() -> None:
    assert probed("by default")["large"] == 0
    found = probed("kept")
    assert found["memory"] == "large pages"
    assert found["large"] >= 40 << 20  # up to a page at either end
    assert found["given"][0] < NUM_PAGES[0]
    assert found["taken"] < 8 << 20  # addresses only


def test_no_addresses_are_taken_where_they_are_limited() -> None:
    found = probed("limited")
    assert found["memory"] == "kept"
    assert found["size"] < 1 << 30
    assert max(found["given"][1:]) < 100


def test_only_the_memory_of_glibc_itself_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands before it by `LD_PRELOAD` has a `malloc` of its own, and glibc's settings say nothing of that."""
    glibc = ctypes.CDLL("libc.so.6")
    assert rft.allocator._serves(glibc, ctypes.CDLL(None))
    mapped = mmap.mmap(-1, rft.allocator.PROBE_BYTES)  # memory, and none of glibc's
    other: Any = SimpleNamespace(malloc=lambda size: id(mapped), free=lambda block: None)
    assert not rft.allocator._serves(glibc, other)
    without_count: Any = SimpleNamespace(mallopt=lambda key, value: 1)
    assert not rft.allocator._serves(without_count, ctypes.CDLL(None))
    monkeypatch.setattr(rft.allocator, "_serves", lambda *libraries: False)
    assert rft.allocator.settle_memory.__wrapped__() == "as by default"


@pytest.mark.parametrize(
    ("addresses", "codes", "is_marked"),
    [
        ((4096, 8192), (0, 0), True),
        ((4096, 8192), (0, -1), False),
        ((4096, None), (0,), False),
        ((None, None), (), False),
    ],
)
def test_what_the_system_refuses_is_not_claimed(
    addresses: tuple[int | None, ...], codes: tuple[int, ...], is_marked: bool
) -> None:
    largest, page = LARGEST_KEPT[0], resource.getpagesize()
    marked: list[tuple[int, int, int]] = []
    freed: list[int] = []
    blocks = [*addresses]

    def malloc(size: int) -> int | None:
        assert size == largest - page
        return blocks.pop(0)

    def madvise(*arguments: int) -> int:
        marked.append(arguments)
        return codes[len(marked) - 1]

    libc: Any = SimpleNamespace(
        malloc=malloc, free=lambda block: freed.append(block), madvise=madvise
    )
    assert rft.allocator._ask_for_large_pages(libc, largest, 2) == is_marked
    assert freed == [address for address in addresses if address]
    assert all(first % page == length % page == 0 for first, length, _ in marked)
