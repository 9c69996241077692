"""Groups of token ids → one packed row for the model, and the way back from its hidden states.

N packed input tokens, B completions, T tokens of the longest completion.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from rft.attention import MOST_PAIRS, PackedGroups, PackedSpan

SHORTEST_PREFIX = 8
"""Tokens of prompts that it is worth to compute apart."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A prompt with completions that share it, as token ids."""

    prompt_ids: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    """Each non-empty."""
    allowed_tokens: tuple[NDArray[np.uint8] | None, ...] = ()
    """Per completion as in `Completion.allowed_tokens`; empty when no token was ever left out."""

    @property
    def num_input_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.completions)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Several groups in one row, and for every completion token the place that predicts it."""

    num_tokens: int
    """Of the row, without the spare ones at its end."""
    input_ids: Int[Tensor, "1 N"]
    position_ids: Int[Tensor, "1 N"]
    layout: PackedGroups
    target_ids: Int[Tensor, " M"]
    """All completion tokens, completion after completion."""
    predictor_index: Int[Tensor, " M"]
    """The packed input token whose hidden state predicts each target."""
    completion_mask: Bool[Tensor, "B T"]
    """True where completion b has a token t; its true places in row order are the M targets."""
    allowed_tokens: NDArray[np.uint8] | None
    """(M, ceil(V / 8)) bits, or None when every token was open everywhere."""

    def unpack(self, values: Float[Tensor, " M"]) -> Float[Tensor, "B T"]:
        """Per-target values at their (completion, token) place, zero elsewhere."""
        zeros = values.new_zeros(self.completion_mask.shape)
        return zeros.masked_scatter(self.completion_mask, values)


def prefix_length(prompts: Collection[tuple[int, ...]]) -> int:
    """How many tokens all of several prompts begin with, leaving each at least one of its own; 0 where these
    are fewer than `SHORTEST_PREFIX`."""
    if len(prompts) < 2:
        return 0
    # in the order of tuples, what the first and the last share all share
    return _as_prefix(common_length(min(prompts), max(prompts)), min(map(len, prompts)))


def _as_prefix(common: int, shortest: int) -> int:
    length = min(common, shortest - 1)
    return length if length >= SHORTEST_PREFIX else 0


def is_worth_sharing(prefix: int, length: int) -> bool:
    """Whether a prompt of that length had better attend behind its prefix than have it computed again: what
    goes on from one attends under a mask."""
    return (length - prefix) * length <= MOST_PAIRS


@dataclass(frozen=True, slots=True)
class RowSize:
    """Of the row that `pack` makes of consecutive groups."""

    num_groups: int
    num_apart: int
    """Tokens, if nothing were shared among prompts."""
    num_copies: int
    """Tokens of prompts, once for each completion, which keeps a copy of their keys and values."""
    shortest: int
    longest: int
    """Of the prompts, in tokens."""
    common: int
    """Tokens that all prompts begin with."""

    def joined(self, following: "RowSize", common: int) -> "RowSize":
        """With the groups that follow; `common`: what the last prompt here and the first there begin with."""
        return RowSize(
            self.num_groups + following.num_groups,
            self.num_apart + following.num_apart,
            self.num_copies + following.num_copies,
            min(self.shortest, following.shortest),
            max(self.longest, following.longest),
            min(self.common, common, following.common),
        )

    @property
    def shared(self) -> int:
        """Tokens that all prompts begin with and that are computed once for them."""
        prefix = _as_prefix(self.common, self.shortest) if self.num_groups > 1 else 0
        return prefix if is_worth_sharing(prefix, self.longest) else 0

    def budget_tokens(self, copy_cost: float, are_apart: bool) -> int:
        """Tokens as a budget of memory counts them: those of the row, and each copy of a prompt's at `copy_cost`
        of one."""
        num_spared = 0 if are_apart else (self.num_groups - 1) * self.shared
        return self.num_apart - num_spared + int(copy_cost * self.num_copies)


def row_size(group: TokenGroup) -> RowSize:
    """Of one group alone."""
    length = len(group.prompt_ids)
    num_copies = length * len(group.completions)
    return RowSize(1, group.num_input_tokens, num_copies, length, length, length)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def pack(
    groups: Sequence[TokenGroup],
    device: torch.device,
    *,
    num_rows: Callable[[int], int] = int,
    are_apart: bool = False,
) -> PackedBatch:
    """What all prompts begin with, then groups one after the other; positions restart at each prompt behind
    that and after it for each completion.

    `num_rows`: how long a row is made for so many tokens, at least; `are_apart`: nothing is shared and no two
    groups attend together, so that no group's arithmetic depends on which others there are.
    """
    prompts = [group.prompt_ids for group in groups]
    prefix = 0 if are_apart else prefix_length(prompts)
    shared = prefix if is_worth_sharing(prefix, max(map(len, prompts))) else 0
    input_ids: list[int] = [*groups[0].prompt_ids[:shared]]
    position_ids: list[int] = [*range(shared)]
    target_ids: list[int] = []
    predictors: list[int] = []
    spans = []
    for group in groups:
        start, prompt_length = len(input_ids), len(group.prompt_ids)
        input_ids += group.prompt_ids[shared:]
        position_ids += range(shared, prompt_length)
        for ids in group.completions:
            last_of_prompt = start + prompt_length - shared - 1
            first_of_completion = len(input_ids)
            predictors += [
                last_of_prompt,
                *range(first_of_completion, first_of_completion + len(ids) - 1),
            ]
            target_ids += ids
            input_ids += ids[:-1]
            position_ids += range(prompt_length, prompt_length + len(ids) - 1)
        lengths = tuple(len(ids) - 1 for ids in group.completions)
        spans.append(PackedSpan(start, prompt_length - shared, lengths))
    completion_lengths = torch.tensor([len(ids) for g in groups for ids in g.completions])
    num_spare = num_rows(len(input_ids)) - len(input_ids)
    spare = [0] * num_spare
    mask = torch.arange(int(completion_lengths.max()))[None, :] < completion_lengths[:, None]

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return PackedBatch(
        num_tokens=len(input_ids),
        input_ids=tensor([*input_ids, *spare])[None],
        position_ids=tensor([*position_ids, *spare])[None],
        layout=PackedGroups(spans, shared, num_spare, are_apart=are_apart),
        target_ids=tensor(target_ids),
        predictor_index=tensor(predictors),
        completion_mask=mask.to(device),
        allowed_tokens=_joined_allowed_tokens(groups),
    )


def _joined_allowed_tokens(groups: Sequence[TokenGroup]) -> NDArray[np.uint8] | None:
    blocks = [
        (allowed, len(ids))
        for group in groups
        for ids, allowed in zip(
            group.completions, group.allowed_tokens or (None,) * len(group.completions), strict=True
        )
    ]
    widths = {allowed.shape[1] for allowed, _ in blocks if allowed is not None}
    if not widths:
        return None
    (width,) = widths
    open_row = np.full((1, width), 255, np.uint8)
    return np.concatenate(
        [open_row.repeat(n, 0) if allowed is None else allowed for allowed, n in blocks]
    )
