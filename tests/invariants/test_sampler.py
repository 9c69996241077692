"""Invariants 1 and 2: the sampler draws from the trainer's policy, whoever shares the batch."""

from dataclasses import replace

import pytest
import torch

from rft.errors import ModelError
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.products import Member
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.selftest import check_sampler
from rft.rollout.transcribe import Transcriber
from tests.tiny import FAMILIES, tiny_model, tiny_policy, tiny_tokenizer

PROMPT_LENGTHS = (5, 17, 9, 30, 3)
GROUP_SIZE = 4
SAMPLING = SamplingSettings(temperature=0.8, top_p=1.0, max_tokens=24)


def requests_for(lengths: tuple[int, ...] = PROMPT_LENGTHS) -> list[SampleRequest]:
    prompts = [tuple((7 * i + 11 * n) % 250 + 4 for i in range(n)) for n in lengths]
    return [
        SampleRequest(ids, GROUP_SIZE, 0, Purpose.TRAIN, 1, ordinal)
        for ordinal, ids in enumerate(prompts)
    ]


def sampler_of(policy: Policy, num_slots: int = 8) -> NativeSampler:
    return NativeSampler(policy, Transcriber(tiny_tokenizer(), [2]), num_slots)


def in_order(sampled: list[Sampled]) -> list[Sampled]:
    return sorted(sampled, key=lambda one: (one.request, one.sample))


def packed_of(requests: list[SampleRequest], sampled: list[Sampled]) -> list[TokenGroup]:
    return [
        TokenGroup(
            request.prompt_ids,
            tuple(s.completion.token_ids for s in sampled if s.request == index),
            tuple(s.completion.allowed_tokens for s in sampled if s.request == index),
        )
        for index, request in enumerate(requests)
    ]


def gaps(policy: Policy, requests: list[SampleRequest], sampled: list[Sampled]) -> torch.Tensor:
    """|policy − sampling logprob| of every completion token, scored as the trainer does."""
    batch = pack(packed_of(requests, sampled), policy.device)
    with torch.no_grad():
        logprobs = policy.score(batch, SAMPLING.temperature).logprobs
    recorded = [torch.tensor(s.completion.sampling_logprobs) for s in sampled]
    padded = torch.nn.utils.rnn.pad_sequence(recorded, batch_first=True)
    return (logprobs - padded)[batch.completion_mask].abs()


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_logprobs_are_the_policy_logprobs(family: str) -> None:
    policy = tiny_policy(family)
    sampler, requests = sampler_of(policy), requests_for()
    sampled = in_order(list(sampler.sample(requests, SAMPLING)))
    gap = gaps(policy, requests, sampled)
    assert gap.mean() < 1e-5 and gap.max() < 5e-4


@pytest.mark.parametrize("family", ["llama", "gemma2 sliding"])
def test_the_adapter_under_test_matters(family: str) -> None:
    policy = tiny_policy(family)
    sampled = in_order(list(sampler_of(policy).sample(requests_for(), SAMPLING)))
    with policy.adapter_off():
        gap = gaps(policy, requests_for(), sampled)
    assert gap.mean() > 0.1


def test_nucleus_logprobs_are_those_of_the_masked_distribution() -> None:
    policy = tiny_policy()
    settings = SamplingSettings(temperature=0.8, top_p=0.7, max_tokens=12)
    requests = requests_for()
    sampled = in_order(list(sampler_of(policy).sample(requests, settings)))
    assert all(s.completion.allowed_tokens is not None for s in sampled)
    gap = gaps(policy, requests, sampled)
    assert gap.mean() < 1e-5 and gap.max() < 5e-4


def test_refresh_takes_over_the_new_weights() -> None:
    policy = tiny_policy()
    sampler, requests = sampler_of(policy), requests_for()
    for name, parameter in policy.parameters().items():
        if ".lora_B." in name:
            with torch.no_grad():
                parameter.mul_(-1.5)
    sampler.refresh()
    sampled = in_order(list(sampler.sample(requests, SAMPLING)))
    assert gaps(policy, requests, sampled).max() < 5e-4


@pytest.mark.parametrize("num_slots", [1, 3, 20])
def test_completions_are_the_same_for_any_slots_and_order(num_slots: int) -> None:
    policy = tiny_policy()
    requests = requests_for()
    expected = in_order(list(sampler_of(policy).sample(requests, SAMPLING)))
    other = sampler_of(policy, num_slots)
    assert other.invariance.is_bitwise
    backwards = list(reversed(requests))
    found = list(other.sample(backwards, SAMPLING))
    last = len(requests) - 1
    by_place = {(last - s.request, s.sample): s.completion for s in found}
    for one in expected:
        same = by_place[one.request, one.sample]
        assert same.token_ids == one.completion.token_ids
        assert same.sampling_logprobs == one.completion.sampling_logprobs


def test_a_prompt_alone_gets_the_completions_it_gets_in_company() -> None:
    policy = tiny_policy()
    requests = requests_for()
    sampler = sampler_of(policy)
    in_company = in_order(list(sampler.sample(requests, SAMPLING)))
    for index, request in enumerate(requests):
        alone = in_order(list(sampler.sample([request], SAMPLING)))
        together = [s for s in in_company if s.request == index]
        assert [s.completion for s in alone] == [s.completion for s in together]


PREFIX = tuple(range(50, 70))


def prefixed_requests() -> list[SampleRequest]:
    """Some go on from the prefix, one is the prefix itself, one has nothing of it."""
    requests = requests_for()
    prompts = [(*PREFIX, *request.prompt_ids) for request in requests[:-2]]
    return [
        replace(request, prompt_ids=ids)
        for request, ids in zip(requests, (*prompts, PREFIX, requests[-1].prompt_ids), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_leaves_the_policy_as_it_is(family: str) -> None:
    """Sampler and trainer, each computing the prefix once."""
    policy, requests = tiny_policy(family), prefixed_requests()
    sampler = sampler_of(policy)
    sampler.share_prefix(PREFIX)
    sampled = in_order(list(sampler.sample(requests, SAMPLING)))
    lengths = [len(request.prompt_ids) for request in requests]
    assert sampler.spent["prefill_tokens"] == sum(lengths) - 2 * len(PREFIX)
    gap = gaps(policy, requests, sampled)
    assert gap.mean() < 1e-5 and gap.max() < 5e-4
    going_on = packed_of(requests, sampled)[:3]
    assert pack(going_on, policy.device).layout.prefix_length == len(PREFIX)
    shared, apart = (
        policy.score(pack(going_on, policy.device, are_apart=are_apart), 0.8)
        for are_apart in (False, True)
    )
    assert (shared.logprobs - apart.logprobs).abs().max() < 1e-4
    names = policy.parameters()
    gradients = [
        torch.autograd.grad((scored.logprobs.sin()).sum(), list(names.values()))
        for scored in (shared, apart)
    ]
    for name, one, other in zip(names, *gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name


@pytest.mark.parametrize("max_prompt_rows", [None, 32, 0])
def test_a_prompt_behind_a_prefix_does_not_feel_its_company(max_prompt_rows: int | None) -> None:
    """Nor in which pass, or after which, it is computed."""
    policy, requests = tiny_policy(), prefixed_requests()
    sampler, crowded = sampler_of(policy), sampler_of(policy, num_slots=3)
    if max_prompt_rows is not None:
        rows = replace(crowded.invariance, max_prompt_rows=max_prompt_rows)
        crowded.invariance = rows
    for one in (sampler, crowded):
        one.share_prefix(PREFIX)
    in_company = in_order(list(crowded.sample(requests[::-1], SAMPLING)))
    for index, request in enumerate(requests):
        alone = in_order(list(sampler.sample([request], SAMPLING)))
        together = [s for s in in_company if s.request == len(requests) - 1 - index]
        assert [s.completion for s in alone] == [s.completion for s in together]


def test_samples_of_a_group_differ_and_steps_differ() -> None:
    policy = tiny_policy()
    sampler = sampler_of(policy)
    (request,) = requests_for((9,))
    first = {s.completion.token_ids for s in sampler.sample([request], SAMPLING)}
    assert len(first) == GROUP_SIZE
    later = SampleRequest(request.prompt_ids, GROUP_SIZE, 0, Purpose.TRAIN, 2, 0)
    assert first.isdisjoint(s.completion.token_ids for s in sampler.sample([later], SAMPLING))


def test_an_end_token_ends_and_is_part_of_the_completion() -> None:
    policy = tiny_policy()
    sampled = [s.completion for s in sampler_of(policy).sample(requests_for(), SAMPLING)]
    for completion in sampled:
        ended = completion.token_ids[-1] == 2
        assert completion.finish_reason == ("stop" if ended else "length")
        assert 2 not in completion.token_ids[:-1]
        assert ended or len(completion.token_ids) == SAMPLING.max_tokens
    assert {c.finish_reason for c in sampled} == {"stop", "length"}


def test_the_start_up_check_refuses_a_sampler_that_ignores_the_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a new job's adapter too, whose B is zero, and which comes back as it was."""
    new = new_policy(tiny_model(), LoraShape(rank=4, alpha=8), 0)
    for policy in (tiny_policy(), new):
        before = {name: parameter.clone() for name, parameter in policy.parameters().items()}
        sampler = sampler_of(policy)
        check_sampler(sampler, policy)
        with monkeypatch.context() as patch:
            patch.setattr(Member, "merged", lambda self: self.weight)
            with pytest.raises(ModelError, match="disagree"):
                check_sampler(sampler, policy)
        for name, parameter in policy.parameters().items():
            assert torch.equal(parameter, before[name])
    check_sampler(sampler, new)
