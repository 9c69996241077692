"""What an evaluation says: means, standard error, pass@k, and whether it may rank."""

import math
from itertools import combinations

import pytest
from made import make_evaluation, make_grade, make_group

from rft.training.evaluation import mean, standard_error, sub_reward_means


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


def test_an_ungraded_sample_passes_only_a_threshold_at_the_minimum() -> None:
    assert make_evaluation([None]).pass_at(0.1) == {1: 0.0}
    assert make_evaluation([None]).pass_at(0.0) == {1: 1.0}


def test_sub_rewards_are_means_over_the_rollouts_that_have_them() -> None:
    group = make_group(
        make_grade(0.5, a=make_grade(1.0), b=make_grade(None)),
        make_grade(None, a=make_grade(0.5), b=make_grade(0.25)),
        make_grade(0.0),
    )
    assert sub_reward_means([group]) == {"a": 0.75, "b": 0.25}
