"""What the process of one sample does: `grade(sample, item)`, then one frame, then the end."""

import contextlib
import errno
import json
import math
import os
import random
import reprlib
import signal
import sys
import traceback
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

from rft.graders.sandbox_frames import Reply, write_frame

MAX_DETAILS = 4096
"""Characters of a traceback, and bytes of the output, that are kept: the last ones."""
ALL_SIGNALS = signal.valid_signals()
OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))

Grade = Callable[[Any, Any], Any]


def grade_and_exit(
    grade: Grade, request: bytes, link: int, memory_mb: int, reserve: list[bytes]
) -> NoReturn:
    """Calls grade, writes one frame and ends the process.

    `reserve` holds memory that is given up when all other has run out, so that this can be said.
    """
    try:
        own_pid = os.getpid()
        try:
            reply = call(grade, request)
        except MemoryError:
            reserve.clear()
            reply = {"kind": "memory", "details": f"memory limit {memory_mb} MB"}
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)  # grade has had its say
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # A fork that grade itself made comes back here too, and has no say.
        if os.getpid() == own_pid:
            write_frame(link, reply)
    except BaseException:
        os._exit(1)
    os._exit(0)


def call(grade: Grade, request: bytes) -> Reply:
    """Calls grade, with random numbers that depend on the request alone; raises MemoryError."""
    try:
        random.seed(request)
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(zlib.crc32(request))
        arguments = json.loads(request)
        return read_reward(grade(arguments["sample"], arguments["item"]))
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryError from None
        return {"kind": "fault", "details": describe(error)}


def read_reward(value: object) -> Reply:
    """The reward in what grade returned: anything that converts to a finite float, but no text."""
    if hasattr(type(value), "__float__"):
        reward = float(value)  # type: ignore[arg-type]
        if math.isfinite(reward):
            return {"kind": "reward", "reward": reward}
    what = f"grade returned {reprlib.repr(value)} ({type(value).__name__})"
    return {"kind": "fault", "details": f"{what}; it must return a finite number"}


def describe(error: BaseException) -> str:
    """The traceback from the source's first line on; its end when it is long."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))[-MAX_DETAILS:]
    except MemoryError:
        raise
    except BaseException:  # an exception of the user's may resist being shown
        return f"{type(error).__name__}, which cannot be shown"
