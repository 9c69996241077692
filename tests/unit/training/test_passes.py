"""What happens when memory runs out in an update: less at once, the same result, or a clear end."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from made import make_completion, make_job, make_training_group

from rft.errors import MachineError
from rft.packing import PackedBatch
from rft.policy import LoraShape, Policy, Scored, new_policy
from rft.training.batch import TrainingGroup
from rft.training.ranks import Ranks
from rft.training.update import Update, Updater
from tests.tiny import make_adapter_large, tiny_model, tiny_policy


def absurd_allocation() -> None:
    """A real failure of the CPU allocator: a hundred thousand terabytes."""
    torch.empty(10**17, dtype=torch.uint8)


def device_failure() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@dataclass
class Shortage:
    """Lets a policy run out of memory after its model has run, when `strikes(call, batch)` says so."""

    strikes: Callable[[int, PackedBatch], bool]
    fail: Callable[[], None] = device_failure
    sizes: list[int] = field(default_factory=list)
    """Input tokens of each call."""
    graphs: list[Any] = field(default_factory=list)

    def put_on(self, policy: Policy) -> None:
        score = policy.score

        def short(batch: PackedBatch, temperature: float) -> Scored:
            if self.graphs:
                assert all(graph() is None for graph in self.graphs), "an earlier graph is alive"
            scored = score(batch, temperature)
            self.sizes.append(batch.num_tokens)
            if self.strikes(len(self.sizes), batch):
                self.graphs.append(weakref.ref(scored.logprobs))
                self.fail()
            return scored

        policy.score = short  # type: ignore[method-assign]


def group_of(ordinal: int, lengths: Sequence[int]) -> TrainingGroup:
    """Distinct tokens; advantages of alternating sign."""
    completions = [
        make_completion([(31 * ordinal + 7 * i + n) % 250 + 4 for n in range(length)])
        for i, length in enumerate(lengths)
    ]
    advantages = [(-1.0) ** i * (1 + i / 4) for i in range(len(lengths))]
    return make_training_group(completions, advantages, ordinal, (40 + ordinal, 41, 42))


GROUPS = [group_of(0, (6, 4, 9, 2)), group_of(1, (5, 5, 3)), group_of(2, (8, 1))]
"""3 + 17, 3 + 10 and 3 + 7 input tokens."""


def make_updater(
    policy: Policy,
    budget: int,
    *overrides: str,
    exact: bool = True,
    make_room: Callable[[], bool] = bool,
) -> Updater:
    job = make_job(f"engine.training.token_budget={budget}", *overrides)
    return Updater(job, policy, Ranks(use_cpu=True), 10, exact, make_room)


def updated(
    policy: Policy, budget: int, *overrides: str, steps: int = 2
) -> tuple[list[Update], Updater, list[torch.Tensor]]:
    """Some updates, then weights and moments."""
    updater = make_updater(policy, budget, *overrides)
    updates = [updater.update(step, GROUPS, None) for step in range(1, 1 + steps)]
    parameters = list(policy.parameters().values())
    moments = [t for p in parameters for t in updater.optimizer.state[p].values()]
    return updates, updater, [*(p.detach().clone() for p in parameters), *moments]


@pytest.mark.parametrize("fail", [device_failure, absurd_allocation])
@pytest.mark.parametrize("call", [1, 2])
def test_the_update_is_done_again_as_if_begun_with_half_of_the_largest(
    fail: Callable[[], None], call: int
) -> None:
    """Of 24 tokens: [20], [13 + 10]; of 11: more and smaller ones. Both updates are compared, to the bit."""
    expected_updates, _, expected = updated(tiny_policy(), 11)
    policy = tiny_policy()
    shortage = Shortage(lambda n, _: n == call, fail)
    shortage.put_on(policy)
    found_updates, updater, found = updated(policy, 24)
    assert len(shortage.graphs) == 1 and shortage.sizes[0] == 20
    assert updater.passes.token_budget == 11
    assert max(shortage.sizes[call:]) == 11
    assert found_updates == expected_updates
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(parameter.grad is None for parameter in policy.parameters().values())


@pytest.mark.parametrize("budget", [100, 4096])
def test_micro_batches_are_halved_until_they_fit(budget: int) -> None:
    """However far the budget lies above what there is: 43 tokens, 20, then at most 11."""
    policy = tiny_policy()
    shortage = Shortage(lambda _, batch: batch.num_tokens > 12, absurd_allocation)
    shortage.put_on(policy)
    _, updater, found = updated(policy, budget)
    assert shortage.sizes[:2] == [43, 20] and max(shortage.sizes[2:]) == 11
    assert updater.passes.token_budget == 10
    _, _, expected = updated(tiny_policy(), 10)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_the_sampler_keeps_is_given_back_before_anything_is_halved() -> None:
    """The pass is done again as it was, once; when memory runs out again, with half of it."""
    for num_failures, budget in ((1, 24), (2, 11)):
        policy, has_kept = tiny_policy(), [True]
        Shortage(lambda n, _, most=num_failures: n <= most).put_on(policy)
        updater = make_updater(
            policy, 24, make_room=lambda kept=has_kept: bool(kept and kept.pop())
        )
        updater.update(1, GROUPS, None)
        assert has_kept == [] and updater.passes.token_budget == budget


def test_dropout_is_the_same_when_an_update_is_done_again() -> None:
    def dropping() -> Policy:
        policy = new_policy(tiny_model(), LoraShape(rank=4, alpha=8, dropout=0.5), 0)
        make_adapter_large(policy)
        return policy

    kl = "engine.training.kl_coefficient=0.1"
    _, _, expected = updated(dropping(), 11, kl, steps=1)
    policy = dropping()
    # the reference's pass comes first, without dropout: running out in it must not switch dropout off
    Shortage(lambda call, _: call == 1).put_on(policy)
    _, updater, found = updated(policy, 24, kl, steps=1)
    assert updater.passes.token_budget == 11
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_anchors_are_computed_in_less_at_once_too() -> None:
    expected = make_updater(tiny_policy(), 11, exact=False).anchors(GROUPS)
    policy = tiny_policy()
    Shortage(lambda _, batch: batch.num_tokens > 12).put_on(policy)
    updater = make_updater(policy, 25, exact=False)
    assert updater.anchors(GROUPS) == expected
    assert updater.passes.token_budget == 11  # half of 23
    assert [[len(row) for row in expected[n]] for n in (0, 1, 2)] == [
        [6, 4, 9, 2],
        [5, 5, 3],
        [8, 1],
    ]


def test_where_one_completion_does_not_fit_the_job_ends_with_a_remedy() -> None:
    policy = tiny_policy()
    shortage = Shortage(lambda _, batch: batch.num_tokens >= 10, absurd_allocation)
    shortage.put_on(policy)
    updater = make_updater(policy, 64)
    before = [parameter.detach().clone() for parameter in policy.parameters().values()]
    with pytest.raises(MachineError, match="a single completion") as raised:
        updater.update(1, GROUPS, None)
    (problem,) = raised.value.problems
    assert "gradient_checkpointing=true" in problem.remedy
    assert "max_completion_tokens" in problem.remedy and "quantization" in problem.remedy
    # the completion of 9 tokens with its prompt of 3, alone: no smaller budget could help
    assert shortage.sizes[-1] == 11
    assert not updater.optimizer.state
    after = policy.parameters().values()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(parameter.grad is None for parameter in after)


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    policy = tiny_policy()
    shortage = Shortage(lambda *_: True, broken)
    shortage.put_on(policy)
    updater = make_updater(policy, 24)
    with pytest.raises(RuntimeError, match="shapes"):
        updater.update(1, GROUPS, None)
    assert (len(shortage.sizes), updater.passes.token_budget) == (1, 24)
