"""One optimizer update of a small real policy: what is computed, weighted, divided and changed."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from made import make_completion, make_job, make_training_group
from torch import Tensor

from rft.policy import LoraShape, Policy, new_policy
from rft.training.batch import TrainingGroup, micro_batches
from rft.training.ranks import Ranks
from rft.training.update import Anchors, Updater
from tests.tiny import make_adapter_large, tiny_model, tiny_policy

CPU = torch.device("cpu")


def make_updater(
    policy: Policy, *overrides: str, is_exact: bool = True, total_steps: int = 10
) -> Updater:
    return Updater(make_job(*overrides), policy, Ranks(use_cpu=True), total_steps, is_exact)


def group_of(advantages: Sequence[float], ordinal: int = 0, num_tokens: int = 3) -> TrainingGroup:
    completions = [
        make_completion([(17 * ordinal + 5 * i + n) % 260 for n in range(num_tokens + i)])
        for i in range(len(advantages))
    ]
    return make_training_group(completions, advantages, ordinal, prompt_ids=(40 + ordinal, 41, 42))


def sampled_from(
    policy: Policy, groups: Sequence[TrainingGroup], shift: float = 0.0
) -> list[TrainingGroup]:
    """The groups with the sampling logprobs of the policy, minus `shift` nats per token."""
    anchors = make_updater(policy, is_exact=False).anchors(groups)
    return [
        replace(
            group,
            rollouts=tuple(
                replace(
                    rollout,
                    completion=replace(
                        rollout.completion, sampling_logprobs=tuple(x - shift for x in row)
                    ),
                )
                for rollout, row in zip(group.rollouts, anchors[group.ordinal], strict=True)
            ),
        )
        for group in groups
    ]


def gradient_of(
    policy: Policy,
    groups: Sequence[TrainingGroup],
    *overrides: str,
    is_exact: bool = True,
    step: int = 1,
    anchors: Anchors | None = None,
    number: int = 0,
) -> Tensor:
    """The update's gradient as one vector."""
    updater = make_updater(policy, *overrides, is_exact=is_exact)
    updater.accumulate_gradients(step, groups, anchors, number)
    parts = [p.grad.flatten() for p in policy.parameters().values() if p.grad is not None]
    updater.optimizer.zero_grad(set_to_none=True)
    return torch.cat(parts)


def weights_of(policy: Policy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters().values()]).clone()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    assert expected.norm() > 1e-4
    return float((found - expected).norm() / expected.norm()) < tolerance


@pytest.fixture
def policy() -> Policy:
    return tiny_policy()


LIVELY, DULL = group_of((1.0, -1.0)), group_of((0.0, 0.0, 0.0), ordinal=1)
"""7 tokens in 2 completions, 12 tokens in 3."""


@pytest.mark.parametrize(
    ("loss", "share"), [("dapo", 7 / 19), ("cispo", 7 / 19), ("grpo", 2 / 5), ("dr_grpo", 2 / 5)]
)
def test_a_group_without_signal_counts_in_the_divisor_but_is_not_computed(
    policy: Policy, loss: str, share: float
) -> None:
    override = f"engine.training.loss={loss}"
    alone, both = (gradient_of(policy, groups, override) for groups in ([LIVELY], [LIVELY, DULL]))
    assert close(both, alone * share)
    sums = make_updater(policy, override).accumulate_gradients(1, [LIVELY, DULL], None)
    assert sums.num_tokens == 7


def test_with_the_kl_term_on_every_group_is_computed(policy: Policy) -> None:
    updater = make_updater(policy, "engine.training.kl_coefficient=0.1")
    sums = updater.accumulate_gradients(1, [LIVELY, DULL], None)
    assert sums.num_tokens == 19
    assert sums.kl > 0.01
    assert sums.loss == pytest.approx(sums.policy_loss + 0.1 * sums.kl, rel=1e-5)


def test_the_kl_term_pulls_towards_the_reference(policy: Policy) -> None:
    """Σₜ exp(d) − d − 1 over Σ|oᵢ|, d = reference − policy, from two plain scoring passes."""
    (batch,) = micro_batches([LIVELY], 1000, CPU)
    scored = policy.score(batch.packed, 1.0).logprobs
    difference = policy.reference_logprobs(batch.packed, 1.0) - scored
    kl = (difference.exp() - difference - 1).sum() / 7
    sums = make_updater(policy, "engine.training.kl_coefficient=0.5").accumulate_gradients(
        1, [LIVELY], None
    )
    assert sums.kl == pytest.approx(kl.item(), rel=1e-5)


def test_without_any_signal_nothing_changes(policy: Policy) -> None:
    before = weights_of(policy)
    updater = make_updater(policy, "engine.training.weight_decay=0.5")
    update = updater.update(1, [DULL], None)
    assert torch.equal(weights_of(policy), before)
    assert (update.gradient_norm, update.update_norm, update.sums.num_tokens) == (0, 0, 0)
    assert updater.optimizer.state == {}
    assert updater.update(1, [], None).sums.loss == 0


def test_the_first_update_moves_every_weight_by_the_learning_rate(policy: Policy) -> None:
    """AdamW's first step is −lr · sign(gradient) where the gradient is not tiny."""
    before, gradient = weights_of(policy), gradient_of(policy, [LIVELY])
    updater = make_updater(policy, "engine.training.max_grad_norm=1e9")
    update = updater.update(1, [LIVELY], None)
    change = weights_of(policy) - before
    large = gradient.abs() > 1e-4
    assert large.sum() > 1000
    torch.testing.assert_close(change[large], -0.01 * gradient[large].sign(), rtol=1e-3, atol=1e-6)
    assert update.learning_rate == 0.01
    assert update.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert update.update_norm == pytest.approx(change.norm().item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in policy.parameters().values())


def test_an_update_raises_what_scored_well(policy: Policy) -> None:
    (batch,) = micro_batches([LIVELY], 1000, CPU)
    before = policy.score(batch.packed, 1.0).logprobs.sum(-1)
    make_updater(policy).update(1, [LIVELY], None)
    policy.refresh()
    good, bad = (policy.score(batch.packed, 1.0).logprobs.sum(-1) - before).tolist()
    assert good > 0.1 and bad < -0.1


@pytest.mark.parametrize(
    ("overrides", "step", "rate"),
    [
        ([], 1, 0.01),
        (["engine.training.warmup_steps=4"], 1, 0.0025),
        (["engine.training.schedule=linear"], 6, 0.005),
        (["method.reinforcement.hyperparameters.learning_rate_multiplier=0.5"], 3, 0.005),
    ],
)
def test_the_learning_rate_of_a_step(
    policy: Policy, overrides: list[str], step: int, rate: float
) -> None:
    updater = make_updater(policy, *overrides)
    assert updater.update(step, [LIVELY], None).learning_rate == pytest.approx(rate, rel=1e-12)
    assert updater.optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)


def test_the_norm_is_reported_before_clipping(policy: Policy) -> None:
    norm = gradient_of(policy, [LIVELY]).norm().item()
    limit = norm / 3
    updater = make_updater(policy, f"engine.training.max_grad_norm={limit}")
    assert updater.update(1, [LIVELY], None).gradient_norm == pytest.approx(norm, rel=1e-5)
    first_moment = torch.cat(
        [updater.optimizer.state[p]["exp_avg"].flatten() for p in policy.parameters().values()]
    )
    assert first_moment.norm().item() == pytest.approx(0.1 * limit, rel=1e-4)


@pytest.mark.parametrize("token_budget", [1, 12, 1000])
def test_the_token_budget_changes_nothing(policy: Policy, token_budget: int) -> None:
    groups = [LIVELY, group_of((0.5, -0.25, -0.25), ordinal=1), group_of((2.0, -2.0), 2, 1)]
    whole = gradient_of(policy, groups, "engine.training.token_budget=100000")
    parts = gradient_of(policy, groups, f"engine.training.token_budget={token_budget}")
    assert close(parts, whole)


@pytest.mark.parametrize(
    ("shift", "is_exact", "factor"),
    [
        (math.log(1.5), False, 1.5),
        (math.log(4.0), False, 2.0),
        (math.log(0.25), False, 0.25),
        (math.log(4.0), True, 1.0),
    ],
)
def test_importance_weights_are_truncated_and_absent_with_an_exact_sampler(
    policy: Policy, shift: float, is_exact: bool, factor: float
) -> None:
    """The sampler's logprobs lie `shift` nats below the trainer's; the cap is 2."""
    plain = gradient_of(policy, [LIVELY])
    groups = sampled_from(policy, [LIVELY], shift)
    assert close(gradient_of(policy, groups, is_exact=is_exact), plain * factor, 1e-4)


@pytest.mark.parametrize("token_budget", [1, 1000])
def test_the_gap_between_sampler_and_trainer(policy: Policy, token_budget: int) -> None:
    """7 tokens a quarter of a nat apart, 9 tokens half a nat, in one micro-batch or two."""
    near = sampled_from(policy, [LIVELY], shift=0.25)
    far = sampled_from(policy, [group_of((1.0, -1.0), ordinal=1, num_tokens=4)], shift=-0.5)
    updater = make_updater(policy, f"engine.training.token_budget={token_budget}")
    sums = updater.accumulate_gradients(1, near + far, None)
    assert sums.num_tokens == 16
    assert sums.gap == pytest.approx(7 * 0.25 + 9 * 0.5, rel=1e-4)
    assert sums.gap_max == pytest.approx(0.5, rel=1e-4)


def test_anchors_of_an_exact_sampler_are_what_it_recorded(policy: Policy) -> None:
    anchors = make_updater(policy).anchors([LIVELY])
    assert anchors == {0: [(-1.0,) * 3, (-1.0,) * 4]}


def test_other_anchors_are_computed_token_by_token(policy: Policy) -> None:
    groups = [LIVELY, group_of((1.0, -1.0, 0.0), ordinal=9)]
    anchors = make_updater(policy, "engine.training.token_budget=1", is_exact=False).anchors(groups)
    assert {ordinal: [len(row) for row in rows] for ordinal, rows in anchors.items()} == {
        0: [3, 4],
        9: [3, 4, 5],
    }
    for group in groups:
        (batch,) = micro_batches([group], 1000, CPU)
        logprobs = policy.score(batch.packed, 1.0).logprobs[batch.packed.completion_mask]
        found = [value for row in anchors[group.ordinal] for value in row]
        assert found == pytest.approx(logprobs.tolist(), abs=1e-5)


def test_a_second_update_is_clipped_against_the_anchors(policy: Policy) -> None:
    groups = sampled_from(policy, [LIVELY])
    updater = make_updater(policy, "engine.training.num_iterations=2")
    anchors = updater.anchors(groups)
    first, second = (updater.update(1, groups, anchors) for _ in range(2))
    assert first.sums.num_clipped == 0
    assert first.sums.policy_loss == pytest.approx(1 / 7, rel=1e-4)  # −(3·1 − 4·1) / 7 at ratio 1
    assert second.sums.num_clipped > 0


def test_an_anchored_gradient_at_ratio_one_is_the_unanchored_one(policy: Policy) -> None:
    groups = sampled_from(policy, [LIVELY])
    anchors = make_updater(policy).anchors(groups)
    assert close(gradient_of(policy, groups, anchors=anchors), gradient_of(policy, groups))


def test_a_ratio_against_lower_anchors_scales_the_gradient(policy: Policy) -> None:
    """Anchors ln 1.25 below the policy: ratio 1.25, inside the clip of 1.28."""
    groups = sampled_from(policy, [LIVELY])
    rows = make_updater(policy).anchors(groups)[0]
    anchors = {0: [[value - math.log(1.25) for value in row] for row in rows]}
    anchored = gradient_of(policy, groups, anchors=anchors)
    assert close(anchored, gradient_of(policy, groups) * 1.25, 1e-4)


def test_dropout_is_counted() -> None:
    policy = new_policy(tiny_model(), LoraShape(rank=4, alpha=8, dropout=0.5), 0)
    make_adapter_large(policy)
    state = torch.get_rng_state()
    first, again, later = (gradient_of(policy, [LIVELY], step=step) for step in (1, 1, 2))
    other_seed = gradient_of(policy, [LIVELY], "seed=8")
    next_update = gradient_of(policy, [LIVELY], number=1)
    assert torch.equal(first, again)
    assert not any(close(other, first, 0.01) for other in (later, other_seed, next_update))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_entropy_is_summed_over_computed_tokens(policy: Policy, temperature: float) -> None:
    (batch,) = micro_batches([LIVELY], 1000, CPU)
    expected = policy.score(batch.packed, temperature).entropies.sum().item()
    updater = make_updater(policy, f"engine.rollout.temperature={temperature}")
    sums = updater.accumulate_gradients(1, [LIVELY, DULL], None)
    assert sums.entropy == pytest.approx(expected, rel=1e-5)


def test_a_gradient_that_is_not_finite_changes_nothing(policy: Policy) -> None:
    updater = make_updater(policy)
    before = {name: p.detach().clone() for name, p in policy.parameters().items()}
    broken = group_of((float("inf"), -1.0))
    update = updater.update(1, [broken], None)
    assert update.is_skipped and update.update_norm == 0
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters().items())
    assert not updater.optimizer.state
