"""Decoding through captured graphs against the same kernels launched one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rft.policy import Policy
from rft.rollout.graphs import DecodeGraphs, SlotStep
from rft.rollout.recorders import CudaRecorder, EagerRecorder, RecorderWithFallback
from rft.rollout.sampler import SamplingSettings
from rft.rollout.slots import Slots
from tests.gpu.on_device import (
    EACH_DTYPE,
    MEAN_GAP,
    ON_DEVICE,
    SAMPLING,
    CountingRecorder,
    completions,
    cuda_policy,
    mean_gap,
    negate_adapter,
    requests_for,
    sampler_of,
)
from tests.tiny import FAMILIES

pytestmark = ON_DEVICE


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def step_of(policy: Policy, num_slots: int = 16, kind: type[SlotStep] = SlotStep) -> SlotStep:
    """Slots that hold noise where tokens are."""
    model, products = policy.base, []
    if policy.merges_exactly:
        model, products = policy.merged.model, policy.merged.products
    slots = Slots(num_slots, 128, device())
    generator = torch.Generator().manual_seed(0)
    for store in (slots.memory.keys, slots.memory.values):
        for layer in range(3):
            noise = torch.randn(num_slots, 2, slots.memory.capacity, 16, generator=generator)
            store[layer] = noise.to(device(), policy.head.weight.dtype)
    return kind(model, policy.head, slots, products)


@EACH_DTYPE
@pytest.mark.parametrize("family", FAMILIES)
def test_completions_are_those_of_eager_kernels(dtype: torch.dtype, family: str) -> None:
    """Ragged prompts, rows that finish, slots that are filled again, lengths that cross buckets."""
    policy, requests = cuda_policy(dtype, family), requests_for([5, 17, 28, 30, 3])
    recorder = CountingRecorder()
    expected = completions(sampler_of(policy, recorder=EagerRecorder()), requests)
    sampler = sampler_of(policy, recorder=recorder)
    assert completions(sampler, requests) == expected
    assert sampler.facts["decode"] == "cuda graphs" and recorder.num_recorded > 4
    assert completions(sampler, requests) == expected


@EACH_DTYPE
@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=9),
        SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=9),
    ],
    ids=["greedy", "plain"],
)
def test_other_settings_take_other_graphs(dtype: torch.dtype, settings: SamplingSettings) -> None:
    policy, requests = cuda_policy(dtype), requests_for([5, 9])
    sampler = sampler_of(policy)
    completions(sampler, requests)
    expected = completions(sampler_of(policy, recorder=EagerRecorder()), requests, settings)
    assert completions(sampler, requests, settings) == expected


@EACH_DTYPE
def test_a_changed_adapter_is_seen_by_graphs_captured_before(dtype: torch.dtype) -> None:
    """A graph that held the old weights would draw from them, half a nat away."""
    policy, requests = cuda_policy(dtype), requests_for([5, 17, 9])
    recorder = CountingRecorder()
    sampler = sampler_of(policy, recorder=recorder)
    before = completions(sampler, requests)
    num_recorded = recorder.num_recorded
    negate_adapter(policy)
    sampler.refresh()
    after = completions(sampler, requests)
    assert mean_gap(policy, requests, after) < MEAN_GAP[dtype]
    assert mean_gap(policy, requests, before) > 0.1
    assert after == completions(sampler_of(policy, recorder=EagerRecorder()), requests)
    assert num_recorded <= recorder.num_recorded <= num_recorded + 6  # lengths may differ
    assert sampler.facts["decode"] == "cuda graphs"


@EACH_DTYPE
def test_an_optimizer_moves_no_weight_that_graphs_read(dtype: torch.dtype) -> None:
    policy = cuda_policy(dtype)
    step = step_of(policy)
    before = step.fingerprint()
    optimizer = torch.optim.AdamW(policy.parameters().values(), lr=0.1)
    for _ in range(2):
        for parameter in policy.parameters().values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        policy.refresh()
        optimizer.zero_grad(set_to_none=True)
    policy.load_adapter({name: t.clone() for name, t in policy.adapter_tensors().items()})
    assert step.fingerprint() == before


def test_larger_slots_take_new_graphs() -> None:
    policy = cuda_policy(torch.bfloat16)
    sampler, eager = sampler_of(policy), sampler_of(policy, recorder=EagerRecorder())
    for lengths in ([5, 9], [5, 70], [5, 9]):
        requests = requests_for(lengths)
        assert completions(sampler, requests) == completions(eager, requests)


def test_spare_rows_touch_nothing_but_the_start_of_free_slots() -> None:
    step = step_of(cuda_policy(torch.bfloat16))
    before = {layer: keys.clone() for layer, keys in step.slots.memory.keys.items()}
    graphs = DecodeGraphs(step, CudaRecorder(device()), min_rows=12)
    graphs.step([5, 6, 7], [0, 9, 40], [0.5] * 3, SAMPLING)
    for layer, keys in step.slots.memory.keys.items():
        changed = (keys != before[layer]).any(-1).any(1).nonzero().tolist()
        assert changed == [[0, 0], [1, 9], [2, 40], *([row, 0] for row in range(3, 12))]


@EACH_DTYPE
def test_a_token_waits_for_the_device_once(dtype: torch.dtype) -> None:
    """Nothing but the last wait for the results: any other would raise here."""
    graphs = DecodeGraphs(step_of(cuda_policy(dtype)), CudaRecorder(device()))
    inputs = [5, 6, 7], [3, 9, 40], [0.1, 0.5, 0.9]
    expected = graphs.step(*inputs, SAMPLING)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = graphs.step(*inputs, SAMPLING)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.logprobs, expected.logprobs)


def test_graphs_share_the_memory_of_their_temporaries() -> None:
    graphs = DecodeGraphs(step_of(cuda_policy(torch.bfloat16)), CudaRecorder(device()))
    graphs.step([5] * 16, [120] * 16, [0.5] * 16, SAMPLING)
    first = torch.cuda.memory_reserved()
    for num_rows in (16, 12, 8, 4):
        for position in (10, 40, 70, 100):
            graphs.step([5] * num_rows, [position] * num_rows, [0.5] * num_rows, SAMPLING)
    assert graphs.num_recordings >= 16
    assert torch.cuda.memory_reserved() - first < 64 * 2**20


class AskingStep(SlotStep):
    """Looks at a value, which a capture cannot."""

    def hidden(self, *inputs: Any) -> Tensor:
        hidden = super().hidden(*inputs)
        return hidden if float(hidden.sum()) == float(hidden.sum()) else -hidden


class WaitingStep(SlotStep):
    """Waits for the device in a way that only a capture refuses."""

    def hidden(self, *inputs: Any) -> Tensor:
        hidden = super().hidden(*inputs)
        torch.cuda.synchronize()
        return hidden


@pytest.mark.parametrize("kind", [AskingStep, WaitingStep])
def test_what_cannot_be_captured_runs_eagerly_and_says_so(kind: type[SlotStep]) -> None:
    policy = cuda_policy(torch.bfloat16)
    inputs = [5, 6, 7], [3, 9, 40], [0.1, 0.5, 0.9]
    expected = DecodeGraphs(step_of(policy), EagerRecorder()).step(*inputs, SAMPLING)
    recorder = RecorderWithFallback(CudaRecorder(device()))
    found = DecodeGraphs(step_of(policy, kind=kind), recorder).step(*inputs, SAMPLING)
    assert torch.equal(found.token_ids, expected.token_ids)
    assert recorder.facts["decode"] == "eager" and recorder.facts["decode_capture_refused"]
    noise = torch.rand(4, device=device())  # the generator is as usable as before
    torch.manual_seed(0)
    assert noise.isfinite().all() and torch.cuda.current_stream() == torch.cuda.default_stream()
    again = DecodeGraphs(step_of(policy), CudaRecorder(device()))  # raises where it cannot capture
    assert torch.equal(again.step(*inputs, SAMPLING).token_ids, expected.token_ids)


def test_training_between_samplings_does_not_disturb_graphs() -> None:
    """The allocator hands out other memory; what graphs hold stays theirs."""
    policy, requests = cuda_policy(torch.bfloat16), requests_for([5, 17, 9])
    sampler = sampler_of(policy)
    expected = completions(sampler, requests)
    for size in (1, 7, 63):
        junk = [torch.full((size, 2**18), 7.0, device=device()) for _ in range(8)]
        del junk
        torch.cuda.empty_cache()
        mean_gap(policy, requests, expected)
        assert completions(sampler, requests) == expected
