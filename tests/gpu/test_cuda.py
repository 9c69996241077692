"""The invariants on a CUDA device: what a GPU machine runs before it is trusted."""

import pytest
import torch

from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import SampleRequest, SamplingSettings
from rft.rollout.selftest import check_sampler
from rft.rollout.transcribe import Transcriber
from rft.training.advantages import advantages
from rft.training.batch import training_groups
from rft.training.ranks import Ranks
from rft.training.update import Updater
from tests.invariants.test_gradients import sample_groups
from tests.jobs import resolved_job
from tests.tiny import make_adapter_large, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SAMPLING = SamplingSettings(temperature=0.8, top_p=1.0, max_tokens=24)


def cuda_policy(dtype: torch.dtype, scale: float = 0.3) -> Policy:
    policy = new_policy(tiny_model().to("cuda", dtype), LoraShape(rank=4, alpha=8), 0)
    make_adapter_large(policy, scale)
    return policy


@pytest.mark.parametrize(
    ("dtype", "mean_limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=["fp32", "bf16"]
)
def test_sampling_logprobs_are_the_policy_logprobs(dtype: torch.dtype, mean_limit: float) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    policy = cuda_policy(dtype)
    sampler = NativeSampler(policy, Transcriber(tiny_tokenizer(), [2]), 8)
    assert sampler.is_exact == (dtype == torch.float32)
    assert not sampler.invariance.is_bitwise
    check_sampler(sampler, policy)
    prompts = [tuple(range(4, 4 + n)) for n in (5, 17, 9)]
    requests = [
        SampleRequest(ids, 4, 0, Purpose.TRAIN, 1, ordinal) for ordinal, ids in enumerate(prompts)
    ]
    sampled = sorted(sampler.sample(requests, SAMPLING), key=lambda s: (s.request, s.sample))
    groups = [
        TokenGroup(ids, tuple(s.completion.token_ids for s in sampled if s.request == index))
        for index, ids in enumerate(prompts)
    ]
    batch = pack(groups, policy.device)
    with torch.no_grad():
        logprobs = policy.score(batch, SAMPLING.temperature).logprobs.cpu()
    recorded = [torch.tensor(s.completion.sampling_logprobs) for s in sampled]
    padded = torch.nn.utils.rnn.pad_sequence(recorded, batch_first=True)
    gap = (logprobs - padded)[batch.completion_mask.cpu()].abs()
    assert gap.mean() < mean_limit


def test_the_gradient_is_that_of_the_cpu() -> None:
    groups = sample_groups()
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    found = {}
    for device in ("cpu", "cuda"):
        policy = new_policy(tiny_model().to(device), LoraShape(rank=4, alpha=8), 0)
        make_adapter_large(policy)
        updater = Updater(resolved_job(), policy, Ranks(use_cpu=False), 10, True)
        updater.accumulate_gradients(1, members, None)
        found[device] = {n: p.grad.cpu() for n, p in policy.parameters().items()}
    for name, expected in found["cpu"].items():
        assert (found["cuda"][name] - expected).norm() / expected.norm() < 1e-3
