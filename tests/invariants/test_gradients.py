"""Invariants 3 to 7: the gradient is that of the plain formula, however the work is cut."""

import pytest
import torch
from torch import Tensor

from rft.attention import use_layouts
from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.training.advantages import advantages
from rft.training.batch import TrainingGroup, cut_to_budget, micro_batches, training_groups
from rft.training.ranks import Ranks
from rft.training.update import Updater
from rft.types import Group
from tests.jobs import group, resolved_job
from tests.tiny import FAMILIES, tiny_model, tiny_policy

TEMPERATURE = 0.8


def ids(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(4, 250, (length,), generator=generator).tolist())


GROUPS = [
    TokenGroup(ids(1, 19), (ids(2, 12), ids(3, 1), ids(4, 7), (*ids(5, 9), 2))),
    TokenGroup(ids(6, 3), (ids(7, 2), ids(8, 15))),
]


def gradients(policy: Policy) -> dict[str, Tensor]:
    """The gradient of each LoRA matrix, taken away from the policy."""
    found = {}
    for name, parameter in policy.parameters().items():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


def relative_l2(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of any tensor."""
    assert found.keys() == expected.keys()
    assert any(".lora_A." in name for name in found) and any(".lora_B." in name for name in found)
    assert all(expected[name].norm() > 0 for name in expected)
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


def plain_logprobs(
    policy: Policy, groups: list[TokenGroup], temperature: float = TEMPERATURE
) -> list[Tensor]:
    """Each completion in a row of its own through the model's own attention and head."""
    policy.base.set_attn_implementation("eager")
    rows = []
    for one in groups:
        for completion in one.completions:
            row = torch.tensor([one.prompt_ids + completion])
            logits = policy.base(input_ids=row, use_cache=False).logits[0]
            logprobs = (logits.float() / temperature).log_softmax(-1)
            predicting = logprobs[len(one.prompt_ids) - 1 : -1]
            rows.append(predicting.gather(1, torch.tensor(completion)[:, None])[:, 0])
    policy.base.set_attn_implementation("rft_layout")
    return rows


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logprobs_and_gradients_are_the_plain_ones(family: str, checkpointing: bool) -> None:
    policy = tiny_policy(family, checkpointing)
    batch = pack(GROUPS, policy.device)
    with policy.updating():
        logprobs = policy.score(batch, TEMPERATURE).logprobs
        weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(9))
        (logprobs * weights).sum().backward()
    packed = gradients(policy)
    plain = plain_logprobs(policy, GROUPS)
    for row, expected in zip(logprobs, plain, strict=True):
        assert torch.allclose(row[: len(expected)], expected, atol=5e-5)
        assert not row[len(expected) :].any()
    sum((r * w[: len(r)]).sum() for r, w in zip(plain, weights, strict=True)).backward()
    assert relative_l2(packed, gradients(policy)) < 1e-4


def sample_groups() -> list[Group]:
    """Signal, no signal, an ungraded rollout, a truncated one, unequal lengths."""
    return [
        group(0, ids(1, 9), [ids(2, 5), ids(3, 8), ids(4, 2)], [1.0, 0.0, 0.5], truncated=(1,)),
        group(1, ids(5, 4), [ids(6, 3), ids(7, 6)], [0.3, 0.3]),
        group(2, ids(8, 12), [ids(9, 7), ids(10, 4), ids(11, 1)], [0.0, None, 2.0]),
        group(3, ids(12, 6), [ids(13, 5), ids(14, 5)], [0.9, 0.1]),
    ]


def updater_of(policy: Policy, *overrides: str, exact: bool = True) -> Updater:
    return Updater(resolved_job(*overrides), policy, Ranks(use_cpu=True), 10, exact)


def members() -> list[TrainingGroup]:
    groups = sample_groups()
    return training_groups(groups, advantages(groups, "group"), mask_truncated=False)


def gradient_of(policy: Policy, groups: list[TrainingGroup], *overrides: str) -> dict[str, Tensor]:
    updater_of(policy, *overrides).accumulate_gradients(1, groups, None)
    return gradients(policy)


ALL_LOSSES = ["grpo", "dapo", "dr_grpo", "cispo", "gspo"]


@pytest.mark.parametrize("kl", [0.0, 0.1], ids=["", "kl"])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_micro_batching_changes_nothing(loss: str, kl: float) -> None:
    """Whole groups together, each alone, cut into parts, and each completion alone."""
    policy = tiny_policy()
    keys = (f"engine.training.loss={loss}", f"engine.training.kl_coefficient={kl}")
    whole = gradient_of(policy, members(), *keys, "engine.training.token_budget=100000")
    for budget in (40, 22, 20, 12, 1):
        cut = gradient_of(policy, members(), *keys, f"engine.training.token_budget={budget}")
        assert relative_l2(cut, whole) < 1e-5, budget


def test_the_budgets_cut_groups_at_different_places() -> None:
    """The groups have 21, 11, 18 and 14 packed tokens."""
    cuts = {
        budget: [
            [(part.ordinal, part.first, len(part.rollouts)) for part in batch.groups]
            for batch in micro_batches(
                cut_to_budget(members(), budget), budget, torch.device("cpu")
            )
        ]
        for budget in (100000, 40, 22, 20, 12, 1)
    }
    assert [len(batches) for batches in cuts.values()] == [1, 2, 4, 5, 8, 9]
    assert cuts[20][:2] == [[(0, 0, 1)], [(0, 1, 2)]]


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_anchored_gradients_of_parts_add_up(loss: str) -> None:
    """A second update, against anchors that differ from the policy token by token."""
    policy, groups = tiny_policy(), members()
    anchors = {
        one.ordinal: [
            [
                -0.02 * ((7 * n + 3 * i + one.ordinal) % 11) - 5
                for n in range(len(r.completion.token_ids))
            ]
            for i, r in enumerate(one.rollouts)
        ]
        for one in groups
    }
    key = f"engine.training.loss={loss}"
    found = []
    for budget in (100000, 1):
        updater = updater_of(policy, key, f"engine.training.token_budget={budget}")
        updater.accumulate_gradients(1, groups, anchors)
        found.append(gradients(policy))
    assert relative_l2(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "cispo", "gspo"])
def test_skipping_zero_signal_groups_leaves_the_gradient_as_it_was(loss: str) -> None:
    policy = tiny_policy()
    groups = members()
    assert [one.has_signal for one in groups] == [True, False, True, True]
    key = f"engine.training.loss={loss}"
    skipped = gradient_of(policy, groups, key)
    # with the KL term on nothing is skipped; its coefficient is too small to be seen
    computed = gradient_of(policy, groups, key, "engine.training.kl_coefficient=1e-30")
    assert relative_l2(skipped, computed) < 1e-5
    without = gradient_of(policy, [one for one in groups if one.has_signal], key)
    assert relative_l2(without, skipped) > 0.05


def test_the_first_update_has_ratio_one_and_the_gradient_of_reinforce() -> None:
    policy = tiny_policy()
    groups = members()
    sums = updater_of(policy).accumulate_gradients(1, groups, None)
    found = gradients(policy)
    assert sums.num_clipped == 0
    num_tokens = sum(len(r.completion.token_ids) for one in groups for r in one.rollouts)
    rows = plain_logprobs(policy, [one.tokens for one in groups], temperature=1.0)
    signals = [value for one in groups for value in one.advantages]
    objective = sum(a * row.sum() for a, row in zip(signals, rows, strict=True)) / num_tokens
    (-objective).backward()
    assert relative_l2(found, gradients(policy)) < 1e-4


def test_masked_truncated_and_ungraded_rollouts_do_not_count() -> None:
    groups = sample_groups()
    values = advantages(groups, "group")
    kept = training_groups(groups, values, mask_truncated=True)
    assert [len(one.rollouts) for one in kept] == [2, 2, 2, 2]
    # the truncated rollout still stands in its group's mean
    assert kept[0].advantages[0] == values[0][0]


def test_adapter_off_is_the_base_model_bit_for_bit() -> None:
    policy = tiny_policy()
    batch = pack(GROUPS, policy.device)
    bare = tiny_model()
    use_layouts(bare)
    with torch.no_grad():
        expected = bare.get_decoder()(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            layout=batch.layout,
        ).last_hidden_state
        with policy.adapter_off():
            found = policy.base.get_decoder()(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                layout=batch.layout,
            ).last_hidden_state
    assert torch.equal(found, expected)


def test_the_reference_is_the_base_and_its_kl_is_zero_where_the_adapter_is() -> None:
    policy = tiny_policy()
    batch = pack(GROUPS, policy.device)
    reference = policy.reference_logprobs(batch, TEMPERATURE)
    with torch.no_grad():
        current = policy.score(batch, TEMPERATURE).logprobs
        assert (current - reference).abs().mean() > 0.1
        for name, parameter in policy.parameters().items():
            if ".lora_B." in name:
                parameter.zero_()
        policy.refresh()
        found = policy.score(batch, TEMPERATURE).logprobs
        assert (found - reference).abs().max() < 1e-5
    assert all(p.requires_grad for p in policy.parameters().values())
