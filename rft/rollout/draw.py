"""One token per row from its logits, by inverse CDF from one uniform.

B rows, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from rft.head import tempered

ROWS_AT_ONCE = 16
"""On a CPU few rows are drawn together: what is computed of them stays in its caches."""


@dataclass(frozen=True, slots=True)
class Drawn:
    token_ids: Int[Tensor, " B"]
    logprobs: Float[Tensor, " B"]
    """log p of the token under the distribution it was drawn from, nats."""
    allowed_tokens: NDArray[np.uint8] | None
    """(B, ceil(V / 8)) bits of the tokens that were open, when top_p < 1 or a grammar closed some."""


def draw(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    temperature: float,
    top_p: float,
    allowed: NDArray[np.uint8] | None = None,
) -> Drawn:
    """Sample each row; at temperature 0 take its largest logit (logprob then at temperature 1).

    `allowed`: (B, ceil(V / 8)) bits of the tokens to draw from; None = all. Every row's result depends on
    that row alone, bit for bit.
    """
    rows = len(logits) if logits.is_cuda else ROWS_AT_ONCE
    parts = [
        _draw(
            logits[start : start + rows],
            uniforms[start : start + rows],
            temperature,
            top_p,
            None if allowed is None else allowed[start : start + rows],
        )
        for start in range(0, len(logits), max(1, rows))
    ]
    if len(parts) == 1:
        return parts[0]
    kept = [part.allowed_tokens for part in parts if part.allowed_tokens is not None]
    return Drawn(
        torch.cat([part.token_ids for part in parts]),
        torch.cat([part.logprobs for part in parts]),
        np.concatenate(kept) if kept else None,
    )


def _draw(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float,
    top_p: float,
    allowed: NDArray[np.uint8] | None,
) -> Drawn:
    logits = tempered(logits, temperature or 1.0, allowed)
    if temperature == 0:
        token_ids = logits.argmax(-1)
        return Drawn(token_ids, _chosen(logits.log_softmax(-1), token_ids), allowed)
    if top_p < 1:
        nucleus = nucleus_mask(logits.softmax(-1), top_p)
        allowed = np.packbits(nucleus.cpu().numpy(), axis=1)
        logits = logits.masked_fill(~nucleus, float("-inf"))
    probabilities = logits.softmax(-1)
    token_ids = inverse_cdf(probabilities, uniforms)
    return Drawn(token_ids, _chosen(probabilities, token_ids).log(), allowed)


def inverse_cdf(
    probabilities: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The first token whose cumulative probability exceeds uniform × total.

    Scaling by the last cumulative value absorbs its rounding; the point stays strictly below the total,
    so that a token of probability zero is never chosen.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    if cumulative.is_cuda:  # a parallel sum need not be monotone to the last bit: see below
        total = torch.where(probabilities > 0, cumulative, 0).amax(-1, keepdim=True)
    below_total = torch.nextafter(total, torch.zeros_like(total))
    points = torch.minimum(uniforms.to(total.dtype)[:, None] * total, below_total)
    if cumulative.is_cuda:
        return ((cumulative > points) & (probabilities > 0)).int().argmax(-1)
    found = torch.searchsorted(cumulative, points, right=True)[:, 0]
    return found.clamp_(max=probabilities.shape[1] - 1)  # beyond it only where they are no numbers


def nucleus_mask(probabilities: Float[Tensor, "B V"], top_p: float) -> Bool[Tensor, "B V"]:
    """The fewest most probable tokens whose probabilities sum to at least top_p (Holtzman et al. 2020)."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    sum_before = ordered.cumsum(-1) - ordered
    keep = ~(sum_before >= top_p)  # what is no number stays, and is told of it later
    keep &= ~(ordered <= 0)  # where rounding leaves the sum below top_p, what cannot come stays out
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter(-1, order, keep)


def _chosen(values: Tensor, token_ids: Tensor) -> Tensor:
    return values.gather(1, token_ids[:, None])[:, 0]
