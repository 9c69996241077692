"""The invariants on a CUDA device: what a GPU machine runs before it is trusted."""

import pytest
import torch

from rft.policy import LoraShape, new_policy
from rft.rollout.sampler import SamplingSettings
from rft.rollout.selftest import check_sampler
from rft.training.advantages import advantages
from rft.training.batch import training_groups
from rft.training.ranks import Ranks
from rft.training.update import Updater
from tests.gpu.on_device import (
    EACH_DTYPE,
    MEAN_GAP,
    ON_DEVICE,
    assert_nearly_all_same,
    completions,
    cuda_policy,
    mean_gap,
    requests_for,
    sampler_of,
)
from tests.invariants.test_gradients import sample_groups
from tests.jobs import resolved_job
from tests.tiny import FAMILIES, make_adapter_large, tiny_model

pytestmark = ON_DEVICE


@EACH_DTYPE
@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_logprobs_are_the_policy_logprobs(dtype: torch.dtype, family: str) -> None:
    policy = cuda_policy(dtype, family)
    sampler, requests = sampler_of(policy), requests_for([5, 17, 9, 30])
    assert sampler.is_exact == (dtype == torch.float32)
    assert not sampler.invariance.is_bitwise
    check_sampler(sampler, policy)
    assert mean_gap(policy, requests, completions(sampler, requests)) < MEAN_GAP[dtype]
    assert sampler.facts["decode"] == "cuda graphs"


@EACH_DTYPE
def test_nucleus_logprobs_are_those_of_the_masked_distribution(dtype: torch.dtype) -> None:
    policy = cuda_policy(dtype)
    settings = SamplingSettings(temperature=0.8, top_p=0.7, max_tokens=12)
    requests = requests_for([5, 17])
    sampled = completions(sampler_of(policy), requests, settings)
    assert all(s.completion.allowed_tokens is not None for s in sampled)
    if dtype == torch.float32:  # rounding may move a token in or out of the nucleus
        assert mean_gap(policy, requests, sampled) < MEAN_GAP[dtype]


@EACH_DTYPE
def test_the_adapter_under_test_matters(dtype: torch.dtype) -> None:
    policy, requests = cuda_policy(dtype), requests_for([5, 17])
    sampled = completions(sampler_of(policy), requests)
    with policy.adapter_off():
        assert mean_gap(policy, requests, sampled) > 0.1


def test_neighbours_and_slots_change_almost_nothing() -> None:
    policy, requests = cuda_policy(torch.float32), requests_for([5, 17, 9, 30, 3])
    expected = completions(sampler_of(policy, num_slots=32), requests)
    assert_nearly_all_same(completions(sampler_of(policy, num_slots=3), requests), expected)
    alone = [one for request in requests for one in completions(sampler_of(policy), [request])]
    assert_nearly_all_same(alone, expected)


def test_the_sampler_draws_what_it_draws_on_the_cpu() -> None:
    """The same uniforms and, up to rounding, the same distributions."""
    from tests.tiny import tiny_policy

    requests = requests_for([5, 17, 9])
    expected = completions(sampler_of(tiny_policy()), requests)
    assert_nearly_all_same(completions(sampler_of(cuda_policy(torch.float32)), requests), expected)


def test_the_gradient_is_that_of_the_cpu() -> None:
    groups = sample_groups()
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    found = {}
    for device in ("cpu", "cuda"):
        policy = new_policy(tiny_model().to(device), LoraShape(rank=4, alpha=8), 0)
        make_adapter_large(policy)
        updater = Updater(resolved_job(), policy, Ranks(use_cpu=device == "cpu"), 10, True)
        updater.accumulate_gradients(1, members, None)
        found[device] = {n: p.grad.cpu() for n, p in policy.parameters().items()}
    for name, expected in found["cpu"].items():
        assert (found["cuda"][name] - expected).norm() / expected.norm() < 1e-3


def test_the_bfloat16_gradient_points_where_that_of_float32_does() -> None:
    groups = sample_groups()
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        policy = cuda_policy(dtype, scale=0.05)
        updater = Updater(resolved_job(), policy, Ranks(use_cpu=False), 10, True)
        updater.accumulate_gradients(1, members, None)
        gradients = [p.grad.flatten() for p in policy.parameters().values()]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        found.append(torch.cat(gradients))
    assert torch.cosine_similarity(*found, dim=0) > 0.95


def test_training_that_runs_out_of_memory_halves_the_budget_and_gives_the_same_gradient() -> None:
    groups = [group for _ in range(8) for group in sample_groups()]
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    policy = cuda_policy(torch.float32)

    def gradient(updater: Updater) -> torch.Tensor:
        for parameter in policy.parameters().values():
            parameter.grad = None
        updater.accumulate_gradients(1, members, None)
        return torch.cat([p.grad.flatten() for p in policy.parameters().values()])

    job = resolved_job("engine.training.token_budget=1000000")
    updater = Updater(job, policy, Ranks(use_cpu=False), 10, True)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    expected = gradient(updater)
    allowed = held + (torch.cuda.max_memory_allocated() - held) // 2
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        found = gradient(updater)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert updater.passes.token_budget < 1_000_000
    assert (found - expected).norm() / expected.norm() < 1e-3
