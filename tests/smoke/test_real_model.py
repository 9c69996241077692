"""The built-in 135M model: exact logprobs, completions that do not depend on their neighbours."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rft.job import ModelSettings
from rft.models import encode_prompts, end_token_ids, find_model, load_model, load_tokenizer
from rft.packing import TokenGroup, pack, prefix_length
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.types import Completion, Example
from tests.tiny import make_adapter_large

pytestmark = pytest.mark.model


@dataclass(frozen=True)
class Real:
    """The built-in model with a large adapter, and requests to sample from it."""

    policy: Policy
    transcriber: Transcriber
    requests: list[SampleRequest]

    def sampler(self, num_slots: int) -> NativeSampler:
        """As a job with these prompts has it."""
        sampler = NativeSampler(self.policy, self.transcriber, num_slots)
        prompts = [request.prompt_ids for request in self.requests]
        length = prefix_length(prompts)
        assert length >= 25, "the system message and the words of the question"
        sampler.share_prefix(prompts[0][:length])
        return sampler


@pytest.fixture(scope="module")
def real() -> Real:
    source = find_model("smollm2-135m-instruct", runs_folder=Path("runs"))
    settings = ModelSettings()
    tokenizer = load_tokenizer(source, settings)
    policy = new_policy(load_model(source, settings, "float32", "cpu"), LoraShape(), 0)
    make_adapter_large(policy, scale=0.02)
    subjects = ("the sea", "bread", "Peru", "a clock", "snow", "music", "iron", "a horse")
    examples = [
        Example(i, ({"role": "user", "content": f"Write one short sentence about {subject}."},), {})
        for i, subject in enumerate(subjects)
    ]
    prompts = encode_prompts(
        tokenizer, examples, chat_template_kwargs={}, max_prompt_tokens=512, source_name="test"
    )
    ends = end_token_ids(policy.base.config, policy.base.generation_config, tokenizer)
    requests = [
        SampleRequest(prompt.token_ids, 8, 0, Purpose.TRAIN, 1, ordinal)
        for ordinal, prompt in enumerate(prompts)
    ]
    return Real(policy, Transcriber(tokenizer, ends), requests)


def test_completions_do_not_depend_on_slots_order_or_neighbours(real: Real) -> None:
    settings = SamplingSettings(0.8, 1.0, 10)
    requests = real.requests[:3]

    def sampled(num_slots: int, chosen: list[SampleRequest]) -> dict[tuple[int, int], Completion]:
        sampler = real.sampler(num_slots)
        assert sampler.invariance.is_bitwise
        found = sampler.sample(chosen, settings)
        return {(chosen[s.request].ordinal, s.sample): s.completion for s in found}

    expected = sampled(24, requests)
    assert sampled(5, requests[::-1]) == expected
    alone = sampled(24, requests[1:2])
    assert alone == {place: expected[place] for place in alone}


def test_sampler_and_trainer_agree_on_thousands_of_tokens(real: Real) -> None:
    """In micro-batches of four groups, which share a prefix and attend together, as a job's do."""
    policy, ends = real.policy, real.transcriber.end_token_ids
    found = list(real.sampler(32).sample(real.requests, SamplingSettings(0.8, 1.0, 56)))
    sampled = [
        [one.completion for one in found if one.request == index]
        for index in range(len(real.requests))
    ]
    gaps, effects = [], []
    for first in range(0, len(sampled), 4):
        some = range(first, first + 4)
        groups = [
            TokenGroup(real.requests[i].prompt_ids, tuple(c.token_ids for c in sampled[i]))
            for i in some
        ]
        batch = pack(groups, policy.device, num_rows=policy.num_rows)
        with torch.no_grad():
            logprobs = policy.score(batch, 0.8).logprobs
        recorded = [torch.tensor(c.sampling_logprobs) for i in some for c in sampled[i]]
        padded = torch.nn.utils.rnn.pad_sequence(recorded, batch_first=True)
        gaps.append((logprobs - padded)[batch.completion_mask].abs())
        reference = policy.reference_logprobs(batch, 0.8)
        effects.append((logprobs - reference)[batch.completion_mask].abs())
    gap, effect = torch.cat(gaps), torch.cat(effects)
    num_ends = sum(c.token_ids[-1] in ends for completions in sampled for c in completions)
    print(f"{len(gap)} tokens, {num_ends} ends, mean {gap.mean():.2e}, max {gap.max():.2e}")
    print(f"effect of the adapter: {effect.mean():.2f} nats")
    assert len(gap) >= 2000 and num_ends >= 10
    assert effect.mean() > 0.1
    assert gap.mean() < 1e-5 and gap.max() < 5e-4
