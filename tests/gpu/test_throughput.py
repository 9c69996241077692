"""Decoded tokens per second at the size of SmolLM2-135M, launched one by one and captured; printed, compared."""

import pytest
import torch

from rft.policy import LoraShape, Policy, new_policy
from rft.rollout.native import NativeSampler
from rft.rollout.recorders import EagerRecorder, Recorder
from rft.rollout.sampler import SamplingSettings
from rft.rollout.transcribe import Transcriber
from tests.gpu.on_device import EACH_DTYPE, ON_DEVICE, CountingRecorder, requests_for
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = ON_DEVICE

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
ROWS = (1, 8, 32, 128)
SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=96)


def tokens_per_second(policy: Policy, num_rows: int, recorder: Recorder) -> float:
    """Of decoding alone, with `num_rows` completions of one prompt that never end early."""
    endless = Transcriber(tiny_tokenizer(), [])
    sampler = NativeSampler(policy, endless, num_rows, recorder)
    requests = requests_for([50], num_samples=num_rows)
    list(sampler.sample(requests, SETTINGS))  # captures what the second pass replays
    before = dict(sampler.spent)
    list(sampler.sample(requests, SETTINGS))
    after = sampler.spent
    num_tokens = after["decode_tokens"] - before["decode_tokens"]
    return num_tokens / (after["decode"] - before["decode"])


@EACH_DTYPE
def test_graphs_are_faster_at_every_row_count(
    dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = new_policy(tiny_model(**SHAPE).to("cuda", dtype), LoraShape(rank=16, alpha=32), 0)
    found = {}
    for num_rows in ROWS:
        eager = tokens_per_second(policy, num_rows, EagerRecorder())
        found[num_rows] = eager, tokens_per_second(policy, num_rows, CountingRecorder())
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}, {dtype}, decoded tokens per second")
        for num_rows, (eager, captured) in found.items():
            ratio = captured / eager
            print(f"{num_rows:5d} rows  eager {eager:9.0f}  graphs {captured:9.0f}  ×{ratio:.1f}")
    assert all(captured > eager for eager, captured in found.values())
    assert found[8][1] > 2 * found[8][0]
