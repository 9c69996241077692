"""Uniforms are a function of what they are for, frozen for good."""

from typing import Any

import numpy as np
import pytest

from rft.rollout.randomness import Purpose, uniforms

BASE: dict[str, Any] = {"seed": 3, "purpose": Purpose.TRAIN, "step": 5, "prompt": 7, "sample": 2}


# a change here changes every completion that anyone has ever sampled with a seed
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            (0, Purpose.TRAIN, 1, 0, 0),
            ["0x1.1f96a907ae305p-1", "0x1.8882f9fb3edbcp-3", "0x1.93e8b1cd9af41p-1"],
        ),
        ((42, Purpose.EVALUATE, 0, 7, 2), [0.16883202098157835, 0.6203605404278402]),
        (
            (2**40 + 1, Purpose.GENERATE, 9, 123456, 31),
            [0.05581429794891468, 0.5815340526694268, 0.6465180565174952],
        ),
    ],
)
def test_frozen_values(
    arguments: tuple[int, Purpose, int, int, int], expected: list[str | float]
) -> None:
    values = [float.fromhex(x) if isinstance(x, str) else x for x in expected]
    assert uniforms(*arguments, len(values)).tolist() == values


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 63])
def test_a_longer_row_begins_with_the_same_numbers(count: int) -> None:
    longer = uniforms(**BASE, count=64)
    assert uniforms(**BASE, count=count).tolist() == longer[:count].tolist()


def test_the_same_arguments_give_the_same_numbers() -> None:
    assert uniforms(**BASE, count=9).tolist() == uniforms(**BASE, count=9).tolist()


@pytest.mark.parametrize("name", BASE)
def test_every_argument_matters(name: str) -> None:
    """Not one number in common, and no correlation of more than four standard errors."""
    first = uniforms(**BASE, count=1000)
    other = BASE | {name: Purpose.EVALUATE if name == "purpose" else BASE[name] + 1}
    second = uniforms(**other, count=1000)
    assert not set(first.tolist()) & set(second.tolist())
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 1000**0.5


def test_arguments_do_not_run_into_one_another() -> None:
    firsts = {
        float(uniforms(seed, purpose, step, prompt, sample, 1)[0])
        for seed in (0, 1, 2**31)
        for purpose in Purpose
        for step in (0, 1, 2)
        for prompt in (0, 1, 2, 1000)
        for sample in (0, 1, 2, 3)
    }
    assert len(firsts) == 3 * len(Purpose) * 3 * 4 * 4


def test_they_fill_the_unit_interval_evenly() -> None:
    values = np.concatenate([uniforms(1, Purpose.TRAIN, 1, n, 0, 100) for n in range(100)])
    assert values.dtype == np.float64
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    # 9 degrees of freedom, 99.9 % point 27.88
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.88


def test_no_uniforms() -> None:
    assert uniforms(**BASE, count=0).tolist() == []
