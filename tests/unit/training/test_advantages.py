"""Exact advantages of small groups."""

from typing import Literal

import pytest
from made import make_group

from rft.training.advantages import advantages

ROOT_HALF = 0.7071067811865476
"""Standard deviation (ddof 1) of the rewards 1 and 0: √(2 · 0.25 / 1)."""


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        # group 0: rewards 1 0 → ±0.5, deviation √½; group 1: rewards 4 1 1 → 2 −1 −1, deviation √3
        ("none", [(0.5, -0.5), (2.0, -1.0, -1.0)]),
        (
            "group",
            [
                (0.5 / (ROOT_HALF + 1e-4), -0.5 / (ROOT_HALF + 1e-4)),
                (2 / (3**0.5 + 1e-4), -1 / (3**0.5 + 1e-4), -1 / (3**0.5 + 1e-4)),
            ],
        ),
        # batch: 1 0 4 1 1, mean 1.4, Σ(x−1.4)² = 0.16+1.96+6.76+0.16+0.16 = 9.2, deviation √2.3
        (
            "batch",
            [
                (0.5 / (2.3**0.5 + 1e-4), -0.5 / (2.3**0.5 + 1e-4)),
                (2 / (2.3**0.5 + 1e-4), -1 / (2.3**0.5 + 1e-4), -1 / (2.3**0.5 + 1e-4)),
            ],
        ),
    ],
)
def test_scalings(
    scaling: Literal["group", "batch", "none"], expected: list[tuple[float, ...]]
) -> None:
    values = advantages([make_group(1.0, 0.0), make_group(4.0, 1.0, 1.0)], scaling)
    for found, wanted in zip(values, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)


def test_group_scaling_in_literal_numbers() -> None:
    # 0.5 / (0.70710678 + 0.0001)
    ((first, second),) = advantages([make_group(1.0, 0.0)], "group")
    assert (first, second) == pytest.approx((0.7070067953185, -0.7070067953185), rel=1e-10)


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
@pytest.mark.parametrize("rewards", [(0.1, 0.1, 0.1), (0.7,) * 7, (0.0, 0.0), (-2.5, -2.5)])
def test_equal_rewards_give_exactly_zero(
    scaling: Literal["group", "batch", "none"], rewards: tuple[float, ...]
) -> None:
    dull, other = make_group(*rewards), make_group(0.0, 1.0)
    values = advantages([dull, other], scaling)
    assert values[0] == (0.0,) * len(rewards)
    assert values[1][0] != 0


def test_the_float_mean_of_equal_rewards_is_not_always_the_reward() -> None:
    assert sum([0.1] * 3) / 3 != 0.1  # why equality is tested, not the difference from the mean


def test_rewards_that_differ_by_one_rounding_have_a_signal() -> None:
    ((low, high),) = advantages([make_group(0.1 + 0.2, 0.3)], "none")
    assert low != 0 or high != 0


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_an_ungraded_rollout_leaves_its_group(scaling: Literal["group", "batch", "none"]) -> None:
    (values,) = advantages([make_group(1.0, None, 0.0)], scaling)
    (without,) = advantages([make_group(1.0, 0.0)], scaling)
    assert values == (without[0], None, without[1])


def test_an_ungraded_rollout_of_a_dull_group_stays_none() -> None:
    assert advantages([make_group(0.1, None, 0.1, 0.1)], "group") == [(0.0, None, 0.0, 0.0)]


@pytest.mark.parametrize("rewards", [(None, None), (1.0, None), (None, 0.0, None), (1.0,)])
def test_fewer_than_two_graded_rollouts_are_skipped(rewards: tuple[float | None, ...]) -> None:
    assert advantages([make_group(*rewards)], "group") == [(None,) * len(rewards)]


def test_a_skipped_group_does_not_move_the_batch_deviation() -> None:
    usable = make_group(1.0, 0.0)
    with_skipped = advantages([usable, make_group(100.0, None)], "batch")
    assert with_skipped == [advantages([usable], "batch")[0], (None, None)]


def test_a_dull_group_counts_in_the_batch_deviation() -> None:
    # rewards 1 0 1 1: mean 0.75, Σ(x−0.75)² = 3·0.0625 + 0.5625 = 0.75, deviation 0.5
    values = advantages([make_group(1.0, 0.0), make_group(1.0, 1.0)], "batch")
    assert values[0] == pytest.approx((0.5 / 0.5001, -0.5 / 0.5001), rel=1e-12)


def test_no_groups() -> None:
    assert advantages([], "batch") == []
