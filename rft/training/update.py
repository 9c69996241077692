"""One optimizer update: groups in micro-batches, one summed gradient, clip, AdamW.

B completions of a micro-batch, T tokens of its longest one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rft.failpoints import reach
from rft.job import ResolvedJob
from rft.policy import Policy
from rft.training.batch import Batch, TrainingGroup, anchors_of, update_counts
from rft.training.loss import LOSSES, LossInputs, LossSettings, UpdateCounts
from rft.training.optimization import (
    clip_gradients,
    learning_rate_factor,
    new_optimizer,
    set_learning_rate,
)
from rft.training.passes import Passes
from rft.training.ranks import Ranks
from rft.training.sizes import prompt_copy_cost

Anchors = Mapping[int, Sequence[Sequence[float]]]
"""Logprobs before the step's first update, by group ordinal, completion and token."""

ScoredPart = tuple[int, int, list[list[float]]]
"""A group's ordinal, the index of the part's first completion, and the logprobs of its completions."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What the micro-batches of an update add up to, over all ranks."""

    loss: float
    """Policy term + kl_coefficient · KL term."""
    policy_loss: float
    kl: float
    """The KL term before its coefficient."""
    num_tokens: int
    """Completion tokens that were computed."""
    entropy: float
    """Over those tokens, nats."""
    num_clipped: int
    """Tokens whose gradient the clip stopped."""
    gap: float
    """Σ |policy − sampling logprob|, nats."""
    gap_max: float
    num_input_tokens: int
    """Tokens that went through the model: what prompts begin with once a micro-batch, the rest of each once a
    group or part, completions without their last."""


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update."""

    sums: Sums
    gradient_norm: float
    """Of the summed gradient, before clipping."""
    update_norm: float
    """Of the change of the LoRA matrices."""
    learning_rate: float
    is_skipped: bool
    """The gradient was not finite, so nothing was changed."""


class Updater:
    """Owns the optimizer of the policy's LoRA matrices."""

    def __init__(
        self,
        job: ResolvedJob,
        policy: Policy,
        ranks: Ranks,
        total_steps: int,
        sampler_is_exact: bool,
        make_room: Callable[[], bool] = bool,
    ):
        """`make_room`: has the sampler give back memory that it keeps; whether there was any (by default none)."""
        self._settings = job.engine.training
        self._temperature = job.engine.rollout.temperature
        self._seed = job.seed
        self._peak_rate = job.effective_learning_rate
        self._loss_settings = LossSettings(
            clip_low=self._settings.clip_low,
            clip_high=self._settings.clip_high,
            kl_coefficient=self._settings.kl_coefficient,
            max_completion_tokens=job.engine.rollout.max_completion_tokens,
        )
        self._policy = policy
        self._ranks = ranks
        self._total_steps = total_steps
        self._sampler_is_exact = sampler_is_exact
        has_reference = self._settings.kl_coefficient > 0
        copy_cost = prompt_copy_cost(
            policy.base.config, policy.base.dtype, self._settings.gradient_checkpointing
        )
        budget = self._settings.token_budget
        self.passes = Passes(policy, ranks, budget, has_reference, make_room, copy_cost)
        self.optimizer = new_optimizer(
            policy.parameters(), self._settings.betas, self._settings.weight_decay
        )

    def update(
        self,
        step: int,
        groups: Sequence[TrainingGroup],
        anchors: Anchors | None,
        number: int = 0,
    ) -> Update:
        """Change the policy by one AdamW step on the groups of all ranks; `number`: of the update in its step.

        Where no group has a signal, or the gradient is not finite, nothing changes, the optimizer's
        moments included.
        """
        sums = self.accumulate_gradients(step, groups, anchors, number)
        parameters = list(self._policy.parameters().values())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = clip_gradients(gradients, self._settings.max_grad_norm)
        rate = self._peak_rate * learning_rate_factor(
            step, self._total_steps, self._settings.warmup_steps, self._settings.schedule
        )
        before = [parameter.detach().clone() for parameter in parameters]
        is_finite = math.isfinite(norm)
        reach("update.gradients")
        if sums.num_tokens > 0 and is_finite:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        reach("update.stepped")
        self.optimizer.zero_grad(set_to_none=True)
        changes = [(p.detach() - old).norm() for p, old in zip(parameters, before, strict=True)]
        return Update(sums, norm, float(torch.stack(changes).norm()), rate, not is_finite)

    def accumulate_gradients(
        self,
        step: int,
        groups: Sequence[TrainingGroup],
        anchors: Anchors | None,
        number: int = 0,
    ) -> Sums:
        """Leave the gradient of the whole update in the parameters, the same on every rank.

        Groups without signal have a zero gradient and are not computed (they stay in the counts),
        unless the KL term is on.
        """
        self._policy.refresh()
        counts = update_counts(groups)
        needed = [g for g in groups if g.has_signal or self._settings.kl_coefficient > 0]

        def backward(index: int, batch: Batch) -> Sums:
            with self._counted_dropout(step, number, index):
                return self._backward(batch, anchors, counts)

        sums = self.passes.over(needed, backward, self._policy.updating)
        parameters = list(self._policy.parameters().values())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._ranks.sum_into([p.grad for p in parameters if p.grad is not None])
        return _total(sums)

    def anchors(self, groups: Sequence[TrainingGroup]) -> Anchors:
        """The logprobs of a step's completions before its first update.

        An exact sampler recorded them; otherwise the trainer computes them in a pass of its own.
        """
        if self._sampler_is_exact:
            return {
                group.ordinal: [r.completion.sampling_logprobs for r in group.rollouts]
                for group in groups
            }
        scored = self.passes.over(groups, self._score, torch.no_grad)
        parts = [part for batch in scored for part in batch]
        anchors: dict[int, list[list[float]]] = {group.ordinal: [] for group in groups}
        for ordinal, _, rows in sorted(parts, key=lambda part: part[:2]):
            anchors[ordinal] += rows
        return anchors

    def _score(self, index: int, batch: Batch) -> list[ScoredPart]:
        logprobs = self._policy.score(batch.packed, self._temperature).logprobs.tolist()
        lengths = batch.packed.completion_mask.sum(-1).tolist()
        rows = iter([row[:length] for row, length in zip(logprobs, lengths, strict=True)])
        return [
            (group.ordinal, group.first, [next(rows) for _ in group.rollouts])
            for group in batch.groups
        ]

    def _backward(self, batch: Batch, anchors: Anchors | None, counts: UpdateCounts) -> Sums:
        """Add one micro-batch's part of the update's gradient."""
        packed, mask = batch.packed, batch.packed.completion_mask
        reference = None
        if self._settings.kl_coefficient > 0:
            reference = self._policy.reference_logprobs(packed, self._temperature)
        scored = self._policy.score(packed, self._temperature)
        current = scored.logprobs.detach()
        anchor = current if anchors is None else anchors_of(batch, anchors, current.device)
        inputs = LossInputs(
            policy_logprobs=scored.logprobs,
            anchor_logprobs=anchor,
            importance_weights=self._importance_weights(anchor, batch.sampling_logprobs),
            advantages=batch.advantages,
            completion_mask=mask,
            reference_logprobs=reference,
        )
        outputs = LOSSES[self._settings.loss](inputs, self._loss_settings, counts)
        outputs.loss.backward()  # type: ignore[no-untyped-call]
        reach("update.backward")
        gap = torch.where(mask, current - batch.sampling_logprobs, 0.0).abs()
        return Sums(
            loss=float(outputs.loss.detach()),
            policy_loss=float(outputs.policy),
            kl=float(outputs.kl),
            num_tokens=int(mask.sum()),
            entropy=float(scored.entropies.sum()),
            num_clipped=int(outputs.clipped.sum()),
            gap=float(gap.sum()),
            gap_max=float(gap.max()),
            num_input_tokens=packed.num_tokens,
        )

    def _importance_weights(
        self, anchor: Float[Tensor, "B T"], sampling: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """min(exp(anchor − sampling), cap) (Yao et al. 2025, truncated importance sampling); 1 where the
        sampler draws from exactly the policy that the trainer sees."""
        if self._sampler_is_exact:
            return torch.ones_like(sampling)
        return torch.exp(anchor - sampling).clamp(max=self._settings.importance_cap)

    @contextmanager
    def _counted_dropout(self, step: int, number: int, index: int) -> Iterator[None]:
        """Make dropout, if the job has any, a function of seed, step, update, rank and micro-batch."""
        devices = [self._policy.device] if self._policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            key = np.random.SeedSequence([self._seed, step, self._ranks.rank, index, number])
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            yield


def _total(parts: Sequence[Sums]) -> Sums:
    return Sums(
        loss=sum(part.loss for part in parts),
        policy_loss=sum(part.policy_loss for part in parts),
        kl=sum(part.kl for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        entropy=sum(part.entropy for part in parts),
        num_clipped=sum(part.num_clipped for part in parts),
        gap=sum(part.gap for part in parts),
        gap_max=max((part.gap_max for part in parts), default=0.0),
        num_input_tokens=sum(part.num_input_tokens for part in parts),
    )
