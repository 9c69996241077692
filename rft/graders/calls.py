"""Equal calls are made once: who asks while one is under way waits for it, later ones get its result."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")

MAX_RESULTS = 50_000
"""Results that are kept, the least recently used going first."""


class Calls(Generic[Result]):
    """Results by key; safe to use from several threads. A call that fails is not kept."""

    def __init__(self, max_results: int = MAX_RESULTS):
        self._max_results = max_results
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Result] = OrderedDict()
        self._in_flight: dict[bytes, Future[Result]] = {}

    def once(self, key: bytes, call: Callable[[], Result]) -> tuple[Result, bool]:
        """The result, and whether this very call made it; raises what the call raises."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], False
            flight = self._in_flight.get(key)
            if flight is None:
                mine: Future[Result] = Future()
                self._in_flight[key] = mine
        if flight is not None:
            return flight.result(), False
        try:
            result = call()
        except BaseException as error:
            with self._lock:
                del self._in_flight[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._in_flight[key]
            self._kept[key] = result
            if len(self._kept) > self._max_results:
                self._kept.popitem(last=False)
        mine.set_result(result)
        return result, True
