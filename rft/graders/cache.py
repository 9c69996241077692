"""The same sample of the same item is graded once: later grades of it are the first one again."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

from rft.graders.grader import Grader
from rft.types import Grade, Item, Sample

MAX_GRADES = 10_000
"""Grades that are kept, the least recently used going first: those of many steps, and of the evaluations between
them. One takes 0.3 kB, and 0.3 kB more for each part of a multi: 3 to 12 MB in all. A failed one takes its traceback
too, 4 kB at most, twice in a multi. What judges said is kept by them."""

NOTHING: dict[str, Any] = {}
"""In place of every empty mapping of a kept grade; nobody writes to it."""

PendingGrade = Callable[[], Grade]
"""A call waits for the grade and gives it."""


class GradeCache:
    """Has a grader grade what it has not graded yet; safe to call from several threads.

    Kept are grades that will not change: one that is missing through no fault of the sample, such as
    after a timeout, is tried again when it is asked for again.
    """

    def __init__(self, grader: Grader, max_grades: int = MAX_GRADES):
        self._grader = grader
        self._max_grades = max_grades
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Grade] = OrderedDict()
        self._in_flight: dict[bytes, Future[Grade]] = {}

    def submit(self, sample: Sample, item: Item, pool: Executor) -> PendingGrade:
        """Starts a grade in the pool, unless it is kept or under way: no thread waits for another's.

        A grade that another call paid for has latency 0 and no usage.
        """
        key = key_of(sample, item)
        if key is None:
            return pool.submit(self._grader.grade, sample, item).result
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                kept = self._kept[key]
                return lambda: kept
            flight = self._in_flight.get(key)
            if flight is not None and not flight.cancelled():
                return lambda: reused(flight.result())
            started = pool.submit(self._grade, key, sample, item)
            self._in_flight[key] = started
            return started.result

    def _grade(self, key: bytes, sample: Sample, item: Item) -> Grade:
        try:
            grade = self._grader.grade(sample, item)
        except BaseException:
            with self._lock:
                del self._in_flight[key]
            raise
        with self._lock:
            del self._in_flight[key]
            if is_final(grade):
                self._kept[key] = reused(grade)
            if len(self._kept) > self._max_grades:
                self._kept.popitem(last=False)
        return grade


def key_of(sample: Sample, item: Item) -> bytes | None:
    """A digest of all that a grader sees; None for what JSON cannot hold, which is never kept.

    The order of keys counts, for a template writes it out.
    """
    try:
        text = json.dumps([sample, item], separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()
    except (TypeError, ValueError, RecursionError):
        return None


def is_final(grade: Grade) -> bool:
    """Whether the grade and all its parts have a reward."""
    return grade.reward is not None and all(map(is_final, grade.sub_grades.values()))


def reused(grade: Grade) -> Grade:
    """The same grade, at no cost."""
    parts = {key: reused(part) for key, part in grade.sub_grades.items()}
    errors = grade.errors or NOTHING
    return replace(grade, sub_grades=parts or NOTHING, errors=errors, latency=0.0, usage=NOTHING)
