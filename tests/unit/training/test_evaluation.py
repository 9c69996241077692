"""What an evaluation says: means, standard error, pass@k, and whether it may rank."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from threading import Barrier, Event
from typing import Any

import pytest
from made import make_completion, make_evaluation, make_grade, make_group, make_job, make_prompt

from rft.graders import Grader
from rft.rollout.collect import Collector
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.training.evaluation import (
    NUM_CANARY_ROWS,
    CanaryGrade,
    Evaluation,
    evaluate,
    evenly_spread,
    mean,
    standard_error,
    sub_reward_means,
)
from rft.training.ranks import Ranks
from rft.types import Grade, Item, Prompt, Sample


def test_an_ungraded_sample_counts_as_the_minimum() -> None:
    evaluation = make_evaluation([1.0, None], [0.5, 0.5])
    assert evaluation.reward_mean == 0.5
    assert evaluation.graded_reward_mean == pytest.approx(2 / 3, rel=1e-15)
    assert evaluation.ungraded_fraction == 0.25


def test_the_standard_error_is_over_row_means() -> None:
    # row means 1, 0.5, 0: mean 0.5, variance (0.25 + 0 + 0.25) / 2 = 0.25, error √(0.25 / 3)
    evaluation = make_evaluation([1.0, 1.0], [1.0, 0.0], [0.0, None])
    assert evaluation.standard_error == pytest.approx(math.sqrt(0.25 / 3), rel=1e-15)


def test_equal_row_means_have_no_error_however_the_samples_differ() -> None:
    assert make_evaluation([1.0, 0.0], [0.0, 1.0]).standard_error == 0


def test_too_little_to_say() -> None:
    assert math.isnan(make_evaluation([1.0]).standard_error)
    assert math.isnan(make_evaluation([None], [None]).graded_reward_mean)
    assert make_evaluation([None], [None]).reward_mean == 0
    assert math.isnan(mean([]))
    assert math.isnan(standard_error([]))


@pytest.mark.parametrize(
    ("num_ungraded", "num_samples", "can_rank"),
    [
        (0, 20, True),
        (1, 20, True),
        (2, 20, False),
        (1, 19, False),
        (7, 140, True),
        (8, 140, False),
        (29, 580, True),
        (30, 580, False),
    ],
)
def test_an_evaluation_ranks_with_at_most_five_percent_ungraded(
    num_ungraded: int, num_samples: int, can_rank: bool
) -> None:
    row = [None] * num_ungraded + [1.0] * (num_samples - num_ungraded)
    assert make_evaluation(row).can_rank is can_rank


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_an_evaluation_without_a_finite_mean_never_ranks(reward: float) -> None:
    assert make_evaluation([reward], [1.0]).can_rank is False


def brute_force(passing: list[bool], k: int) -> float:
    """The share of the k-subsets of a row's samples that hold a passing one."""
    subsets = list(combinations(passing, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_that_pass(num_samples: int) -> None:
    rows = [
        [1.0] * num_passing + [0.9] * (num_samples - num_passing)
        for num_passing in range(num_samples + 1)
    ]
    found = make_evaluation(*rows).pass_at(1.0)
    assert list(found) == [k for k in (1, 2, 4, 8) if k <= num_samples]
    for k, value in found.items():
        expected = [brute_force([reward >= 1.0 for reward in row], k) for row in rows]
        assert value == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_pass_at_k_in_literal_numbers() -> None:
    # 4 samples, 1 passing: k=1: 1/4; k=2: 1 − C(3,2)/C(4,2) = 1/2; k=4: 1
    assert make_evaluation([1.0, 0.0, 0.0, 0.0]).pass_at(1.0) == {1: 0.25, 2: 0.5, 4: 1.0}


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.5, 1.0), (0.5000001, 0.5), (0.0, 1.0), (1.1, 0.0)]
)
def test_a_sample_passes_at_the_threshold(threshold: float, expected: float) -> None:
    assert make_evaluation([0.5], [1.0]).pass_at(threshold) == {1: expected}


def test_an_ungraded_sample_passes_no_threshold() -> None:
    assert make_evaluation([None]).pass_at(0.1) == {1: 0.0}
    assert make_evaluation([None]).pass_at(-1.0) == {1: 0.0}


def test_sub_rewards_are_means_over_the_rollouts_that_have_them() -> None:
    group = make_group(
        make_grade(0.5, a=make_grade(1.0), b=make_grade(None)),
        make_grade(None, a=make_grade(0.5), b=make_grade(0.25)),
        make_grade(0.0),
    )
    assert sub_reward_means([group]) == {"a": 0.75, "b": 0.25}


class RightAnswers(Sampler):
    """Answers every prompt with the number of its row."""

    is_exact, facts = True, {}

    def refresh(self) -> None:
        """Nothing to take over."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        for index, request in enumerate(requests):
            for sample in range(request.num_samples):
                yield Sampled(index, sample, make_completion(text=str(request.ordinal)))


class Drifting(Grader):
    """Pays a tenth more for an empty answer at each call for one; cannot grade a colon."""

    name, type = "drift", "endpoint"

    def __init__(self) -> None:
        self.num_calls: dict[str, int] = {}

    def grade(self, sample: Sample, item: Item) -> Grade:
        text = sample["output_text"]
        self.num_calls[text] = self.num_calls.get(text, 0) + 1
        if text == ":":
            return make_grade(None, {"other_error": "judge"})
        if text == "":
            return make_grade(0.1 * self.num_calls[text])
        return make_grade(float(text == item["answer"]))


class Rank(Ranks):
    """One of several ranks that are threads."""

    def __init__(self, rank: int, size: int, board: dict[int, Any], barrier: Barrier):
        self.rank, self.size = rank, size
        self._board, self._barrier = board, barrier

    def gather(self, items: Sequence[Any]) -> list[Any]:
        self._barrier.wait(10)
        self._board[self.rank] = list(items)
        self._barrier.wait(10)
        return [item for rank in range(self.size) for item in self._board[rank]]


def rows(count: int) -> list[Prompt]:
    return [make_prompt(row, answer=str(row)) for row in range(count)]


def evaluated(num_rows: int, size: int = 1) -> list[Evaluation]:
    """The evaluation as each of `size` ranks has it."""
    board: dict[int, Any] = {}
    barrier = Barrier(size)

    def on_rank(rank: int) -> Evaluation:
        collector = Collector(RightAnswers(), Drifting(), concurrency=1)
        ranks = Rank(rank, size, board, barrier)
        return evaluate(3, make_job(), rows(num_rows), collector, ranks)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(on_rank, range(size)))


def told(canaries: Sequence[CanaryGrade]) -> list[tuple[int, str, float | None]]:
    return [(canary.row, canary.kind, canary.grade.reward) for canary in canaries]


def test_an_evaluation_grades_the_canaries_of_a_few_rows() -> None:
    (evaluation,) = evaluated(3)
    assert evaluation.reward_mean == 1.0
    assert told(evaluation.canaries) == [
        (row, kind, reward)
        for row, empty in enumerate([0.1, 0.2, pytest.approx(0.3)])
        for kind, reward in (
            ("empty", empty),
            ("punctuation", None),
            ("echo", 0.0),
            ("reference", 1.0),
        )
    ]


def test_canaries_are_the_same_on_any_number_of_ranks() -> None:
    (alone,) = evaluated(20)
    together = evaluated(20, size=3)
    for evaluation in together:
        assert [(c.row, c.kind) for c in evaluation.canaries] == [
            (c.row, c.kind) for c in alone.canaries
        ]
        assert len(evaluation.canaries) == 4 * NUM_CANARY_ROWS == 32
        assert evaluation.canaries == together[0].canaries
        assert evaluation.groups == alone.groups


def test_canaries_are_graded_anew_each_time_and_completions_once() -> None:
    grader = Drifting()
    collector = Collector(RightAnswers(), grader, concurrency=1)
    rewards = []
    for step in (0, 1):
        evaluation = evaluate(step, make_job(), rows(2), collector, Ranks(use_cpu=True))
        rewards += [c.grade.reward for c in evaluation.canaries if c.kind == "empty"]
    assert rewards == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # each right answer is a canary in both evaluations, and a completion that is graded in the first
    assert {text: n for text, n in grader.num_calls.items() if text.isdigit()} == {"0": 3, "1": 3}


def test_canaries_are_graded_while_completions_are_sampled() -> None:
    graded = Event()

    class Waiting(RightAnswers):
        def sample(
            self, requests: Sequence[SampleRequest], settings: SamplingSettings
        ) -> Iterator[Sampled]:
            assert graded.wait(10), "no canary was graded while sampling"
            yield from super().sample(requests, settings)

    class Telling(Drifting):
        def grade(self, sample: Sample, item: Item) -> Grade:
            graded.set()
            return super().grade(sample, item)

    collector = Collector(Waiting(), Telling(), concurrency=1)
    evaluate(0, make_job(), rows(1), collector, Ranks(use_cpu=True))


@pytest.mark.parametrize(
    ("num_items", "count", "expected"),
    [
        (3, 8, [0, 1, 2]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (10, 4, [0, 2, 5, 7]),
        (41, 8, [0, 5, 10, 15, 20, 25, 30, 35]),
        (0, 8, []),
    ],
)
def test_rows_are_evenly_spread(num_items: int, count: int, expected: list[int]) -> None:
    assert evenly_spread(num_items, count) == expected
