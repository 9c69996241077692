"""The five losses and their gradients against numbers worked by hand.

Four completions a, b, c, d of 3, 1, 2, 2 tokens. The whole update holds one more completion of 2 tokens
without signal, so N = 5 and Σ|oᵢ| = 10; max_completion_tokens = 4, so N · max = 20. Ratios are clipped
to [0.75, 1.5]. Per token:

       A   ratio r                  weight w       what min(r A, clip(r) A) does
    a  +2  2,  1, 0.9765625         1,  0.5, 2     clipped above; inside; inside
    b  −1  0.5                      0.5            clipped below
    c  −4  4,  1                    1,  0.25       above but free, as A < 0; inside
    d  +1  8,  0.5                  4,  1          clipped above; below but free, as A > 0
"""

from dataclasses import replace
from itertools import combinations, pairwise
from math import log

import pytest
import torch
from torch import Tensor

from rft.training.loss import LOSSES, LossInputs, LossOutputs, LossSettings, UpdateCounts

SETTINGS = LossSettings(clip_low=0.25, clip_high=0.5, kl_coefficient=0.0, max_completion_tokens=4)
COUNTS = UpdateCounts(num_completions=5, num_tokens=10)

ADVANTAGES = [2.0, -1.0, -4.0, 1.0]
POLICY = [[-1.0, -2.0, -3.0], [-4.0], [-0.5, -1.5], [-2.5, -1.0]]
RATIOS = [[2.0, 1.0, 0.9765625], [0.5], [4.0, 1.0], [8.0, 0.5]]
WEIGHTS = [[1.0, 0.5, 2.0], [0.5], [1.0, 0.25], [4.0, 1.0]]
REFERENCE_RATIOS = [[2.0, 1.0, 1.0], [1.0], [0.5, 1.0], [1.0, 1.0]]
"""exp(reference − policy)."""


def tensor(rows: list[list[float]], padding: float) -> Tensor:
    """Rows as a (4, 3) tensor; the padding is junk that must not matter."""
    return torch.tensor([row + [padding] * (3 - len(row)) for row in rows], dtype=torch.float64)


def make_inputs(with_reference: bool = False) -> LossInputs:
    policy = tensor(POLICY, 0.7)
    anchor = policy - tensor([[log(r) for r in row] for row in RATIOS], 3.1)
    reference = policy + tensor([[log(x) for x in row] for row in REFERENCE_RATIOS], -2.2)
    return LossInputs(
        policy_logprobs=policy.requires_grad_(),
        anchor_logprobs=anchor.detach(),
        importance_weights=tensor(WEIGHTS, 5.0),
        advantages=torch.tensor(ADVANTAGES, dtype=torch.float64),
        completion_mask=tensor(POLICY, 1.0) < 0,
        reference_logprobs=reference.detach() if with_reference else None,
    )


def part_of(inputs: LossInputs, rows: slice) -> LossInputs:
    """Some completions alone, as a micro-batch."""
    return LossInputs(
        policy_logprobs=inputs.policy_logprobs.detach()[rows].requires_grad_(),
        anchor_logprobs=inputs.anchor_logprobs[rows],
        importance_weights=inputs.importance_weights[rows],
        advantages=inputs.advantages[rows],
        completion_mask=inputs.completion_mask[rows],
        reference_logprobs=(
            None if inputs.reference_logprobs is None else inputs.reference_logprobs[rows]
        ),
    )


def run(
    loss: str, inputs: LossInputs, settings: LossSettings = SETTINGS, counts: UpdateCounts = COUNTS
) -> tuple[LossOutputs, Tensor]:
    """The loss and its gradient with respect to the policy's logprobs."""
    outputs = LOSSES[loss](inputs, settings, counts)
    (gradient,) = torch.autograd.grad(outputs.loss, inputs.policy_logprobs)
    return outputs, gradient


# Weighted objective per token, w · min(r A, clip(r) A):
#   a  1·3 = 3      0.5·2 = 1     2·1.953125 = 3.90625   (sum 7.90625)
#   b  0.5·(−0.75) = −0.375
#   c  1·(−16) = −16              0.25·(−4) = −1          (sum −17)
#   d  4·1.5 = 6                  1·0.5 = 0.5             (sum 6.5)
# where it is free its derivative by the logprob is itself, where it is clipped 0.
#
# grpo:    −(1/5)(7.90625/3 − 0.375 − 17/2 + 6.5/2) = −(1/5)(−2.98958333…); slopes / (5·3, 5·1, 5·2, 5·2)
# dapo:    −(7.90625 − 0.375 − 17 + 6.5) / 10 = 2.96875 / 10; slopes / 10
# dr_grpo: 2.96875 / 20; slopes / 20
#
# cispo: c = clip(r) A w:  a  3, 1, 3.90625   b  −0.375   c  1.5·(−4) = −6, −1   d  1.5·4 = 6, 0.75
#   times logprob:  a  −3 −2 −11.71875   b  1.5   c  3 + 1.5   d  −15 −0.75   sum −26.46875; slopes c / 10
#
# gspo: s = 1.953125^(1/3) = 1.25, 0.5, 4^(1/2) = 2, 4^(1/2) = 2; weights 1, 0.5, 0.25^(1/2) = 0.5, 2
#   a  1.25·2 = 2.5   b  −0.75·0.5 = −0.375 clipped   c  2·(−4)·0.5 = −4   d  1.5·2 = 3 clipped
#   −(2.5 − 0.375 − 4 + 3) / 5 = −0.225; slopes of a: 2.5/(3·5), of c: −4/(2·5)
EXPECTED = {
    "grpo": (
        0.59791666666666667,
        [[0, -1 / 15, -3.90625 / 15], [0, 0, 0], [1.6, 0.1, 0], [0, -0.05, 0]],
        [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]],
    ),
    "dapo": (
        0.296875,
        [[0, -0.1, -0.390625], [0, 0, 0], [1.6, 0.1, 0], [0, -0.05, 0]],
        [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]],
    ),
    "dr_grpo": (
        0.1484375,
        [[0, -0.05, -0.1953125], [0, 0, 0], [0.8, 0.05, 0], [0, -0.025, 0]],
        [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]],
    ),
    "cispo": (
        2.646875,
        [[-0.3, -0.1, -0.390625], [0.0375, 0, 0], [0.6, 0.1, 0], [-0.6, -0.075, 0]],
        [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]],
    ),
    "gspo": (
        -0.225,
        [[-1 / 6, -1 / 6, -1 / 6], [0, 0, 0], [0.4, 0.4, 0], [0, 0, 0]],
        [[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]],
    ),
}


def test_every_loss_has_its_numbers() -> None:
    assert EXPECTED.keys() == LOSSES.keys()


@pytest.mark.parametrize("loss", LOSSES)
def test_value_gradient_and_clipped_places(loss: str) -> None:
    value, slopes, clipped = EXPECTED[loss]
    outputs, gradient = run(loss, make_inputs())
    assert outputs.loss.item() == pytest.approx(value, rel=1e-12)
    assert outputs.policy.item() == pytest.approx(value, rel=1e-12)
    assert outputs.kl.item() == 0
    torch.testing.assert_close(
        gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    assert outputs.clipped.tolist() == clipped


# k3(x) = x − ln x − 1: k3(2) = 0.30685281944005469 for the first token of a, k3(0.5) = 0.19314718055994531
# for the first of c, else 0; their sum is 0.5. Its slope by the policy's logprob is 1 − x: −1 and 0.5.
@pytest.mark.parametrize(
    ("loss", "kl", "slope_a", "slope_c"),
    [
        # (0.30685…/3 + 0.19314…/2) / 5; slopes / (3·5) and / (2·5)
        ("grpo", 0.0397715726853315, -1 / 15, 0.05),
        ("gspo", 0.0397715726853315, -1 / 15, 0.05),
        ("dapo", 0.05, -0.1, 0.05),
        ("cispo", 0.05, -0.1, 0.05),
        ("dr_grpo", 0.025, -0.05, 0.025),
    ],
)
def test_the_kl_term(loss: str, kl: float, slope_a: float, slope_c: float) -> None:
    without, plain = run(loss, make_inputs())
    settings = replace(SETTINGS, kl_coefficient=0.1)
    outputs, gradient = run(loss, make_inputs(with_reference=True), settings)
    assert outputs.kl.item() == pytest.approx(kl, rel=1e-12)
    assert outputs.policy.item() == without.policy.item()
    assert outputs.loss.item() == pytest.approx(without.loss.item() + 0.1 * kl, rel=1e-12)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    expected[0, 0], expected[2, 0] = 0.1 * slope_a, 0.1 * slope_c
    torch.testing.assert_close(gradient - plain, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("pair", combinations(LOSSES, 2), ids="-".join)
def test_any_two_losses_differ(pair: tuple[str, str]) -> None:
    first, second = (run(loss, make_inputs())[1] for loss in pair)
    assert not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_masked_tokens_get_exactly_no_gradient(loss: str, with_reference: bool) -> None:
    inputs = make_inputs(with_reference)
    _, gradient = run(loss, inputs, replace(SETTINGS, kl_coefficient=0.3))
    assert gradient[~inputs.completion_mask].tolist() == [0.0] * 4


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_values_do_not_matter(loss: str) -> None:
    inputs, settings = make_inputs(with_reference=True), replace(SETTINGS, kl_coefficient=0.3)
    outputs, _ = run(loss, inputs, settings)

    def with_other_junk(values: Tensor, junk: float) -> Tensor:
        return values.detach().masked_fill(~inputs.completion_mask, junk)

    assert inputs.reference_logprobs is not None
    other, _ = run(
        loss,
        replace(
            inputs,
            policy_logprobs=with_other_junk(inputs.policy_logprobs, -9.0).requires_grad_(),
            anchor_logprobs=with_other_junk(inputs.anchor_logprobs, -1.0),
            importance_weights=with_other_junk(inputs.importance_weights, 0.25),
            reference_logprobs=with_other_junk(inputs.reference_logprobs, -4.0),
        ),
        settings,
    )
    assert other.loss.item() == outputs.loss.item()
    assert torch.equal(other.clipped, outputs.clipped)


@pytest.mark.parametrize("bounds", [(0, 1, 4), (0, 3, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up_to_the_whole(loss: str, bounds: tuple[int, ...]) -> None:
    settings = replace(SETTINGS, kl_coefficient=0.1)
    inputs = make_inputs(with_reference=True)
    whole, gradient = run(loss, inputs, settings)
    parts = [
        run(loss, part_of(inputs, slice(low, high)), settings) for low, high in pairwise(bounds)
    ]
    total = sum(outputs.loss.item() for outputs, _ in parts)
    assert total == pytest.approx(whole.loss.item(), rel=1e-12)
    assert sum(o.kl.item() for o, _ in parts) == pytest.approx(whole.kl.item(), rel=1e-12)
    joined = torch.cat([slopes for _, slopes in parts])
    torch.testing.assert_close(joined, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_completion_without_signal_changes_nothing_but_the_counts(loss: str) -> None:
    """Computed or not, a rollout of advantage zero leaves loss and gradient as they are."""
    inputs = make_inputs()
    advantages = torch.tensor([2.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    with_c, gradient = run(loss, replace(inputs, advantages=advantages))
    kept = [0, 1, 3]
    without = LossInputs(
        policy_logprobs=inputs.policy_logprobs.detach()[kept].requires_grad_(),
        anchor_logprobs=inputs.anchor_logprobs[kept],
        importance_weights=inputs.importance_weights[kept],
        advantages=advantages[kept],
        completion_mask=inputs.completion_mask[kept],
        reference_logprobs=None,
    )
    without_c, kept_gradient = run(loss, without)
    assert with_c.loss.item() == pytest.approx(without_c.loss.item(), rel=1e-12)
    assert gradient[2].abs().sum() == 0
    torch.testing.assert_close(gradient[kept], kept_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "by_completions", "by_tokens"),
    [
        ("grpo", True, False),
        ("gspo", True, False),
        ("dr_grpo", True, False),
        ("dapo", False, True),
        ("cispo", False, True),
    ],
)
def test_what_each_loss_is_divided_by(loss: str, by_completions: bool, by_tokens: bool) -> None:
    value = run(loss, make_inputs())[0].loss.item()
    for counts, is_divided in (
        (UpdateCounts(10, 10), by_completions),
        (UpdateCounts(5, 20), by_tokens),
    ):
        halved = run(loss, make_inputs(), counts=counts)[0].loss.item()
        assert halved == pytest.approx(value / 2 if is_divided else value, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_at_the_anchor_the_gradient_is_the_plain_policy_gradient(loss: str) -> None:
    """Ratio 1 exactly, in float32 too: nothing is clipped and each token's slope is −A / divisor."""
    mask = make_inputs().completion_mask
    policy = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inputs = LossInputs(
        policy_logprobs=policy,
        anchor_logprobs=policy.detach(),
        importance_weights=torch.ones(4, 3),
        advantages=torch.tensor(ADVANTAGES),
        completion_mask=mask,
        reference_logprobs=None,
    )
    outputs, gradient = run(loss, inputs)
    lengths = mask.sum(-1, keepdim=True)
    divisor = {
        "grpo": 5 * lengths,
        "gspo": 5 * lengths,
        "dapo": torch.tensor(10),
        "cispo": torch.tensor(10),
        "dr_grpo": torch.tensor(20),
    }[loss]
    expected = torch.where(mask, -torch.tensor(ADVANTAGES)[:, None] / divisor, 0.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)
    assert outputs.clipped.sum() == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope", "clipped"),
    [
        (1.49, 1.0, 1.49, 0),
        (1.51, 1.0, 0.0, 1),
        (0.1, 1.0, 0.1, 0),
        (0.76, -1.0, -0.76, 0),
        (0.74, -1.0, 0.0, 1),
        (50.0, -1.0, -50.0, 0),
        (1.51, 0.0, 0.0, 0),
    ],
)
@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_where_the_clip_stops_the_gradient(
    loss: str, ratio: float, advantage: float, slope: float, clipped: int
) -> None:
    policy = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(
        policy_logprobs=policy,
        anchor_logprobs=policy.detach() - log(ratio),
        importance_weights=torch.ones(1, 1, dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        completion_mask=torch.tensor([[True]]),
        reference_logprobs=None,
    )
    settings = replace(SETTINGS, max_completion_tokens=1)
    outputs, gradient = run(loss, inputs, settings, UpdateCounts(1, 1))
    assert gradient.item() == pytest.approx(-slope, rel=1e-12)
    assert outputs.clipped.tolist() == [[clipped]]
