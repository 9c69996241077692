"""Requests to stop, from signals and from other terminals, brought to a running job.

A request lets the step in progress end, for GRACE_SECONDS at most; then the step is abandoned. A second
Ctrl-C leaves at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rft.errors import DiskError
from rft.runs.layout import RunFolder
from rft.runs.requests import Request, ask, asked

GRACE_SECONDS = 10.0
"""How long a step that is asked to stop may still take. What is left of 30 seconds, the usual patience of
those who send SIGTERM, is for a pass of the model that cannot be interrupted, and for saving."""

POLL_SECONDS = 0.2
"""How often a request of another terminal is looked for."""

LEAVE_SECONDS = 6.0
"""How long after GRACE_SECONDS the main thread may stay in one call, such as a collective that nobody else
joins, before the listener leaves in its place."""

AGAIN_SECONDS = 1.0
"""After so long a step that is still there is given up again: Python drops what is raised in a callback."""

NOTICE = b"\npausing; Ctrl-C again stops at once and loses the step in progress\n"

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the end of a machine or a container; what Slurm sends before the end of an allocation."""


class StepAbandoned(BaseException):
    """The step in progress is given up: it took too long after a request. Not an Exception, so that nobody
    on the way takes it for a failure."""


class StopRequests:
    """Listens from `__enter__` to `__exit__`. Outside the main thread signals go past it, and a step always
    ends."""

    def __init__(self, rank: int = 0, num_ranks: int = 1, grace_seconds: float = GRACE_SECONDS):
        self._rank = rank
        self._is_told_on = num_ranks == 1
        self._grace_seconds = grace_seconds
        self._folder: RunFolder | None = None
        self._request: Request | None = None
        self._requested_at = 0.0
        self._patience: float | None = None
        """Seconds for which what is being done may go on after a request; None: to its end."""
        self.has_abandoned: bool = False
        """Whether a step was told to be given up, whatever came of it."""
        self._leave: Callable[[], None] | None = None
        self._is_leaving = False
        self._leaving = threading.Lock()
        self._is_closed = threading.Event()
        self._is_main_thread = threading.current_thread() is threading.main_thread()
        self._previous: dict[signal.Signals, Any] = {}
        self._listener = threading.Thread(target=self._listen, name="stop requests", daemon=True)

    @property
    def request(self) -> Request | None:
        """The first request that came, if any."""
        return self._request

    def listen_in(self, folder: RunFolder) -> None:
        """Look for requests in the folder of the run from now on."""
        self._folder = folder

    def on_stuck(self, leave: Callable[[], None]) -> None:
        """What the listener does before it ends the process whose main thread does not come back from a
        call; nothing else writes then."""
        self._leave = leave

    @contextmanager
    def abandonable(self, patience: float | None = None) -> Iterator[None]:
        """What stands in here is left by StepAbandoned when a request is older than `patience` seconds, by
        default the grace of a step. Nothing in here may write what must be whole."""
        outer = self._patience
        self._patience = self._grace_seconds if patience is None else patience
        try:
            self._abandon_if_due()
            yield
        finally:
            with self._leaving:
                self._patience = outer
                is_late = self._is_leaving
            if is_late:  # the listener is saving, and ends the process
                threading.Event().wait()

    def __enter__(self) -> "StopRequests":
        if self._is_main_thread:
            self._previous = {number: signal.signal(number, self._hear) for number in SIGNALS}
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        self._listener.join()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """The handler of all signals; the listener's knocks come as SIGUSR1 too."""
        if number == signal.SIGINT and self._request is not None:
            raise KeyboardInterrupt
        if self._request is None:
            self._take(Request("pause", f"stopped by {signal.Signals(number).name}"))
            if self._rank == 0:
                os.write(2, NOTICE)
        self._abandon_if_due()

    def _take(self, request: Request) -> None:
        self._requested_at = time.monotonic()
        self._request = request

    @property
    def _is_overdue(self) -> bool:
        if self._request is None or self._patience is None:
            return False
        return time.monotonic() - self._requested_at >= self._patience

    def _abandon_if_due(self) -> None:
        if self._is_overdue and self._is_main_thread:
            self._patience = time.monotonic() - self._requested_at + AGAIN_SECONDS
            self.has_abandoned = True
            raise StepAbandoned

    def _listen(self) -> None:
        """Looks for requests in the folder, passes on those of signals, and knocks when the grace is over."""
        while not self._is_closed.wait(POLL_SECONDS):
            if self._folder is not None:
                self._exchange(self._folder)
            if self._is_overdue and self._is_main_thread:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            self._leave_if_stuck()

    def _exchange(self, folder: RunFolder) -> None:
        """Ranks tell each other by the file, too."""
        if self._request is None:
            found = asked(folder)
            self._is_told_on = self._is_told_on or found is not None
            if found is not None:
                self._take(found)
        elif not self._is_told_on:
            self._is_told_on = True
            try:
                ask(folder, self._request.action, self._request.reason)
            except DiskError:
                return  # the others hear of it when this rank has left

    def _leave_if_stuck(self) -> None:
        waited = time.monotonic() - self._requested_at
        if self._request is None or waited < self._grace_seconds + LEAVE_SECONDS:
            return
        with self._leaving:
            if self._patience is None or not self._is_main_thread:
                return
            self._is_leaving = True
        if self._leave:
            self._leave()
        os._exit(0 if self._request.action == "cancel" else 75)
