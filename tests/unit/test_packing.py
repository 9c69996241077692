"""Where every token lies in the packed row, worked by hand."""

import numpy as np
import pytest
import torch

from rft.attention import PackedSpan
from rft.packing import PackedBatch, TokenGroup, is_worth_sharing, pack, prefix_length

CPU = torch.device("cpu")


def packed(*groups: TokenGroup) -> PackedBatch:
    return pack(groups, CPU)


def test_two_groups_by_hand() -> None:
    """Prompt 10 11 12 with completions 20 21 22 | 30, then prompt 40 with 50 51 | 60 | 70 71 72 73.

    row       10 11 12 20 21 | 40 50 70 71 72
    index      0  1  2  3  4    5  6  7  8  9
    position   0  1  2  3  4    0  1  1  2  3
    """
    batch = packed(
        TokenGroup((10, 11, 12), ((20, 21, 22), (30,))),
        TokenGroup((40,), ((50, 51), (60,), (70, 71, 72, 73))),
    )
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 40, 50, 70, 71, 72]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 1, 2, 3]]
    assert batch.target_ids.tolist() == [20, 21, 22, 30, 50, 51, 60, 70, 71, 72, 73]
    assert batch.predictor_index.tolist() == [2, 3, 4, 2, 5, 6, 5, 5, 7, 8, 9]
    assert batch.layout.spans == (PackedSpan(0, 3, (2, 0)), PackedSpan(5, 1, (1, 0, 3)))
    assert [span.stop for span in batch.layout.spans] == [5, 10]
    assert batch.completion_mask.tolist() == [
        [True, True, True, False],
        [True, False, False, False],
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, True],
    ]
    assert batch.allowed_tokens is None


def test_the_predictor_of_a_token_is_the_token_before_it() -> None:
    """For every target, walking back from its predictor spells the completion so far and the prompt."""
    groups = [
        TokenGroup(tuple(range(100 * n, 100 * n + n + 1)), tuple(
            tuple(range(1000 * n + 100 * c, 1000 * n + 100 * c + c + 1)) for c in range(n + 1)
        ))
        for n in range(1, 5)
    ]  # fmt: skip
    batch = packed(*groups)
    input_ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    targets = iter(zip(batch.target_ids.tolist(), batch.predictor_index.tolist(), strict=True))
    for group in groups:
        for ids in group.completions:
            for place, token in enumerate(ids):
                target, predictor = next(targets)
                context = (*group.prompt_ids, *ids[:place])
                assert target == token
                assert input_ids[predictor] == context[-1]
                assert positions[predictor] == len(context) - 1
    assert next(targets, None) is None


def test_what_prompts_begin_with_lies_in_the_row_once() -> None:
    """Prefix 1 … 8, then 9 with 20 21 | 30, then 9 10 with 40 41.

    row       1 … 8  9 20  9 10 40
    index     0 … 7  8  9 10 11 12
    position  0 … 7  8  9  8  9 10
    """
    begin = tuple(range(1, 9))
    groups = [TokenGroup((*begin, 9), ((20, 21), (30,))), TokenGroup((*begin, 9, 10), ((40, 41),))]
    batch = packed(*groups)
    assert batch.input_ids.tolist() == [[*begin, 9, 20, 9, 10, 40]]
    assert batch.position_ids.tolist() == [[*range(8), 8, 9, 8, 9, 10]]
    assert batch.target_ids.tolist() == [20, 21, 30, 40, 41]
    assert batch.predictor_index.tolist() == [8, 9, 8, 11, 12]
    assert batch.layout.prefix_length == 8
    assert batch.layout.spans == (PackedSpan(8, 1, (1, 0)), PackedSpan(10, 2, (1,)))
    apart = pack(groups, CPU, are_apart=True)
    assert apart.layout.prefix_length == 0
    assert apart.input_ids.tolist() == [[*begin, 9, 20, *begin, 9, 10, 40]]


def test_prefixes() -> None:
    long = tuple(range(20))
    assert prefix_length([]) == prefix_length([long]) == 0
    assert prefix_length([long, long]) == 19, "the token that predicts is each prompt's own"
    assert prefix_length([long, long[:12]]) == 11
    assert prefix_length([long, (*long[:10], 99, 98), (*long[:9], 99, 98)]) == 9
    assert prefix_length([(5, *long), long]) == 0
    assert prefix_length([(*long[:7], 99), long]) == 0, "too short to be worth it"
    assert prefix_length([(*long[:8], 99), long]) == 8


def test_a_prefix_that_little_is_saved_by_is_not_shared() -> None:
    """A long prompt behind a short prefix would attend under a mask of the square of its length."""
    assert is_worth_sharing(20, 1000) and is_worth_sharing(4000, 5000 - 200)
    assert not is_worth_sharing(20, 3000)
    begin = tuple(range(8))
    short, long = (
        TokenGroup((*begin, n, *range(length)), ((1,),)) for n, length in ((9, 5), (10, 2500))
    )
    assert packed(short, short).layout.prefix_length == 13
    assert packed(short, long).layout.prefix_length == 0


def test_a_row_has_as_many_places_as_it_is_told() -> None:
    groups = [TokenGroup((10, 11, 12), ((20, 21, 22), (30,))), TokenGroup((40,), ((50, 51),))]
    plain, spared = packed(*groups), pack(groups, CPU, num_rows=lambda n: n + 3)
    assert plain.num_tokens == spared.num_tokens == plain.input_ids.numel() == 7
    assert spared.input_ids.tolist() == [[*plain.input_ids[0].tolist(), 0, 0, 0]]
    assert spared.position_ids.tolist() == [[*plain.position_ids[0].tolist(), 0, 0, 0]]
    assert torch.equal(spared.predictor_index, plain.predictor_index)


def test_completions_of_one_token_need_no_input() -> None:
    batch = packed(TokenGroup((7, 8), ((1,), (2,), (3,))))
    assert batch.input_ids.tolist() == [[7, 8]]
    assert batch.predictor_index.tolist() == [1, 1, 1]
    assert batch.target_ids.tolist() == [1, 2, 3]
    assert batch.layout.spans == (PackedSpan(0, 2, (0, 0, 0)),)
    assert batch.completion_mask.tolist() == [[True]] * 3


@pytest.mark.parametrize(
    ("completions", "expected"), [(((1,),), 3), (((1, 2, 3), (4, 5)), 6), (((1,), (2,)), 3)]
)
def test_the_number_of_input_tokens(
    completions: tuple[tuple[int, ...], ...], expected: int
) -> None:
    group = TokenGroup((7, 8, 9), completions)
    assert group.num_input_tokens == expected
    assert packed(group).input_ids.numel() == expected


def test_unpacked_values_lie_at_their_completion_and_token() -> None:
    batch = packed(TokenGroup((7,), ((1, 2), (3,), (4, 5, 6))))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], requires_grad=True)
    unpacked = batch.unpack(values)
    assert unpacked.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    (gradient,) = torch.autograd.grad((unpacked * torch.arange(9.0).view(3, 3)).sum(), values)
    assert gradient.tolist() == [0, 1, 3, 6, 7, 8]


def test_allowed_tokens_follow_the_targets() -> None:
    first, third = np.array([[1, 2], [3, 4]], np.uint8), np.array([[5, 6]], np.uint8)
    batch = packed(
        TokenGroup((7,), ((1, 2), (8,)), (first, None)), TokenGroup((9,), ((3,),), (third,))
    )
    assert batch.allowed_tokens is not None
    assert batch.allowed_tokens.tolist() == [[1, 2], [3, 4], [255, 255], [5, 6]]


def test_a_group_that_says_nothing_of_allowed_tokens_has_all_open() -> None:
    bits = np.array([[1, 2]], np.uint8)
    batch = packed(TokenGroup((7,), ((1, 2),)), TokenGroup((7,), ((3,),), (bits,)))
    assert batch.allowed_tokens is not None
    assert batch.allowed_tokens.tolist() == [[255, 255], [255, 255], [1, 2]]
    assert packed(TokenGroup((7,), ((1, 2),), (None,))).allowed_tokens is None
