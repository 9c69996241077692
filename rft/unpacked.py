"""The training pass for model families that the packed layout does not serve: each completion in a row of its
own, through the model's own attention and head. Slower: a prompt is computed once per completion.

G completions of one group, L tokens of its longest row, M completion tokens of the batch, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rft.head import tempered
from rft.packing import PackedBatch

KEPT_RATIO = 2
"""Rows with more than this many times the packed tokens are computed again in the backward pass, block by
block: the token budget was chosen for packed tokens."""


def unpacked_logprobs(
    model: PreTrainedModel, batch: PackedBatch, temperature: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """log p(target) and entropy of every completion token, nats, in the order of `batch.target_ids`;
    gradient flows from the logprobs to the model's trainable weights."""
    budget = KEPT_RATIO * batch.input_ids.shape[1]
    whole = list(_blocks(batch, budget))
    recomputes = (
        torch.is_grad_enabled() and sum(block.input_ids.numel() for block in whole) > budget
    )
    blocks = list(_blocks(batch, batch.input_ids.shape[1])) if recomputes else whole
    scored = [
        checkpoint(_score, model, block, temperature, use_reentrant=False)
        if recomputes
        else _score(model, block, temperature)
        for block in blocks
    ]
    logprobs, entropies = zip(*scored, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some completions of one group, each after its prompt, right-padded."""

    input_ids: Int[Tensor, "G L"]
    completion_lengths: Int[Tensor, " G"]
    target_ids: Int[Tensor, " M"]
    allowed_tokens: NDArray[np.uint8] | None


def _blocks(batch: PackedBatch, max_tokens: int) -> Iterator[_Block]:
    """The completions in order, as many of a group side by side as `max_tokens` allow, at least one."""
    packed, first_target = batch.input_ids[0], 0
    shared = packed[: batch.layout.prefix_length]
    for span in batch.layout.spans:
        prompt_ids = torch.cat([shared, packed[span.start : span.start + span.prompt_length]])
        completions = packed[span.start + span.prompt_length : span.stop]
        own = torch.split(completions, list(span.completion_lengths))
        row_length = len(prompt_ids) + max(span.completion_lengths)
        num_rows = max(1, max_tokens // row_length)
        for first_row in range(0, len(own), num_rows):
            rows = [torch.cat([prompt_ids, ids]) for ids in own[first_row : first_row + num_rows]]
            lengths = torch.tensor([len(row) - len(prompt_ids) + 1 for row in rows])
            targets = slice(first_target, first_target + int(lengths.sum()))
            yield _Block(
                torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                lengths.to(packed.device),
                batch.target_ids[targets],
                None if batch.allowed_tokens is None else batch.allowed_tokens[targets],
            )
            first_target = targets.stop


def _score(
    model: PreTrainedModel, block: _Block, temperature: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    num_last = int(block.completion_lengths.max())
    kept = {"logits_to_keep": num_last} if takes_logits_to_keep(model) else {}
    # padding is on the right, where causal order hides it; a mask of ones says that nothing else is hidden
    seen = torch.ones_like(block.input_ids)
    output = model(input_ids=block.input_ids, attention_mask=seen, use_cache=False, **kept)
    logits = output.logits[:, -num_last:].float()  # (G, C, V)
    is_target = torch.arange(num_last, device=logits.device) < block.completion_lengths[:, None]
    all_logprobs = tempered(logits[is_target], temperature, block.allowed_tokens).log_softmax(-1)
    logprobs = all_logprobs.gather(1, block.target_ids[:, None])[:, 0]
    with torch.no_grad():
        entropies = -(all_logprobs.exp() * all_logprobs.clamp(min=-1e4)).sum(-1)
    return logprobs, entropies


def takes_logits_to_keep(model: PreTrainedModel) -> bool:
    """Whether the model can leave out logits that nobody reads."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@contextmanager
def plainest_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by itself, in its simplest way, until the end of the `with`."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
