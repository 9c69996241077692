"""A job that stands still says where, once, and that it goes on."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rft.rollout.collect import Collector
from rft.training.hang import HangWatch
from rft.types import Grade


class Standing:
    """A job whose progress is a number."""

    def __init__(self) -> None:
        self.number = 0
        self.told: list[str] = []

    def watch(self, folder: Path | None = None) -> HangWatch:
        return HangWatch(
            lambda: self.number,
            self.told.append,
            folder,
            3,
            patience_seconds=0.15,
            poll_seconds=0.02,
        )


def await_told(job: Standing, count: int) -> None:
    give_up_at = time.monotonic() + 10
    while len(job.told) < count:
        assert time.monotonic() < give_up_at, job.told
        time.sleep(0.01)


def test_a_hang_is_told_once_and_so_is_its_end(tmp_path: Path) -> None:
    job = Standing()
    with job.watch(tmp_path):
        await_told(job, 1)
        time.sleep(0.3)
        assert len(job.told) == 1
        job.number += 1
        await_told(job, 2)
    assert job.told[0].startswith("no progress for 0 seconds: outside rft; all stacks are in ")
    assert job.told[1].startswith("going on after ")
    stacks = (tmp_path / "hang-rank-3.txt").read_text()
    assert "test_a_hang_is_told_once" in stacks
    assert not any(thread.name == "hang watch" for thread in threading.enumerate())


def test_progress_is_no_hang() -> None:
    job = Standing()
    with job.watch():
        for _ in range(25):
            time.sleep(0.02)
            job.number += 1
    assert job.told == []


def test_it_says_that_grades_are_awaited(tmp_path: Path) -> None:
    """The main thread stands in the collector of the engine itself, over a grade that never comes."""
    job, gate = Standing(), threading.Event()
    collector = Collector.__new__(Collector)  # neither sampler nor grader are asked
    collector.num_collected, collector.seconds_waited = 0, 0.0
    with job.watch(), ThreadPoolExecutor(1, thread_name_prefix="grade") as pool:
        stuck = pool.submit(lambda: gate.wait(10) and Grade("g", "python", 1.0))
        opener = threading.Thread(target=lambda: (await_told(job, 1), gate.set()))
        opener.start()
        collector._await({(0, 0): stuck.result})  # type: ignore[dict-item]
        opener.join()
    assert "waiting for grades, in rft/rollout/collect.py:" in job.told[0]
    assert "_await" in job.told[0]


def test_neither_a_report_that_fails_nor_progress_that_cannot_be_read_matters() -> None:
    def told() -> Iterator[Any]:
        raise RuntimeError("dictionary changed size during iteration")

    def fail(message: str) -> None:
        raise ValueError(message)

    with HangWatch(told, fail, patience_seconds=0.05, poll_seconds=0.01) as watch:
        time.sleep(0.1)
    with HangWatch(lambda: 0, fail, patience_seconds=0.05, poll_seconds=0.01) as watch:
        time.sleep(0.15)
        assert watch._thread.is_alive()
