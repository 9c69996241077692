"""The same sample of the same item is graded once, unless its grade may come out otherwise next time."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from rft.graders.cache import GradeCache
from rft.graders.grader import Grader
from rft.graders.sample import make_sample
from rft.types import Grade, Item, Sample

ITEM = {"answer": 1}
SAMPLE = make_sample("1")


class Scripted(Grader):
    """Gives what a function of the number of the call gives, and notes the calls."""

    name, type = "scripted", "python"

    def __init__(self, grade: Callable[[int], Grade]):
        self.calls: list[tuple[Sample, Item]] = []
        self._grade = grade

    def grade(self, sample: Sample, item: Item) -> Grade:
        self.calls.append((sample, item))
        return self._grade(len(self.calls))


class Held(Grader):
    """Grades a sample only once it is let go."""

    name, type = "held", "python"

    def __init__(self, reward: float | None = 1.0) -> None:
        self.calls: list[str] = []
        self.let_go = {"slow": threading.Event(), "quick": threading.Event()}
        self.let_go["quick"].set()
        self._reward = reward

    def grade(self, sample: Sample, item: Item) -> Grade:
        self.calls.append(sample["output_text"])
        assert self.let_go[sample["output_text"]].wait(10)
        return Grade("held", "python", self._reward, latency=1.0)


def graded(number: int) -> Grade:
    """A grade that tells the calls apart."""
    part = Grade("part", "python", 0.5, latency=0.125, usage={"prompt_tokens": 3})
    return Grade(
        "scripted",
        "python",
        float(number),
        {"part": part},
        {"other_error": "why"},
        latency=0.25,
        usage={"prompt_tokens": 3},
    )


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_a_second_grade_is_the_first_at_no_cost(pool: ThreadPoolExecutor) -> None:
    grader = Scripted(graded)
    cache = GradeCache(grader)
    assert cache.submit(SAMPLE, ITEM, pool)() == graded(1)
    again = cache.submit(make_sample("1"), {"answer": 1}, pool)()
    free = Grade("part", "python", 0.5, latency=0.0, usage={})
    assert again == Grade("scripted", "python", 1.0, {"part": free}, {"other_error": "why"}, 0.0)
    assert grader.calls == [(SAMPLE, ITEM)]


@pytest.mark.parametrize(
    ("sample", "item"),
    [
        (make_sample("1 "), ITEM),
        (make_sample("1", "length"), ITEM),
        (SAMPLE, {"answer": 1.0}),
        (SAMPLE, {"answer": True}),
        (SAMPLE, {"answer": "1"}),
        (SAMPLE, {"answer": 1, "more": None}),
        (SAMPLE, {}),
        (make_sample('1"}'), ITEM),
    ],
)
def test_what_differs_is_graded(sample: Sample, item: Item, pool: ThreadPoolExecutor) -> None:
    cache = GradeCache(Scripted(graded))
    rewards = [cache.submit(*pair, pool)().reward for pair in ((SAMPLE, ITEM), (sample, item))]
    assert rewards == [1.0, 2.0]


def test_the_order_of_keys_counts_as_a_template_writes_it_out(pool: ThreadPoolExecutor) -> None:
    cache = GradeCache(Scripted(graded))
    items: list[Item] = [{"row": {"a": 1, "b": 2}}, {"row": {"b": 2, "a": 1}}]
    assert [cache.submit(SAMPLE, item, pool)().reward for item in items] == [1.0, 2.0]


def test_an_ungraded_sample_is_tried_again(pool: ThreadPoolExecutor) -> None:
    grades = [
        Grade("g", "python", None, errors={"python_grader_server_error": "down"}),
        # a part that the formula does not read
        Grade("g", "multi", 1.0, {"judge": Grade("judge", "python", None)}),
        Grade("g", "python", 0.5),
    ]
    cache = GradeCache(Scripted(lambda number: grades[number - 1]))
    found = [cache.submit(SAMPLE, ITEM, pool)() for _ in range(4)]
    assert found == [*grades, grades[2]]


def test_calls_for_the_same_share_one_in_flight_and_hold_no_thread(
    pool: ThreadPoolExecutor,
) -> None:
    grader = Held()
    cache = GradeCache(grader)
    slow = [cache.submit(make_sample("slow"), ITEM, pool) for _ in range(5)]
    # one of the two threads is free, though four calls wait
    assert cache.submit(make_sample("quick"), ITEM, pool)().reward == 1.0
    grader.let_go["slow"].set()
    assert [(grade().reward, grade().latency) for grade in slow] == [(1.0, 1.0)] + 4 * [(1.0, 0.0)]
    assert grader.calls == ["slow", "quick"]


def test_calls_in_flight_share_a_failure_too(pool: ThreadPoolExecutor) -> None:
    grader = Held(reward=None)
    cache = GradeCache(grader)
    shared = [cache.submit(make_sample("slow"), ITEM, pool) for _ in range(2)]
    grader.let_go["slow"].set()
    assert [grade().reward for grade in shared] == [None, None]
    assert cache.submit(make_sample("slow"), ITEM, pool)().latency == 1.0
    assert grader.calls == ["slow", "slow"]


def test_the_least_recently_used_grade_goes_first(pool: ThreadPoolExecutor) -> None:
    grader = Scripted(graded)
    cache = GradeCache(grader, max_grades=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cache.submit(make_sample(text), ITEM, pool)()
    assert [sample["output_text"] for sample, _ in grader.calls] == ["a", "b", "c", "b"]


def test_what_json_cannot_hold_is_graded_each_time(pool: ThreadPoolExecutor) -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for item in ({"answer": {1, 2}}, {"answer": b"1"}, endless, {"deep": deep}):
        grader = Scripted(graded)
        cache = GradeCache(grader)
        assert [cache.submit(SAMPLE, item, pool)().reward for _ in range(2)] == [1.0, 2.0]


def test_odd_texts_are_told_apart(pool: ThreadPoolExecutor) -> None:
    cache = GradeCache(Scripted(graded))
    for number, text in enumerate(("\ud800", "\udfff", "\x00", "é", "e\u0301"), start=1):
        for _ in range(2):
            assert cache.submit(make_sample(text), ITEM, pool)().reward == number


def test_a_call_that_breaks_leaves_no_trace(pool: ThreadPoolExecutor) -> None:
    def broken_at_first(number: int) -> Grade:
        if number == 1:
            raise RuntimeError("no grader does this")
        return graded(number)

    cache = GradeCache(Scripted(broken_at_first))
    with pytest.raises(RuntimeError, match="no grader does this"):
        cache.submit(SAMPLE, ITEM, pool)()
    assert cache.submit(SAMPLE, ITEM, pool)().reward == 2.0


def test_a_call_that_was_cancelled_is_made_by_the_next() -> None:
    grader = Held()
    cache = GradeCache(grader)
    with ThreadPoolExecutor(1) as pool:
        running = cache.submit(make_sample("slow"), ITEM, pool)
        waiting = cache.submit(make_sample("quick"), ITEM, pool)
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(CancelledError):
            waiting()
        grader.let_go["slow"].set()
        assert running().reward == 1.0
    with ThreadPoolExecutor(1) as pool:
        assert cache.submit(make_sample("quick"), ITEM, pool)().latency == 1.0
