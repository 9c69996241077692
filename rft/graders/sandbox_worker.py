"""The process that runs a python grader: a script of its own that knows nothing of rft.

It reads the source from its channel, runs it once, then for each request forks a child that calls
`grade(sample, item)` and sends back one frame. It ends when its channel does.
"""

import builtins
import contextlib
import gc
import json
import linecache
import math
import os
import random
import reprlib
import select
import shutil
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

FILE_NAME = "grader.py"
MAX_DETAILS = 4096
"""Characters of a traceback, and bytes of the output, that are kept: the last ones."""
MAX_RESULT_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 30
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Reply = dict[str, Any]
Grade = Callable[[Any, Any], Any]


def main() -> None:
    channel = int(sys.argv[1])
    home = os.getcwd()
    os.set_inheritable(channel, False)
    job = json.loads(read_frame(channel))
    timeout_seconds, memory_mb = job["timeout_seconds"], job["memory_mb"]
    set_limits(memory_mb)
    prctl = find_prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # The engine may be gone while the source runs: then nothing else would end an endless loop.
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
    grade, failure = load(job["source"], memory_mb)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if grade is None:
        write_frame(channel, {"kind": "source", "details": failure})
        return
    write_frame(channel, {"kind": "ready"})
    gc.collect()
    gc.freeze()
    limits = {"timeout_seconds": timeout_seconds, "memory_mb": memory_mb}
    with contextlib.suppress(EOFError):
        while True:
            request = read_frame(channel)
            write_frame(channel, run_sample(grade, request, channel, home, limits, prctl))
    shutil.rmtree(home, ignore_errors=True)


def read_frame(fd: int) -> bytes:
    """The next frame; raises EOFError when the other end is closed."""
    (length,) = struct.unpack(">I", read_exactly(fd, 4))
    return read_exactly(fd, length)


def read_exactly(fd: int, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        part = os.read(fd, min(num_bytes - len(received), 1 << 20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


def write_frame(fd: int, reply: Reply) -> None:
    body = json.dumps(reply).encode()
    frame = memoryview(struct.pack(">I", len(body)) + body)
    while frame:
        frame = frame[os.write(fd, frame) :]
