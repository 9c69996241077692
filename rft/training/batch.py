"""Groups with advantages → the micro-batches of one update.

B completions of a micro-batch, T tokens of its longest one.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rft.packing import PackedBatch, TokenGroup, common_length, pack, row_size
from rft.training.loss import UpdateCounts
from rft.types import Group, Rollout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """The rollouts of one group that count in the loss, with their advantages."""

    ordinal: int
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]
    first: int = 0
    """Index of the first rollout among the group's; above 0 in a later part of a group that was cut."""

    @property
    def has_signal(self) -> bool:
        return any(advantage != 0 for advantage in self.advantages)

    @property
    def tokens(self) -> TokenGroup:
        completions = tuple(rollout.completion.token_ids for rollout in self.rollouts)
        allowed = tuple(rollout.completion.allowed_tokens for rollout in self.rollouts)
        return TokenGroup(self.prompt_ids, completions, allowed)

    @property
    def num_input_tokens(self) -> int:
        """Of its packed row: the prompt, and each completion without its last token."""
        completions = sum(len(rollout.completion.token_ids) - 1 for rollout in self.rollouts)
        return len(self.prompt_ids) + completions

    def part(self, begin: int, end: int) -> "TrainingGroup":
        """The prompt with the rollouts from `begin` up to `end`, counted from this one's first."""
        return replace(
            self,
            rollouts=self.rollouts[begin:end],
            advantages=self.advantages[begin:end],
            first=self.first + begin,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: groups, or parts of large ones, packed."""

    num_budget_tokens: int
    """Its size, as the token budget counts it."""
    groups: tuple[TrainingGroup, ...]
    packed: PackedBatch
    advantages: Float[Tensor, " B"]
    sampling_logprobs: Float[Tensor, "B T"]


def training_groups(
    groups: Sequence[Group],
    advantages: Sequence[tuple[float | None, ...]],
    mask_truncated: bool,
) -> list[TrainingGroup]:
    """Leave out what does not count: ungraded rollouts and, if asked, truncated ones."""
    result = []
    for group, values in zip(groups, advantages, strict=True):
        counted = [
            (rollout, value)
            for rollout, value in zip(group.rollouts, values, strict=True)
            if value is not None and not (mask_truncated and rollout.completion.is_truncated)
        ]
        if counted:
            rollouts, kept = zip(*counted, strict=True)
            result.append(TrainingGroup(group.ordinal, group.prompt.token_ids, rollouts, kept))
    return result


def update_counts(groups: Sequence[TrainingGroup]) -> UpdateCounts:
    """N and Σ|oᵢ| over all groups of the update, those without signal too; at least 1 each."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
    return UpdateCounts(max(1, len(rollouts)), max(1, num_tokens))


def cut_to_budget(
    groups: Sequence[TrainingGroup], token_budget: int, copy_cost: float = 0.0
) -> list[TrainingGroup]:
    """The groups in order, each that exceeds the budget alone cut into as few parts as are within it, of about
    the same size.

    A part is the prompt with consecutive completions: the prompt is computed again for each, and as the
    loss is a sum over completions, their gradients add up to the group's. One completion is never cut.
    """
    return [part for group in groups for part in _parts(group, token_budget, copy_cost)]


def micro_batches(
    groups: Sequence[TrainingGroup],
    token_budget: int,
    device: torch.device,
    copy_cost: float = 0.0,
    num_rows: Callable[[int], int] = int,
    are_apart: bool = False,
) -> list[Batch]:
    """Groups, in order, in as few micro-batches as hold their packed input within the budget, as
    `RowSize.budget_tokens` counts it, of about the same size; the rest as in `pack`.

    They come from `cut_to_budget`: only a single completion exceeds the budget, alone in its micro-batch.
    """
    if not groups:
        return []
    tokens = [group.tokens for group in groups]
    sizes = [row_size(group) for group in tokens]
    common = [common_length(a.prompt_ids, b.prompt_ids) for a, b in pairwise(groups)]

    def cut(budget: int) -> list[tuple[int, int]]:
        """Where micro-batches of at most so many tokens end, and their tokens."""
        found, size = [], sizes[0]
        for index in range(1, len(sizes)):
            larger = size.joined(sizes[index], common[index - 1])
            if larger.budget_tokens(copy_cost, are_apart) > budget:
                found.append((index, size.budget_tokens(copy_cost, are_apart)))
                larger = sizes[index]
            size = larger
        return [*found, (len(sizes), size.budget_tokens(copy_cost, are_apart))]

    ends = _even(cut, token_budget)
    firsts = [0, *(stop for stop, _ in ends)]
    return [
        _batch(
            num_tokens,
            groups[first:stop],
            pack(tokens[first:stop], device, num_rows=num_rows, are_apart=are_apart),
        )
        for first, (stop, num_tokens) in zip(firsts, ends, strict=False)
    ]


def padded(rows: Sequence[Sequence[float]], device: torch.device) -> Float[Tensor, "B T"]:
    """Ragged per-token values as one tensor, zero beyond each row's end."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows], device=device)


def anchors_of(
    batch: Batch, anchors: Mapping[int, Sequence[Sequence[float]]], device: torch.device
) -> Float[Tensor, "B T"]:
    """The recorded anchor logprobs of a micro-batch's completions."""
    rows = [
        row
        for group in batch.groups
        for row in anchors[group.ordinal][group.first : group.first + len(group.rollouts)]
    ]
    return padded(rows, device)


def _parts(group: TrainingGroup, token_budget: int, copy_cost: float) -> list[TrainingGroup]:
    copied = copy_cost * len(group.prompt_ids)
    costs = [len(rollout.completion.token_ids) - 1 + copied for rollout in group.rollouts]

    def stops(budget: int) -> list[int]:
        """Where parts of so many tokens end."""
        found, used = [], len(group.prompt_ids) + costs[0]
        for index, cost in enumerate(costs[1:], start=1):
            if used + cost > budget:
                found.append(index)
                used = len(group.prompt_ids)
            used += cost
        return [*found, len(costs)]

    bounds = [0, *_even(stops, token_budget)]
    if len(bounds) == 2:
        return [group]
    return [group.part(begin, end) for begin, end in pairwise(bounds)]


def _even(cut: Callable[[int], list[T]], token_budget: int) -> list[T]:
    """Pieces that are as few as the budget allows: those of the least budget that makes no more."""
    pieces = cut(token_budget)
    if len(pieces) == 1:
        return pieces
    least = bisect_left(range(token_budget), True, key=lambda b: len(cut(b)) <= len(pieces))
    return cut(least)


def _batch(num_tokens: int, groups: Sequence[TrainingGroup], packed: PackedBatch) -> Batch:
    device = packed.input_ids.device
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    advantages = [value for group in groups for value in group.advantages]
    return Batch(
        num_budget_tokens=num_tokens,
        groups=tuple(groups),
        packed=packed,
        advantages=torch.tensor(advantages, device=device, dtype=torch.float32),
        sampling_logprobs=padded([r.completion.sampling_logprobs for r in rollouts], device),
    )
