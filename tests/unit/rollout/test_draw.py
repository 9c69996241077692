"""One token from one uniform: exact where the arithmetic is exact, never a token of probability zero."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rft.head import tempered
from rft.rollout.draw import draw, inverse_cdf, nucleus_mask
from rft.rollout.randomness import Purpose, uniforms

JUST_BELOW_ONE = 1 - 2.0**-24


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("uniform", "token"),
    [
        (0.0, 1),
        (0.24, 1),
        (0.25, 3),
        (0.7499, 3),
        (0.75, 4),
        (JUST_BELOW_ONE, 4),
        (1.0, 4),  # a float64 uniform may round up to 1
    ],
)
def test_inverse_cdf(uniform: float, token: int) -> None:
    probabilities = rows([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    assert inverse_cdf(probabilities, torch.tensor([uniform])).tolist() == [token]


@pytest.mark.parametrize("total", [0.5, 0.999, 1.001, 3.0])
def test_the_uniform_is_scaled_by_the_total(total: float) -> None:
    probabilities = rows([0.25 * total, 0.75 * total, 0.0])
    uniform = torch.tensor([0.2499])
    assert inverse_cdf(probabilities, uniform).tolist() == [0]
    assert inverse_cdf(probabilities, torch.tensor([0.2501])).tolist() == [1]
    assert inverse_cdf(probabilities, torch.tensor([1.0])).tolist() == [1]


@settings(max_examples=150, deadline=None, database=None)
@given(
    weights=st.lists(
        st.sampled_from([0.0, 0.0, 1e-30, 1e-8, 0.1, 1 / 3, 1.0]), min_size=1, max_size=20
    ).filter(any),
    uniform=st.one_of(
        st.sampled_from([0.0, 2.0**-30, 0.5, JUST_BELOW_ONE, 1.0]), st.floats(0, 1, width=32)
    ),
    num_before=st.integers(0, 40),
    num_after=st.integers(0, 40),
)
def test_a_token_of_probability_zero_is_never_chosen(
    weights: list[float], uniform: float, num_before: int, num_after: int
) -> None:
    raw = torch.tensor([0.0] * num_before + weights + [0.0] * num_after)
    probabilities = (raw / raw.sum())[None]
    token = int(inverse_cdf(probabilities, torch.tensor([uniform]))[0])
    assert probabilities[0, token] > 0


@pytest.mark.parametrize("uniform", [0.0, 0.3, JUST_BELOW_ONE, 1.0])
def test_rounding_over_a_large_vocabulary(uniform: float) -> None:
    """Fifty thousand roundings on the way; half of the tokens closed, the last ones too."""
    logits = torch.randn(4, 50_001, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, ::2] = float("-inf")
    logits[:, 40_000:] = float("-inf")
    drawn = draw(logits, torch.full((4,), uniform), temperature=0.7, top_p=1.0)
    assert torch.isfinite(drawn.logprobs).all()
    assert (drawn.token_ids % 2 == 1).all() and (drawn.token_ids < 40_000).all()


# at temperature 0.5 the logits ln 1, ln 2, ln 3 give squares: 1/14, 4/14, 9/14
@pytest.mark.parametrize(
    ("uniform", "token", "probability"),
    [(0.0714, 0, 1 / 14), (0.0715, 1, 4 / 14), (0.357, 1, 4 / 14), (0.3572, 2, 9 / 14)],
)
def test_draw_at_a_temperature(uniform: float, token: int, probability: float) -> None:
    logits = rows([0.0, math.log(2), math.log(3)])
    drawn = draw(logits, torch.tensor([uniform]), temperature=0.5, top_p=1.0)
    assert drawn.token_ids.tolist() == [token]
    assert drawn.logprobs.tolist() == pytest.approx([math.log(probability)], rel=1e-5)
    assert drawn.allowed_tokens is None


def test_greedy_takes_the_largest_and_says_its_untempered_logprob() -> None:
    logits = rows([0.0, math.log(2), math.log(5)], [math.log(6), 0.0, 0.0])
    drawn = draw(logits, torch.tensor([0.0, 0.99]), temperature=0.0, top_p=1.0)
    assert drawn.token_ids.tolist() == [2, 0]
    assert drawn.logprobs.tolist() == pytest.approx([math.log(5 / 8), math.log(6 / 8)], rel=1e-6)
    assert drawn.allowed_tokens is None


def test_greedy_takes_the_first_of_equals() -> None:
    drawn = draw(rows([1.0, 3.0, 3.0]), torch.tensor([0.9]), temperature=0.0, top_p=1.0)
    assert drawn.token_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [
        (0.01, [3]),
        (0.5, [3]),
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.76, [1, 3, 4]),
        (0.875, [1, 3, 4]),
        (0.9, [1, 2, 3, 4]),
    ],
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(
    top_p: float, nucleus: list[int]
) -> None:
    probabilities = rows([0.0, 0.25, 0.0625, 0.5, 0.125, 0.0625])
    assert nucleus_mask(probabilities, top_p)[0].nonzero()[:, 0].tolist() == nucleus


def test_equals_enter_the_nucleus_in_the_order_of_the_vocabulary() -> None:
    probabilities = rows([0.25, 0.25, 0.25, 0.25])
    assert nucleus_mask(probabilities, 0.5).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_nuclei_of_random_rows_against_a_loop(top_p: float) -> None:
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).double() * 2
    probabilities = logits.softmax(-1)
    for row, mask in zip(probabilities.tolist(), nucleus_mask(probabilities, top_p), strict=True):
        chosen: set[int] = set()
        for token in sorted(range(30), key=lambda t: (-row[t], t)):
            if sum(row[t] for t in chosen) >= top_p:
                break
            chosen.add(token)
        assert set(mask.nonzero()[:, 0].tolist()) == chosen


def test_the_nucleus_is_kept_as_bits_in_packbits_order() -> None:
    logits = torch.full((1, 11), -20.0)
    logits[0, 0] = logits[0, 9] = 5.0
    drawn = draw(logits, torch.tensor([0.7]), temperature=1.0, top_p=0.9)
    assert drawn.allowed_tokens is not None
    assert drawn.allowed_tokens.tolist() == [[0b10000000, 0b01000000]]
    assert drawn.token_ids.tolist() == [9]
    assert drawn.logprobs.tolist() == pytest.approx([math.log(0.5)], rel=1e-6)


@pytest.mark.parametrize("vocab_size", [8, 11, 37])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_the_trainer_reads_the_same_distribution_from_the_bits(
    vocab_size: int, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(50, vocab_size, generator=generator) * 3
    drawn = draw(logits, torch.rand(50, generator=generator), temperature, top_p=0.8)
    again = tempered(logits, temperature, drawn.allowed_tokens).log_softmax(-1)
    assert (again.gather(1, drawn.token_ids[:, None])[:, 0] - drawn.logprobs).abs().max() < 2e-6
    assert torch.isfinite(drawn.logprobs).all()
    num_allowed = again.isfinite().sum(-1)
    assert num_allowed.min() < vocab_size - 2 and num_allowed.min() >= 1


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_depends_on_itself_alone(temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, points = torch.randn(9, 300, generator=generator), torch.rand(9, generator=generator)
    together = draw(logits, points, temperature, top_p)
    for row in range(9):
        alone = draw(logits[row : row + 1], points[row : row + 1], temperature, top_p)
        assert alone.token_ids[0] == together.token_ids[row]
        assert torch.equal(alone.logprobs[0], together.logprobs[row])
        if together.allowed_tokens is not None and alone.allowed_tokens is not None:
            assert np.array_equal(alone.allowed_tokens[0], together.allowed_tokens[row])


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_counted_uniforms_draw_tokens_at_their_probabilities() -> None:
    """8000 draws over samples and positions; 3 degrees of freedom, χ² below its 99.9 % point of 16.27."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    points = np.concatenate([uniforms(0, Purpose.TRAIN, 1, 4, n, 80) for n in range(100)])
    drawn = draw(probabilities.log().expand(8000, -1), torch.from_numpy(points).float(), 1.0, 1.0)
    counts = drawn.token_ids.bincount(minlength=4)
    assert chi_square(counts, probabilities) < 16.27
    assert chi_square(counts, torch.tensor([0.47, 0.33, 0.15, 0.05])) > 16.27


def test_a_nucleus_is_drawn_at_its_renormalised_probabilities() -> None:
    """top_p 0.75 leaves 0.5 and 0.3: 5/8 and 3/8; χ² with 1 degree of freedom, 99.9 % point 10.83."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(8000, -1)
    points = torch.from_numpy(uniforms(0, Purpose.TRAIN, 2, 0, 0, 8000)).float()
    counts = draw(logits, points, 1.0, 0.75).token_ids.bincount(minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert chi_square(counts[:2], torch.tensor([5 / 8, 3 / 8])) < 10.83


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_what_is_no_number_is_not_hidden(top_p: float) -> None:
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 1.0, 2.0]])
    drawn = draw(logits, torch.tensor([0.5, 0.5]), 1.0, top_p)
    assert drawn.logprobs.isfinite().tolist() == [False, True]


def test_a_nucleus_of_nearly_all_never_opens_what_cannot_come() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 50_000, generator=generator)
    is_open = torch.rand(logits.shape, generator=generator) < 0.5
    allowed = np.packbits(is_open.numpy(), axis=1)
    drawn = draw(logits, torch.full((16,), 0.5), 1.0, 0.9999999, allowed)
    assert drawn.allowed_tokens is not None
    assert not (drawn.allowed_tokens & ~allowed).any()
