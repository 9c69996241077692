"""A job that stands still says where, once, and that it goes on."""

import itertools
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from made import make_completion, make_grade, make_job, make_training_group

from rft.graders import Grader
from rft.graders.cache import GradeCache
from rft.graders.http import Pace
from rft.rollout.collect import Collector
from rft.training.hang import HangWatch
from rft.training.ranks import Ranks
from rft.training.update import Updater
from rft.types import Grade, Item, Sample
from tests.launch import ROOT
from tests.tiny import tiny_policy


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
    """Every second look finds nothing new, and all together take longer than the patience."""
    looks, told = itertools.count(), list[str]()
    with HangWatch(lambda: next(looks) // 2, told.append, patience_seconds=0.3, poll_seconds=0.01):
        time.sleep(0.7)
    assert next(looks) > 4
    assert told == []


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


def told_while(stand: Callable[[threading.Event], object], folder: Path | None = None) -> str:
    """What is told while this thread stands in a call that ends when its event is set."""
    told: list[str] = []
    gate = threading.Event()

    def report(message: str) -> None:
        told.append(message)
        gate.set()

    with HangWatch(lambda: 0, report, folder, 0, patience_seconds=0.1, poll_seconds=0.02):
        stand(gate)
    (message,) = told
    return message


def test_a_pass_of_the_model_is_told_by_what_it_is_for() -> None:
    """The innermost frame of the engine lies in the policy, below both sampler and trainer."""
    policy = tiny_policy()
    updater = Updater(make_job(), policy, Ranks(use_cpu=True), 10, sampler_is_exact=True)
    group = make_training_group([make_completion((5,)), make_completion((6,))], (1.0, -1.0))
    decoder, _ = (
        policy.merged.model.get_decoder(),
        policy.head,
    )  # made before, not while it is watched

    def train(gate: threading.Event) -> None:
        decoder.register_forward_pre_hook(lambda *_: (gate.wait(10), None)[1])
        updater.accumulate_gradients(1, [group], None)

    assert re.search(r": training, in rft/policy\.py:\d+ packed_pass$", told_while(train))


def test_a_grade_that_several_rollouts_share_is_awaited_too() -> None:
    """The frame that waits is a lambda of the cache, inside a comprehension of the collector."""

    class Late(Grader):
        name, type = "late", "string_check"

        def __init__(self, gate: threading.Event):
            self._gate = gate

        def grade(self, sample: Sample, item: Item) -> Grade:
            self._gate.wait(10)
            return make_grade(1.0)

    def collect(gate: threading.Event) -> None:
        cache = GradeCache(Late(gate))
        collector = Collector.__new__(Collector)  # neither sampler nor grader are asked
        collector.num_collected, collector.seconds_waited = 0, 0.0
        with ThreadPoolExecutor(2, thread_name_prefix="grade") as pool:
            first, again = (cache.submit({"output_text": "a"}, {}, pool) for _ in range(2))
            collector._await({(0, 1): again, (0, 0): first})

    assert re.search(
        r": waiting for grades, in rft/rollout/collect\.py:\d+ _await; "
        r"grading 1 in rft/graders/cache\.py:\d+ _grade$",
        told_while(collect),
    )


def test_calls_of_a_grader_are_counted_by_where_they_are() -> None:
    def call_twice(gate: threading.Event) -> None:
        pace = Pace(1 / 3600)
        pace.wait(gate, until=math.inf)  # the first may go at once, the next in an hour
        with ThreadPoolExecutor(3, thread_name_prefix="grade") as pool:
            for _ in range(2):
                pool.submit(pace.wait, gate, until=math.inf)
            gate.wait(10)

    message = told_while(call_twice)
    assert re.search(r"; grading 2 in rft/graders/http\.py:\d+ wait$", message)


def test_only_the_package_is_the_engine_whatever_its_folder_is_called(tmp_path: Path) -> None:
    """A checkout named rft may hold its whole environment."""
    foreign = tmp_path / "rft" / "waiting.py"
    code = compile("def stand(gate): gate.wait(10)", str(foreign), "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    assert told_while(names["stand"]).endswith(": outside rft")


def test_stacks_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    message = told_while(lambda gate: gate.wait(10), tmp_path / "missing")
    assert "; the stacks could not be written: [Errno 2] No such file" in message


def test_a_report_that_never_returns_does_not_hold_the_job() -> None:
    gate, called = threading.Event(), threading.Event()

    def stuck(message: str) -> None:
        called.set()
        gate.wait(10)

    with HangWatch(lambda: 0, stuck, patience_seconds=0.05, poll_seconds=0.01) as watch:
        assert called.wait(10)
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 5
    gate.set()
    watch._thread.join()


def test_a_watch_that_nobody_ends_does_not_keep_the_process() -> None:
    begin = "HangWatch(lambda: 0, print, patience_seconds=1000).__enter__()"
    code = f"from rft.training.hang import HangWatch; {begin}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=True)
