"""Work dealt out by cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft.training.ranks import Ranks, balanced


@pytest.mark.parametrize(
    ("costs", "num_ranks", "owners"),
    [
        ([], 2, []),
        ([5, 5, 5], 1, [0, 0, 0]),
        ([1, 1, 1, 1], 2, [0, 1, 0, 1]),
        ([1, 9, 4, 4], 2, [1, 0, 1, 1]),
        ([2, 3, 7, 5, 1], 2, [0, 1, 0, 1, 1]),  # 7 | 5 + 3, then 2 to the 7 and 1 to the 8
        ([8, 8], 4, [0, 1]),
    ],
)
def test_the_costliest_goes_first_to_the_rank_with_the_least(
    costs: list[int], num_ranks: int, owners: list[int]
) -> None:
    assert balanced(costs, num_ranks) == owners


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 8))
def test_no_rank_has_more_than_its_share_by_more_than_one_item(
    costs: list[int], num_ranks: int
) -> None:
    owners = balanced(costs, num_ranks)
    loads = [
        sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(num_ranks)
    ]
    assert sum(loads) == sum(costs)
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_shared_items_stay_in_order() -> None:
    ranks = Ranks(use_cpu=True)
    assert ranks.share_by_cost(["a", "b", "c"], [1, 3, 2]) == ["a", "b", "c"]
