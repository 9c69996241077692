"""Before a run: does the sampler agree with the model's own plain forward pass?"""

import torch

from rft.attention import use_layouts
from rft.errors import ModelError
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
    """Sample a few tokens natively and score them with the model's own attention, unpacked and uncached.

    Raises ModelError when they disagree: the family is then one the native engine does not serve.
    """
    vocabulary = policy.head.weight.shape[0]
    prompts = [tuple((7 * i + 3) % vocabulary for i in range(n)) for n in (5, 11)]
    requests = [
        SampleRequest(ids, 2, 0, Purpose.GENERATE, 0, index) for index, ids in enumerate(prompts)
    ]
    settings = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=3)
    tolerance = TOLERANCE if sampler.is_exact else ROUNDED_TOLERANCE
    sampled = list(sampler.sample(requests, settings))
    policy.base.set_attn_implementation("eager")
    try:
        for one in sampled:
            prompt_ids, completion = requests[one.request].prompt_ids, one.completion
            token_ids = prompt_ids + completion.token_ids
            logits = policy.base(
                input_ids=torch.tensor([token_ids], device=policy.device), use_cache=False
            ).logits[0, len(prompt_ids) - 1 : -1]
            targets = torch.tensor(completion.token_ids, device=policy.device)[:, None]
            expected = logits.float().log_softmax(-1).gather(1, targets)[:, 0].cpu()
            gap = float((expected - torch.tensor(completion.sampling_logprobs)).abs().max())
            if not gap <= tolerance:
                raise ModelError(
                    f"the sampler and {type(policy.base).__name__} disagree by {gap:.2g} nats",
                    remedy="this model family is not supported yet",
                )
    finally:
        use_layouts(policy.base)
