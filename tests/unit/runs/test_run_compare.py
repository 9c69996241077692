"""Two evaluations side by side, against numbers worked out by hand."""

import math

import pytest

from rft.runs.compare import compare_evaluations


def row(
    number: int, sample: int, reward: float | None, content: str = "q", **sub_rewards: float | None
) -> dict[str, object]:
    messages = [{"role": "user", "content": f"{content}{number}"}]
    return {"row": number, "sample": sample, "reward": reward, "messages": messages} | {
        "sub_rewards": sub_rewards,
        "output_text": "",
    }


def test_the_mean_difference_and_its_error_are_over_rows() -> None:
    before = [row(0, 0, 0.0), row(0, 1, 0.5), row(1, 0, 1.0), row(2, 0, 0.5)]
    after = [row(0, 0, 1.0), row(0, 1, 0.5), row(1, 0, 0.75), row(2, 0, 0.5)]
    result = compare_evaluations(before, after)
    assert [change.difference for change in result.rows] == [0.5, -0.25, 0.0]
    assert result.mean_before == pytest.approx((0.25 + 1.0 + 0.5) / 3)
    assert result.mean_difference == pytest.approx(0.25 / 3)
    variance = ((0.5 - 1 / 12) ** 2 + (-0.25 - 1 / 12) ** 2 + (1 / 12) ** 2) / 2
    assert result.standard_error == pytest.approx(math.sqrt(variance / 3))
    assert (result.num_better, result.num_worse, result.num_same) == (1, 1, 1)
    assert [change.row for change in result.most_changed(5)] == [0, 1]


def test_what_cannot_be_compared_is_counted_and_left_out() -> None:
    before = [row(0, 0, 0.0), row(1, 0, None), row(2, 0, 0.5), row(3, 0, 0.5), row(4, 0, 1.0)]
    after = [row(0, 0, 1.0), row(1, 0, 1.0), row(2, 0, 1.0, content="other"), row(3, 1, 0.5)]
    result = compare_evaluations(before, after)
    assert [change.row for change in result.rows] == [0]
    assert result.num_ungraded == 1
    assert result.num_different_prompts == 1
    assert result.num_unpaired == 3
    assert result.standard_error is None


def test_sub_rewards_are_means_over_graded_samples() -> None:
    before = [row(0, 0, 0.0, a=0.0, b=None), row(0, 1, 0.0, a=1.0, b=None)]
    (change,) = compare_evaluations(before, [row(0, 0, 1.0, a=1.0), row(0, 1, 1.0, a=1.0)]).rows
    assert change.sub_rewards_before == {"a": 0.5}
    assert change.sub_rewards_after == {"a": 1.0}


def test_nothing_in_common() -> None:
    result = compare_evaluations([row(0, 0, 1.0)], [])
    assert (result.rows, result.mean_difference, result.num_unpaired) == ((), None, 1)
