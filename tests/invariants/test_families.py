"""Every model family: the mainstream ones on the fast path, the others on a slower one that is as exact."""

import pytest
import torch
from torch import Tensor

from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.rollout.choose import open_sampler, slow_path_warnings
from rft.rollout.native import NativeSampler
from rft.rollout.plain import PlainSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.unpacked import plainest_attention
from tests.tiny import (
    FAMILIES,
    MORE_FAST_FAMILIES,
    SLOW_FAMILIES,
    UNCACHED_FAMILIES,
    tiny_policy,
    tiny_tokenizer,
)

FAST = [*FAMILIES, *MORE_FAST_FAMILIES]
SLOW = [*SLOW_FAMILIES, *UNCACHED_FAMILIES]
PROMPT_LENGTHS = (4, 17, 9)
"""Shorter and longer than the sliding window of 7 that some of the families have."""
SAMPLING = SamplingSettings(temperature=0.8, top_p=1.0, max_tokens=10)
REQUESTS = [
    SampleRequest(tuple((7 * i + 11 * n) % 250 + 4 for i in range(n)), 3, 0, Purpose.TRAIN, 1, k)
    for k, n in enumerate(PROMPT_LENGTHS)
]


def opened(policy: Policy, num_slots: int = 8) -> Sampler:
    return open_sampler(policy, Transcriber(tiny_tokenizer(), [2]), num_slots)


def drawn(sampler: Sampler, requests: list[SampleRequest] = REQUESTS) -> list[Sampled]:
    """All completions, by prompt and sample."""
    sampled = list(sampler.sample(requests, SAMPLING))
    return sorted(sampled, key=lambda one: (requests[one.request].ordinal, one.sample))


def groups_of(sampled: list[Sampled]) -> list[TokenGroup]:
    """`drawn` as training has it."""
    by_prompt: dict[int, list[Sampled]] = {}
    for one in sampled:
        by_prompt.setdefault(one.request, []).append(one)
    return [
        TokenGroup(REQUESTS[index].prompt_ids, tuple(s.completion.token_ids for s in members))
        for index, members in by_prompt.items()
    ]


def plain_rows(policy: Policy, groups: list[TokenGroup]) -> list[Tensor]:
    """Each completion's logprobs: its row alone, the model's own attention, adapter and head."""
    rows = []
    with plainest_attention(policy.base):
        for group in groups:
            for completion in group.completions:
                token_ids = torch.tensor([group.prompt_ids + completion])
                logits = policy.base(input_ids=token_ids, use_cache=False).logits[0].float()
                logprobs = (logits / SAMPLING.temperature).log_softmax(-1)
                predicting = logprobs[len(group.prompt_ids) - 1 : -1]
                rows.append(predicting.gather(1, torch.tensor(completion)[:, None])[:, 0])
    return rows


GRADIENT_BOUND = 2e-5
"""Relative L2 of two orders of summation in float32."""

WIDER_BOUNDS = {"gemma4_text": 5e-5}
"""2.8e-5 was seen on an Intel processor."""


def gradients(policy: Policy, rows: list[Tensor]) -> dict[str, Tensor]:
    """Of a fixed random combination of the logprobs, by LoRA matrix."""
    generator = torch.Generator().manual_seed(9)
    weighted = [(row * torch.randn(len(row), generator=generator)).sum() for row in rows]
    parameters = policy.parameters()
    found = torch.autograd.grad(torch.stack(weighted).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def relative(found: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 0
    return float((found - expected).detach().norm() / expected.detach().norm())


def require_exact(policy: Policy, sampler: Sampler, bound: float = GRADIENT_BOUND) -> None:
    """Sampler, training pass and the plain model say the same, and so do the gradients."""
    assert sampler.is_exact
    sampled = drawn(sampler)
    groups = groups_of(sampled)
    plain = plain_rows(policy, groups)
    for one, row in zip(sampled, plain, strict=True):
        assert (torch.tensor(one.completion.sampling_logprobs) - row).abs().max() < 5e-5

    with policy.updating():
        scored = policy.score(pack(groups, policy.device), SAMPLING.temperature).logprobs
        trained = [row[: len(expected)] for row, expected in zip(scored, plain, strict=True)]
        found = gradients(policy, trained)
    assert relative(torch.cat(trained), torch.cat(plain)) < 1e-5
    for name, expected in gradients(policy, plain).items():
        assert relative(found[name], expected) < bound, name

    with policy.adapter_off(), torch.no_grad():
        bare = torch.cat(plain_rows(policy, groups))
    assert (bare - torch.cat(plain)).abs().mean() > 0.1


@pytest.mark.parametrize("family", FAST)
def test_a_fast_family_is_exact(family: str) -> None:
    policy = tiny_policy(family)
    sampler = opened(policy)
    assert isinstance(sampler, NativeSampler) and sampler.facts["sampler"] == "native"
    assert policy.why_unpacked is None and slow_path_warnings(policy, sampler) == []
    require_exact(policy, sampler, WIDER_BOUNDS.get(family, GRADIENT_BOUND))


@pytest.mark.parametrize("family", SLOW)
def test_a_slow_family_is_exact_and_says_so(family: str) -> None:
    policy = tiny_policy(family)
    sampler = opened(policy)
    assert isinstance(sampler, PlainSampler)
    name = "plain" if family in SLOW_FAMILIES else "plain, uncached"
    assert sampler.facts["sampler"] == name
    assert sampler.facts["why_plain"]
    (warning,) = slow_path_warnings(policy, sampler)
    assert type(policy.base).__name__ in warning and "slower" in warning
    require_exact(policy, sampler)


@pytest.mark.parametrize(
    "family",
    [
        *FAMILIES,
        *(pytest.param(name, marks=pytest.mark.long) for name in (*MORE_FAST_FAMILIES, *SLOW)),
    ],
)
def test_completions_do_not_depend_on_neighbours(family: str) -> None:
    """Bit for bit where the sampler says so, else to rounding."""
    policy = tiny_policy(family)
    sampler = opened(policy)
    together = drawn(sampler)
    backwards = drawn(opened(policy, num_slots=2), REQUESTS[::-1])
    alone = [one for request in REQUESTS for one in drawn(sampler, [request])]
    for other in (backwards, alone):
        for one, same in zip(together, other, strict=True):
            assert one.completion.token_ids == same.completion.token_ids
            expected, found = one.completion.sampling_logprobs, same.completion.sampling_logprobs
            if sampler.facts["bitwise"]:
                assert found == expected
            assert found == pytest.approx(expected, abs=5e-5)
