"""What counts in an update, and how groups become micro-batches."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from made import make_completion, make_group, make_prompt, make_training_group

from rft.packing import SHORTEST_PREFIX, common_length
from rft.training import batch as batch_module
from rft.training.batch import (
    anchors_of,
    cut_to_budget,
    micro_batches,
    padded,
    training_groups,
    update_counts,
)
from rft.training.loss import UpdateCounts

CPU = torch.device("cpu")


def test_ungraded_rollouts_are_left_out() -> None:
    group = make_group(1.0, None, 0.0, ordinal=4, prompt=make_prompt(0, (8, 9)))
    (kept,) = training_groups([group], [(0.5, None, -0.5)], mask_truncated=False)
    assert (kept.ordinal, kept.prompt_ids, kept.advantages) == (4, (8, 9), (0.5, -0.5))
    assert kept.rollouts == (group.rollouts[0], group.rollouts[2])


@pytest.mark.parametrize(("mask_truncated", "kept"), [(False, (0.5, -0.5)), (True, (-0.5,))])
def test_truncated_completions_are_left_out_when_asked(
    mask_truncated: bool, kept: tuple[float, ...]
) -> None:
    completions = [make_completion((5, 6), finish_reason="length"), make_completion((7,))]
    group = make_group(1.0, 0.0, completions=completions)
    (member,) = training_groups([group], [(0.5, -0.5)], mask_truncated)
    assert member.advantages == kept


def test_a_group_with_nothing_left_is_dropped() -> None:
    truncated = make_group(
        1.0, 0.0, completions=[make_completion((5, 6), finish_reason="length")] * 2
    )
    skipped, usual = make_group(1.0, None), make_group(1.0, 0.0, ordinal=2)
    groups = training_groups(
        [truncated, skipped, usual], [(0.5, -0.5), (None, None), (0.5, -0.5)], mask_truncated=True
    )
    assert [group.ordinal for group in groups] == [2]


@pytest.mark.parametrize(
    ("advantages", "has_signal"), [((0.0, 0.0), False), ((0.0, 1e-9), True), ((-1.0, 1.0), True)]
)
def test_signal(advantages: tuple[float, ...], has_signal: bool) -> None:
    group = make_training_group([make_completion()] * 2, advantages)
    assert group.has_signal is has_signal


def test_counts_include_rollouts_without_signal() -> None:
    groups = [
        make_training_group([make_completion((5, 6, 7)), make_completion((5,))], (1.0, -1.0)),
        make_training_group([make_completion((5, 6)), make_completion((5, 6, 7, 8))], (0.0, 0.0)),
    ]
    assert update_counts(groups) == UpdateCounts(num_completions=4, num_tokens=10)
    assert update_counts(groups[:1]) == UpdateCounts(num_completions=2, num_tokens=4)
    assert update_counts([]) == UpdateCounts(num_completions=1, num_tokens=1)


# each group: prompt of 2 tokens, two completions of 3 tokens = 2 + 2 + 2 = 6 input tokens
@pytest.mark.parametrize(
    ("token_budget", "ordinals"),
    [
        (6, [[0], [1], [2], [3], [4]]),
        (11, [[0], [1], [2], [3], [4]]),
        (12, [[0, 1], [2, 3], [4]]),
        (23, [[0, 1, 2], [3, 4]]),
        (30, [[0, 1, 2, 3, 4]]),
    ],
)
def test_micro_batches_hold_whole_groups_within_the_budget(
    token_budget: int, ordinals: list[list[int]]
) -> None:
    completions = [make_completion((5, 6, 7)), make_completion((8, 9, 10))]
    groups = [make_training_group(completions, (1.0, -1.0), ordinal=n) for n in range(5)]
    batches = micro_batches(groups, token_budget, CPU)
    assert [[group.ordinal for group in batch.groups] for batch in batches] == ordinals
    sizes = [batch.packed.input_ids.numel() for batch in batches]
    assert sizes == [6 * len(members) for members in ordinals]
    assert all(size <= token_budget for size, n in zip(sizes, ordinals, strict=True) if len(n) > 1)


# a prompt of 2 tokens and completions of 4, 2, 5 and 1 tokens = 2 + 3 + 1 + 4 + 0 = 10 input tokens
@pytest.mark.parametrize(
    ("token_budget", "sizes"),
    [
        (10, [4]),
        (9, [2, 2]),  # 2 + 3 + 1, then 2 + 4 + 0
        (6, [2, 2]),
        (5, [1, 1, 1, 1]),  # of the third alone 6, beyond the budget
        (1, [1, 1, 1, 1]),
    ],
)
def test_a_group_over_the_budget_is_cut_between_completions(
    token_budget: int, sizes: list[int]
) -> None:
    completions = [make_completion(tuple(range(10, 10 + n))) for n in (4, 2, 5, 1)]
    group = make_training_group(completions, (0.5, -0.5, 1.0, -1.0), ordinal=3, prompt_ids=(8, 9))
    assert group.num_input_tokens == group.tokens.num_input_tokens == 10
    parts = cut_to_budget([group], token_budget)
    assert [len(part.rollouts) for part in parts] == sizes
    assert [part.first for part in parts] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert all((part.ordinal, part.prompt_ids) == (3, (8, 9)) for part in parts)
    assert sum((part.rollouts for part in parts), ()) == group.rollouts
    assert sum((part.advantages for part in parts), ()) == group.advantages
    assert all(part.num_input_tokens <= token_budget or len(part.rollouts) == 1 for part in parts)
    assert cut_to_budget(parts, token_budget) == parts


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((2,) * 16, [8, 8]),  # not 11 and 5
        ((2,) * 23, [8, 8, 7]),
        ((2, 2, 2, 9, 2, 2), [3, 3]),  # 2 + 3, then 2 + 8 + 2
        ((12, 2, 2), [1, 2]),  # the budget itself, and the rest
    ],
)
def test_the_parts_of_a_group_are_few_and_about_the_same_size(
    lengths: tuple[int, ...], sizes: list[int]
) -> None:
    completions = [make_completion(tuple(range(10, 10 + n))) for n in lengths]
    group = make_training_group(completions, (0.0,) * len(lengths), prompt_ids=(8, 9))
    assert [len(part.rollouts) for part in cut_to_budget([group], 13)] == sizes


def test_the_last_part_of_a_group_shares_its_micro_batch_with_the_next_group() -> None:
    large = make_training_group([make_completion((5, 6, 7))] * 3, (1.0, -1.0, 0.0), ordinal=0)
    small = make_training_group([make_completion((5,))], (1.0,), ordinal=1)
    parts = cut_to_budget([large, small], 6)
    batches = micro_batches(parts, 6, CPU)  # 2 + 2 + 2, then 2 + 2 with 2
    found = [[(g.ordinal, g.first, len(g.rollouts)) for g in batch.groups] for batch in batches]
    assert found == [[(0, 0, 2)], [(0, 2, 1), (1, 0, 1)]]
    anchors = {0: [[-1.0] * 3, [-2.0] * 3, [-3.0] * 3], 1: [[-4.0]]}
    assert anchors_of(batches[0], anchors, CPU).tolist() == [[-1] * 3, [-2] * 3]
    assert anchors_of(batches[1], anchors, CPU).tolist() == [[-3] * 3, [-4, 0, 0]]


def test_a_completion_over_the_budget_starts_its_own_batch_and_fills_it() -> None:
    small = make_training_group([make_completion((5,))], (1.0,), ordinal=0)
    large = make_training_group([make_completion(tuple(range(20)))], (1.0,), ordinal=1)
    batches = micro_batches([small, large, small], 4, CPU)
    assert [[group.ordinal for group in batch.groups] for batch in batches] == [[0], [1], [0]]


def test_micro_batches_are_as_few_as_can_be_and_about_the_same_size() -> None:
    """2 + n tokens each: the first three fill the budget, which would leave the last alone."""
    groups = [
        make_training_group([make_completion(tuple(range(3)))], (1.0,), ordinal=index)
        for index in range(4)
    ]
    cost = groups[0].num_input_tokens
    for budget, sizes in (
        (3 * cost, [2, 2]),
        (4 * cost, [4]),
        (2 * cost - 1, [1] * 4),
        (1, [1] * 4),
    ):
        batches = micro_batches(groups, budget, CPU)
        assert [len(batch.groups) for batch in batches] == sizes
        assert [group.ordinal for batch in batches for group in batch.groups] == [0, 1, 2, 3]


def test_what_prompts_share_counts_once_and_each_copy_of_a_prompt_a_part() -> None:
    prefix = tuple(range(100, 100 + SHORTEST_PREFIX))
    groups = [
        replace(
            make_training_group([make_completion((1, 2))], (1.0,), ordinal=index),
            prompt_ids=(*prefix, index),
        )
        for index in range(3)
    ]
    tokens = SHORTEST_PREFIX + 3 * 2
    cost = tokens + 3 * (SHORTEST_PREFIX + 1) // 4
    (batch,) = micro_batches(groups, cost, CPU, 0.25)
    assert batch.packed.num_tokens == tokens
    assert batch.num_budget_tokens == cost
    assert len(micro_batches(groups, cost - 1, CPU, 0.25)) == 2
    assert len(micro_batches(groups, tokens, CPU)) == 1
    apart = 3 * (SHORTEST_PREFIX + 2)
    assert len(micro_batches(groups, apart, CPU, are_apart=True)) == 1
    assert len(micro_batches(groups, apart - 1, CPU, are_apart=True)) == 2


def test_the_copies_of_a_prompt_count_where_a_group_is_cut() -> None:
    """A prompt of 8 tokens, each completion with one more and a copy of the eight at a quarter."""
    completions = [make_completion((5, 6))] * 6
    group = make_training_group(completions, (0.0,) * 6, prompt_ids=tuple(range(8)))
    sizes = {
        budget: [len(part.rollouts) for part in cut_to_budget([group], budget, 0.25)]
        for budget in (26, 25, 17, 11)
    }
    assert sizes == {26: [6], 25: [3, 3], 17: [3, 3], 11: [1] * 6}
    for budget, parts in sizes.items():
        cut = cut_to_budget([group], budget, 0.25)
        batches = micro_batches(cut, budget, CPU, 0.25)
        assert [len(batch.advantages) for batch in batches] == parts


def test_prompts_are_compared_once_however_many_budgets_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planning must not grow with the square of the groups, of which a large budget holds hundreds."""
    compared: list[int] = []

    def counted(first: Sequence[int], second: Sequence[int]) -> int:
        compared.append(len(first))
        return common_length(first, second)

    monkeypatch.setattr(batch_module, "common_length", counted)
    completions = [make_completion((5, 6))] * 8
    groups = [
        make_training_group(completions, (0.0,) * 8, ordinal=n, prompt_ids=(*range(100), n))
        for n in range(200)
    ]
    batches = micro_batches(groups, 1000, CPU)
    assert [len(batch.groups) for batch in batches] == [100, 100]
    assert compared == [101] * 199


def test_no_groups_give_no_batches() -> None:
    assert micro_batches([], 10, CPU) == []


def test_a_batch_lines_up_completions_advantages_and_logprobs() -> None:
    groups = [
        make_training_group(
            [make_completion((5, 6), (-0.5, -0.25)), make_completion((7,), (-2.0,))], (1.0, -1.0)
        ),
        make_training_group([make_completion((8, 9, 10), (-1.0, -3.0, -4.0))], (0.5,), ordinal=1),
    ]
    (batch,) = micro_batches(groups, 100, CPU)
    assert batch.advantages.tolist() == [1.0, -1.0, 0.5]
    assert batch.packed.target_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.sampling_logprobs.tolist() == [[-0.5, -0.25, 0], [-2, 0, 0], [-1, -3, -4]]
    assert batch.packed.completion_mask.tolist() == [
        [True, True, False],
        [True, False, False],
        [True, True, True],
    ]
    anchors = {1: [[-7.0, -8.0, -9.0]], 0: [[-5.0, -6.0], [-4.0]]}
    assert anchors_of(batch, anchors, CPU).tolist() == [[-5, -6, 0], [-4, 0, 0], [-7, -8, -9]]


def test_padding() -> None:
    assert padded([[1.0], [2.0, 3.0, 4.0]], CPU).tolist() == [[1, 0, 0], [2, 3, 4]]
