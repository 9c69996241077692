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
    first, last = min(prompts), max(prompts)  # in the order of tuples, what these share all share
    longest = min(map(len, prompts)) - 1
    pairs = zip(first[:longest], last, strict=False)
    length = next((place for place, (a, b) in enumerate(pairs) if a != b), longest)
    return length if length >= SHORTEST_PREFIX else 0


def is_worth_sharing(prefix: int, length: int) -> bool:
    """Whether a prompt of that length had better attend behind its prefix than have it computed again: what
    goes on from one attends under a mask."""
    return (length - prefix) * length <= MOST_PAIRS


def num_budget_tokens(groups: Sequence[TokenGroup], *, are_apart: bool = False) -> int:
    """Tokens of the row that `pack` makes, as a budget of memory counts them: half of what the prompts share for
    each prompt but the first. It is computed once, but each completion keeps a copy of its keys and values, which
    for a group of sixteen are half of what a token keeps."""
    shared = _shared_length(groups, are_apart)
    spared = (len(groups) - 1) * (shared // 2)
    return sum(group.num_input_tokens for group in groups) - spared


def _shared_length(groups: Sequence[TokenGroup], are_apart: bool) -> int:
    """Tokens that all prompts begin with and that are computed once for them."""
    prompts = [group.prompt_ids for group in groups]
    shared = 0 if are_apart else prefix_length(prompts)
    return shared if all(is_worth_sharing(shared, len(ids)) for ids in prompts) else 0


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
    shared = _shared_length(groups, are_apart)
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
