"""Before a run: does the sampler agree with the model's own plain forward pass?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rft.errors import ModelError
from rft.packing import TokenGroup, pack, prefix_length
from rft.policy import Policy
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampler, SampleRequest, SamplingSettings
from rft.unpacked import plainest_attention

TOLERANCE = 1e-3
"""Largest difference of a logprob in nats, float32."""

ROUNDED_TOLERANCE = 0.5
"""The same for half precision and quantised models."""

MOVED_B = 0.02
"""Standard deviation that B takes on for the check: at B = 0 nobody would see an adapter ignored."""


@torch.no_grad()
def check_sampler(sampler: Sampler, policy: Policy, num_tokens: int = 3) -> None:
    """Score sampled and fixed tokens with the model's own attention, each row alone and uncached, and compare
    with what the sampler recorded, `num_tokens` a row, and with the training pass. For the time of the check the
    adapter has other weights.

    Raises ModelError when they disagree: the family is then one that this sampler does not serve.
    """
    with _moved_adapter(policy, sampler):
        _check(sampler, policy, num_tokens)


def _check(sampler: Sampler, policy: Policy, num_tokens: int) -> None:
    vocabulary = policy.base.config.get_text_config().vocab_size
    prompts = [tuple((7 * i + 3) % vocabulary for i in range(n)) for n in (12, 17)]
    sampler.share_prefix(prompts[0][: prefix_length(prompts)])
    requests = [
        SampleRequest(ids, 2, 0, Purpose.GENERATE, 0, index) for index, ids in enumerate(prompts)
    ]
    sampled = list(sampler.sample(requests, SamplingSettings(1.0, 1.0, num_tokens)))
    drawn = [(prompts[s.request], s.completion.token_ids) for s in sampled]
    completion = tuple((31 * i + 5) % vocabulary for i in range(4))
    fixed = [(ids, completion[:length]) for ids in prompts for length in (4, 2)]
    tolerance = TOLERANCE if sampler.is_exact else ROUNDED_TOLERANCE
    recorded = [torch.tensor(s.completion.sampling_logprobs) for s in sampled]
    sampler.share_prefix(())
    _compare("the sampler", recorded, _plain_logprobs(policy, drawn), policy, tolerance)
    groups = [TokenGroup(ids, (completion, completion[:2])) for ids in prompts]
    scored = policy.score(pack(groups, policy.device), 1.0).logprobs.cpu()
    trained = [row[: len(ids)] for row, (_, ids) in zip(scored, fixed, strict=True)]
    _compare("the training pass", trained, _plain_logprobs(policy, fixed), policy, tolerance)


@contextmanager
def _moved_adapter(policy: Policy, sampler: Sampler) -> Iterator[None]:
    """Random B in place of the policy's own, which come back bit for bit."""
    parameters = {name: p for name, p in policy.parameters().items() if ".lora_B." in name}
    kept = {name: parameter.clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * MOVED_B)
        policy.refresh()
        sampler.refresh()
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
        policy.refresh()
        sampler.refresh()


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
    logprobs = []
    with plainest_attention(policy.base):
        for prompt_ids, completion_ids in rows:
            token_ids = torch.tensor([prompt_ids + completion_ids], device=policy.device)
            seen = torch.ones_like(token_ids)
            logits = policy.base(input_ids=token_ids, attention_mask=seen, use_cache=False).logits
            predicting = logits[0, len(prompt_ids) - 1 : -1].float().log_softmax(-1)
            targets = torch.tensor(completion_ids, device=policy.device)[:, None]
            logprobs.append(predicting.gather(1, targets)[:, 0].cpu())
    return logprobs
