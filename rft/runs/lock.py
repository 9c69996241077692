"""The lock of a run: one writer at a time, freed by the kernel when the writer ends."""

import errno
import fcntl
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from rft.errors import MachineError, RunError
from rft.runs.documents import json_bytes, read_document

PATIENCE_SECONDS = 0.5
"""How long a writer tries: a reader that looks whether the lock is held takes it for an instant."""


class RunLock:
    """A file held with flock from construction until `close`.

    Raises RunError, naming the holder, when another process holds it.
    """

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(path)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "created_at": time.time()}
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json_bytes(holder), 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Free the lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, path: Path) -> None:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise _in_use(path) from None
                time.sleep(0.02)
            except OSError as error:
                raise MachineError(
                    f"the file system cannot lock files: {error.strerror}",
                    where=str(path),
                    remedy="put the run on a local disk with --run-dir",
                ) from error


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of a run."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def refuse_held(path: Path) -> None:
    """Raise RunError, naming the holder, when a live process holds the lock of a run."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while is_held(path):
        if time.monotonic() >= give_up_at:
            raise _in_use(path)
        time.sleep(0.02)


def _in_use(path: Path) -> RunError:
    holder = read_document(path)
    since = holder.get("created_at")
    started = (
        datetime.fromtimestamp(since).strftime(" since %Y-%m-%d %H:%M:%S")
        if isinstance(since, int | float)
        else ""
    )
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{started}"
    return RunError(
        f"the run is in use by {who}",
        where=str(path.parent),
        remedy=f"pause it first: rft runs pause {path.parent}",
    )
