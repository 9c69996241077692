"""The policy-gradient losses: each a small function with its paper.

B completions, T tokens of the longest one. Every term is a mask-weighted sum divided by a count over the
whole update (all ranks, all micro-batches), so micro-batch losses add up to the loss of the update.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One micro-batch of rollouts that count in the loss."""

    policy_logprobs: Float[Tensor, "B T"]
    """Of the policy being updated; carries the gradient."""
    anchor_logprobs: Float[Tensor, "B T"]
    """Denominator of the ratio: the policy before the step's first update."""
    importance_weights: Float[Tensor, "B T"]
    """Truncated exp(anchor − sampling logprobs); 1 where the sampler is exact."""
    advantages: Float[Tensor, " B"]
    completion_mask: Bool[Tensor, "B T"]
    reference_logprobs: Float[Tensor, "B T"] | None
    """Present when the KL term is on."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    clip_low: float
    """Ratios below 1 − clip_low are clipped."""
    clip_high: float
    """Ratios above 1 + clip_high are clipped."""
    kl_coefficient: float
    max_completion_tokens: int


@dataclass(frozen=True, slots=True)
class UpdateCounts:
    """What the loss is divided by: over the whole update, all ranks and micro-batches.

    Zero-signal rollouts count; ungraded ones and masked truncated ones do not.
    """

    num_completions: int
    """N."""
    num_tokens: int
    """Σ|oᵢ|."""


@dataclass(frozen=True, slots=True)
class LossOutputs:
    loss: Float[Tensor, ""]
    """policy + kl_coefficient · kl; carries the gradient."""
    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    """The k3 estimate (Schulman 2020), aggregated like the policy term."""
    clipped: Float[Tensor, "B T"]
    """1 where the clip has hold of a token: its gradient is stopped, or under `cispo` its weight bounded."""


Aggregate = Callable[[Float[Tensor, "B T"]], Float[Tensor, ""]]
Objective = tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]
LossFunction = Callable[[LossInputs, LossSettings, UpdateCounts], LossOutputs]


def grpo(inputs: LossInputs, settings: LossSettings, counts: UpdateCounts) -> LossOutputs:
    """(1/N) Σᵢ (1/|oᵢ|) Σₜ of the clipped objective (Shao et al. 2024, DeepSeekMath, eq. 3)."""
    return _total(
        inputs, settings, _clipped_ratio(inputs, settings), _mean_of_means(inputs, counts)
    )


def dapo(inputs: LossInputs, settings: LossSettings, counts: UpdateCounts) -> LossOutputs:
    """Σᵢ Σₜ / Σ|oᵢ| of the clipped objective with clip-higher (Yu et al. 2025, DAPO, eq. 8)."""
    return _total(inputs, settings, _clipped_ratio(inputs, settings), _token_mean(inputs, counts))


def dr_grpo(inputs: LossInputs, settings: LossSettings, counts: UpdateCounts) -> LossOutputs:
    """Σᵢ Σₜ / (N · max_completion_tokens): no length bias (Liu et al. 2025, Understanding R1-Zero)."""
    divisor = counts.num_completions * settings.max_completion_tokens

    def aggregate(values: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        return _masked_sum(values, inputs.completion_mask) / divisor

    return _total(inputs, settings, _clipped_ratio(inputs, settings), aggregate)


def cispo(inputs: LossInputs, settings: LossSettings, counts: UpdateCounts) -> LossOutputs:
    """Σᵢ Σₜ / Σ|oᵢ| of stopgrad(clipped ratio) · A · logprob (MiniMax 2025, MiniMax-M1, eq. 4)."""
    ratio = _ratio(inputs).detach()
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    objective = weight * inputs.advantages[:, None] * inputs.policy_logprobs
    return _total(inputs, settings, (objective, weight != ratio), _token_mean(inputs, counts))


def gspo(inputs: LossInputs, settings: LossSettings, counts: UpdateCounts) -> LossOutputs:
    """(1/N) Σᵢ of the clipped objective of a sequence ratio (Zheng et al. 2025, GSPO, eq. 5, 7).

    sᵢ = exp((1/|oᵢ|) Σₜ (policy − anchor)); the importance weight of a sequence is the geometric mean.
    """
    mask = inputs.completion_mask
    lengths = mask.sum(-1).clamp(min=1)
    difference = inputs.policy_logprobs - inputs.anchor_logprobs
    ratio = torch.exp(_masked_row_sum(difference, mask) / lengths)[:, None]  # (B, 1)
    objective, clipped = _clip(ratio, inputs.advantages[:, None], settings)
    log_weights = _masked_row_sum(inputs.importance_weights.log(), mask) / lengths
    inputs_of_sequence = objective * log_weights.exp()[:, None]
    return _total(
        inputs,
        settings,
        (inputs_of_sequence.expand(mask.shape), clipped.expand(mask.shape)),
        _mean_of_means(inputs, counts),
        are_weighted=True,
    )


LOSSES: dict[str, LossFunction] = {
    "grpo": grpo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "cispo": cispo,
    "gspo": gspo,
}


def _ratio(inputs: LossInputs) -> Float[Tensor, "B T"]:
    return torch.exp(inputs.policy_logprobs - inputs.anchor_logprobs)


def _clipped_ratio(inputs: LossInputs, settings: LossSettings) -> Objective:
    return _clip(_ratio(inputs), inputs.advantages[:, None], settings)


def _clip(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A) (Schulman et al. 2017, eq. 7), and where the clip stops the gradient."""
    bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    free, clipped = ratio * advantages, bounded * advantages
    return torch.minimum(free, clipped), clipped < free


def _total(
    inputs: LossInputs,
    settings: LossSettings,
    objective_and_clipped: Objective,
    aggregate: Aggregate,
    are_weighted: bool = False,
) -> LossOutputs:
    objective, clipped = objective_and_clipped
    if not are_weighted:
        objective = objective * inputs.importance_weights
    policy = -aggregate(objective)
    kl = torch.zeros_like(policy)
    if inputs.reference_logprobs is not None:
        log_ratio = inputs.reference_logprobs - inputs.policy_logprobs
        kl = aggregate(torch.exp(log_ratio) - log_ratio - 1)
    return LossOutputs(
        loss=policy + settings.kl_coefficient * kl,
        policy=policy.detach(),
        kl=kl.detach(),
        clipped=(clipped & inputs.completion_mask).float(),
    )


def _mean_of_means(inputs: LossInputs, counts: UpdateCounts) -> Aggregate:
    lengths = inputs.completion_mask.sum(-1).clamp(min=1)

    def aggregate(values: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        per_completion = _masked_row_sum(values, inputs.completion_mask) / lengths
        return per_completion.sum() / counts.num_completions

    return aggregate


def _token_mean(inputs: LossInputs, counts: UpdateCounts) -> Aggregate:
    def aggregate(values: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        return _masked_sum(values, inputs.completion_mask) / counts.num_tokens

    return aggregate


def _masked_row_sum(values: Tensor, mask: Tensor) -> Float[Tensor, " B"]:
    return torch.where(mask, values, 0.0).sum(-1)


def _masked_sum(values: Tensor, mask: Tensor) -> Float[Tensor, ""]:
    return torch.where(mask, values, 0.0).sum()
