"""Before a run: does the sampler agree with the model's own plain forward pass?"""

import torch
from torch import Tensor

from rft.attention import use_layouts
from rft.errors import ModelError
from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import SampleRequest, SamplingSettings

TOLERANCE = 1e-3
"""Largest difference of a logprob in nats, float32."""

ROUNDED_TOLERANCE = 0.5
"""The same for half precision and quantised models."""


@torch.no_grad()
def check_sampler(sampler: NativeSampler, policy: Policy) -> None:
    """Score sampled and fixed tokens with the model's own attention, unpacked and uncached, and compare
    with what the sampler recorded and with the packed training pass.

    Raises ModelError when they disagree: the family is then one the native engine does not serve.
    """
    vocabulary = policy.head.weight.shape[0]
    prompts = [tuple((7 * i + 3) % vocabulary for i in range(n)) for n in (5, 11)]
    requests = [
        SampleRequest(ids, 2, 0, Purpose.GENERATE, 0, index) for index, ids in enumerate(prompts)
    ]
    sampled = list(sampler.sample(requests, SamplingSettings(1.0, 1.0, max_tokens=3)))
    drawn = [(prompts[s.request], s.completion.token_ids) for s in sampled]
    fixed = [(ids, tuple((31 * i + 5) % vocabulary for i in range(4))) for ids in prompts]
    tolerance = TOLERANCE if sampler.is_exact else ROUNDED_TOLERANCE
    recorded = [torch.tensor(s.completion.sampling_logprobs) for s in sampled]
    _compare("the sampler", recorded, _plain_logprobs(policy, drawn), policy, tolerance)
    batch = pack([TokenGroup(ids, (completion,)) for ids, completion in fixed], policy.device)
    packed = list(policy.score(batch, 1.0).logprobs.cpu())
    _compare("the training pass", packed, _plain_logprobs(policy, fixed), policy, tolerance)


def _compare(
    what: str, found: list[Tensor], expected: list[Tensor], policy: Policy, tolerance: float
) -> None:
    gap = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    if not gap <= tolerance:
        raise ModelError(
            f"{what} and {type(policy.base).__name__} disagree by {gap:.2g} nats",
            remedy="this model family is not supported yet",
        )


def _plain_logprobs(
    policy: Policy, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[Tensor]:
    """Each completion after its prompt, alone, through the model's own attention and head."""
    policy.base.set_attn_implementation("eager")
    logprobs = []
    try:
        for prompt_ids, completion_ids in rows:
            token_ids = torch.tensor([prompt_ids + completion_ids], device=policy.device)
            logits = policy.base(input_ids=token_ids, use_cache=False).logits[0]
            predicting = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
            targets = torch.tensor(completion_ids, device=policy.device)[:, None]
            logprobs.append(predicting.gather(1, targets)[:, 0].cpu())
    finally:
        use_layouts(policy.base)
    return logprobs
