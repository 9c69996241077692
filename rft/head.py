"""The language-model head: hidden states → logits of the distribution that tokens are drawn from.

M tokens, E hidden width, V vocabulary.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rft.errors import ModelError
from rft.linear import Product

CHUNK_TOKENS = 128
"""Tokens whose logits are in memory at once."""

ROWS_PER_THREAD = 4
"""On a CPU, of those, whose probabilities are computed together: what is read again is still in its caches."""


@dataclass(frozen=True)
class Head:
    """A frozen output projection with the transform its model family applies to the logits."""

    weight: Float[Tensor, "V E"]
    bias: Float[Tensor, " V"] | None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "M E"]) -> Float[Tensor, "M V"]:
        """Untempered logits in float32."""
        raw = self.product(hidden.to(self.weight.dtype)).float()
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw.mul_(self.scale) if self.scale != 1.0 else raw

    @functools.cached_property
    def product(self) -> Product:
        """hidden ↦ hidden Wᵀ + b."""
        return Product(self.weight.detach(), None if self.bias is None else self.bias.detach())


def read_head(model: PreTrainedModel) -> Head:
    """The head of `model`; its logit transform is checked against the model's own forward.

    Raises ModelError when no known transform fits.
    """
    projection = model.get_output_embeddings()
    if projection is None:
        raise ModelError(
            f"{type(model).__name__} has no output head", remedy="use a causal language model"
        )
    weight, bias = projection.weight, getattr(projection, "bias", None)
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    hidden = _probe(weight, softcap)
    with torch.no_grad(), _stubbed_decoder(model, hidden[None]):
        expected = model(inputs_embeds=hidden[None], use_cache=False).logits[0].float()
    head = Head(weight, bias, softcap=softcap)
    if not softcap:
        raw = head.logits(hidden)
        scale = float((expected * raw).sum() / (raw * raw).sum())
        head = head if abs(scale - 1) < 1e-2 else replace(head, scale=scale)
    error = (head.logits(hidden) - expected).norm() / expected.norm()
    if error < (1e-4 if weight.dtype == torch.float32 else 2e-2):
        return head
    raise ModelError(
        f"{type(model).__name__} changes its logits in a way that is not known",
        remedy="this model family is not supported yet",
    )


def _probe(weight: Float[Tensor, "V E"], softcap: float | None) -> Float[Tensor, "4 E"]:
    """Hidden states whose logits are large enough to feel a softcap."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    deviation = float(F.linear(hidden, weight).float().std())
    return hidden * (softcap / max(deviation, 1e-6)) if softcap else hidden


class _FinalHidden(BaseModelOutputWithPast):  # type: ignore[misc]
    """What a decoder gives; families read fields of their own from it, which are then None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def _stubbed_decoder(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Let the model's own forward run from given final hidden states."""
    decoder = model.get_decoder()

    def forward(*args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return _FinalHidden(last_hidden_state=hidden)

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.__dict__["forward"]


def tempered(
    logits: Float[Tensor, "M V"], temperature: float, allowed_tokens: NDArray[np.uint8] | None
) -> Float[Tensor, "M V"]:
    """Logits of the distribution that is sampled: divided by the temperature, −inf where not allowed."""
    if temperature != 1.0:
        logits = logits / temperature
    if allowed_tokens is None:
        return logits
    bits = np.unpackbits(allowed_tokens, axis=1, count=logits.shape[1]).astype(bool)
    return logits.masked_fill(~torch.from_numpy(bits).to(logits.device), float("-inf"))


def token_logprobs(
    head: Head,
    hidden: Float[Tensor, "M E"],
    target_ids: Int[Tensor, " M"],
    temperature: float,
    allowed_tokens: NDArray[np.uint8] | None,
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """log p(target) and the entropy of each place's distribution, nats; gradient flows to `hidden`.

    Logits exist for `CHUNK_TOKENS` tokens at a time. As the head is frozen, the forward pass keeps
    ∂ log p / ∂ hidden = (onehot(target) − p) · ∂ logits / ∂ hidden, and the backward pass only scales it.
    """
    logprobs, entropies = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head, target_ids, temperature, allowed_tokens
    )
    return logprobs, entropies


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Head,
        target_ids: Tensor,
        temperature: float,
        allowed_tokens: NDArray[np.uint8] | None,
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        logprobs = torch.empty(len(target_ids), device=hidden.device)
        entropies = torch.empty_like(logprobs)
        slopes = torch.empty_like(hidden) if needs_gradient else None
        for start in range(0, len(target_ids), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            targets = target_ids[rows, None]
            logits = head.logits(hidden[rows])
            allowed = None if allowed_tokens is None else allowed_tokens[rows]
            # new pages cost as much as the numbers: probabilities stand where the logits stood
            probabilities = logits if head.softcap is None else torch.empty_like(logits)
            at_once = len(logits)
            if logits.device.type == "cpu":
                at_once = ROWS_PER_THREAD * max(2, torch.get_num_threads())
            for first in range(0, len(logits), at_once):
                some = slice(first, first + at_once)
                logprobs[rows][some], entropies[rows][some] = _logprobs_and_entropies(
                    logits[some],
                    targets[some],
                    temperature,
                    None if allowed is None else allowed[some],
                    probabilities[some],
                )
            if slopes is not None:
                slopes[rows] = _slopes(head, probabilities, logits, targets).div_(temperature)
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None].to(slopes.dtype), None, None, None, None


def _logprobs_and_entropies(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    allowed_tokens: NDArray[np.uint8] | None,
    probabilities: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of the targets (m, 1), and of each place's distribution, which is written to `probabilities` (m, V); that
    may be `logits` itself."""
    all_logprobs = tempered(logits, temperature, allowed_tokens).log_softmax(-1)
    chosen = all_logprobs.gather(1, targets)[:, 0]
    torch.exp(all_logprobs, out=probabilities)
    if allowed_tokens is not None:
        all_logprobs = all_logprobs.clamp_(min=-1e4)
    return chosen, -torch.linalg.vecdot(probabilities, all_logprobs)


def _slopes(
    head: Head,
    probabilities: Float[Tensor, "M V"],
    logits: Float[Tensor, "M V"],
    targets: Int[Tensor, "M 1"],
) -> Float[Tensor, "M E"]:
    """∂ log p(target) / ∂ hidden at temperature 1: (onehot(target) − p) · ∂ logits / ∂ hidden; overwrites
    `probabilities`.

    The difference is taken before anything is rounded to the weights' number format: bfloat16 knows no
    probability between 0.998 and 1, and of a confident token nothing would be left.
    """
    difference = probabilities.neg_()
    difference.scatter_add_(1, targets, torch.ones_like(targets, dtype=difference.dtype))
    if head.softcap is not None:
        difference *= 1 - (logits / (head.scale * head.softcap)) ** 2
    return (difference.to(head.weight.dtype) @ head.weight.detach()).float() * head.scale
