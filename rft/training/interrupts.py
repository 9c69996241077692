"""Signals that ask a running job to pause."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NOTICE = b"\npausing after this step; Ctrl-C again stops at once and loses the step\n"


@contextmanager
def stop_requests(is_told: bool) -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for a pause after the step; a second SIGINT interrupts at once.

    `is_told`: whether the request is acknowledged on stderr.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def request(number: int, frame: object) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)
        if is_told:
            os.write(2, NOTICE)

    previous = {
        number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
