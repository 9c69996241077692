"""Policies, samplers and comparisons on a CUDA device, for the tests beside it."""

from collections.abc import Sequence

import pytest
import torch

from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.recorders import CudaRecorder, Kernels, Recorder, Recording
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from tests.tiny import make_adapter_large, tiny_model, tiny_tokenizer

ON_DEVICE = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
MEAN_GAP = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Mean |policy − sampling logprob| that rounding explains, nats."""
SAMPLING = SamplingSettings(temperature=0.8, top_p=1.0, max_tokens=40)


class CountingRecorder:
    """Captures CUDA graphs and knows how many."""

    def __init__(self) -> None:
        self._recorder = CudaRecorder(torch.device("cuda", torch.cuda.current_device()))
        self.num_recorded = 0

    @property
    def facts(self) -> dict[str, object]:
        return dict(self._recorder.facts)

    def record(self, kernels: Kernels) -> Recording:
        self.num_recorded += 1
        return self._recorder.record(kernels)


def cuda_policy(dtype: torch.dtype, family: str = "llama", scale: float = 0.3) -> Policy:
    """The tiny policy with an adapter that matters."""
    policy = new_policy(tiny_model(family).to("cuda", dtype), LoraShape(rank=4, alpha=8), 0)
    make_adapter_large(policy, scale)
    return policy


def sampler_of(
    policy: Policy, num_slots: int = 8, recorder: Recorder | None = None
) -> NativeSampler:
    return NativeSampler(policy, Transcriber(tiny_tokenizer(), [2]), num_slots, recorder)


def requests_for(lengths: Sequence[int], num_samples: int = 4) -> list[SampleRequest]:
    prompts = [tuple((7 * i + 11 * n) % 250 + 4 for i in range(n)) for n in lengths]
    return [
        SampleRequest(ids, num_samples, 0, Purpose.TRAIN, 1, ordinal)
        for ordinal, ids in enumerate(prompts)
    ]


def completions(
    sampler: NativeSampler, requests: list[SampleRequest], settings: SamplingSettings = SAMPLING
) -> list[Sampled]:
    return sorted(sampler.sample(requests, settings), key=lambda one: (one.request, one.sample))


def mean_gap(policy: Policy, requests: list[SampleRequest], sampled: list[Sampled]) -> float:
    """Mean |policy − sampling logprob|, scored as the trainer does, nats."""
    groups = [
        TokenGroup(
            request.prompt_ids,
            tuple(s.completion.token_ids for s in sampled if s.request == index),
            tuple(s.completion.allowed_tokens for s in sampled if s.request == index),
        )
        for index, request in enumerate(requests)
    ]
    batch = pack(groups, policy.device)
    with torch.no_grad():
        logprobs = policy.score(batch, SAMPLING.temperature).logprobs.cpu()
    recorded = [torch.tensor(s.completion.sampling_logprobs) for s in sampled]
    padded = torch.nn.utils.rnn.pad_sequence(recorded, batch_first=True)
    return float((logprobs - padded)[batch.completion_mask.cpu()].abs().mean())


def negate_adapter(policy: Policy) -> None:
    """Change every B in place, as an optimizer does."""
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            if ".lora_B." in name:
                parameter.mul_(-1)


def assert_nearly_all_same(found: list[Sampled], expected: list[Sampled]) -> None:
    """The promise off the CPU: tokens differ only where a uniform lies at the edge of a token."""
    same = [
        one.completion.token_ids == other.completion.token_ids
        for one, other in zip(found, expected, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)
