"""Named places where a test ends this process or has the disk refuse, chosen from outside.

RFT_FAILPOINT=NAME[#N]=ACTION: at the Nth time (default 1) that NAME is reached, `kill` ends the process
as `kill -9` does, `term` asks it to pause as SIGTERM does, and the name of an errno, such as ENOSPC,
raises that OSError. Unset, a failpoint does nothing.
"""

import errno
import functools
import itertools
import os
import signal

VARIABLE = "RFT_FAILPOINT"


def reach(point: str) -> None:
    """Do what RFT_FAILPOINT asks for at this point."""
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    place, _, action = asked.partition("=")
    name, _, number = place.partition("#")
    if name == point and next(_visits(point)) == int(number or 1):
        _act(action)


@functools.cache
def _visits(point: str) -> "itertools.count[int]":
    return itertools.count(1)


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        code = getattr(errno, action)
        raise OSError(code, os.strerror(code))
