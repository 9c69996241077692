"""The built-in model under many schemas: what ends is valid, at little cost, and as the trainer sees it."""

import json
import time
from pathlib import Path

import jsonschema
import pytest
import torch

from rft.job import ModelSettings
from rft.models import end_token_ids, find_model, load_model, load_tokenizer
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout import draw
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from tests.schemas import SCHEMAS
from tests.tiny import make_adapter_large

pytestmark = [pytest.mark.long, pytest.mark.model, pytest.mark.timeout(3600)]
SUBJECTS = ("a city", "a person", "a garden", "a car")
SAMPLES = 18
MAX_TOKENS = 96


@pytest.fixture(scope="module")
def parts() -> tuple[Policy, NativeSampler, list[SampleRequest]]:
    source, settings = (
        find_model("smollm2-135m-instruct", runs_folder=Path("runs")),
        ModelSettings(),
    )
    tokenizer = load_tokenizer(source, settings)
    base = load_model(source, settings, "float32", "cpu")
    policy = new_policy(base, LoraShape(), 0)
    make_adapter_large(policy, scale=0.004)
    ends = end_token_ids(base.config, base.generation_config, tokenizer)
    requests = []
    for ordinal, subject in enumerate(SUBJECTS):
        messages = [{"role": "user", "content": f"Give me a JSON document about {subject}."}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        requests.append(SampleRequest(tuple(ids), SAMPLES, 0, Purpose.TRAIN, 1, ordinal))
    return policy, NativeSampler(policy, Transcriber(tokenizer, ends), num_slots=72), requests


def gaps(policy: Policy, requests: list[SampleRequest], sampled: list[Sampled]) -> torch.Tensor:
    """|policy − sampling logprob| of the tokens of four completions a prompt."""
    chosen = [[s for s in sampled if s.request == i][:4] for i in range(len(requests))]
    groups = [
        TokenGroup(
            request.prompt_ids,
            tuple(s.completion.token_ids for s in some),
            tuple(s.completion.allowed_tokens for s in some),
        )
        for request, some in zip(requests, chosen, strict=True)
    ]
    batch = pack(groups, policy.device)
    with torch.no_grad():
        scored = policy.score(batch, 1.0).logprobs
    recorded = [torch.tensor(s.completion.sampling_logprobs) for some in chosen for s in some]
    padded = torch.nn.utils.rnn.pad_sequence(recorded, batch_first=True)
    return (scored - padded)[batch.completion_mask].abs()


def test_a_thousand_completions_are_valid(parts) -> None:
    policy, sampler, requests = parts
    num_whole, all_gaps = 0, []
    for name, schema in SCHEMAS.items():
        settings = SamplingSettings(1.0, 1.0, MAX_TOKENS, schema=json.dumps(schema))
        sampled = list(sampler.sample(requests, settings))
        whole = [s.completion for s in sampled if not s.completion.is_truncated]
        draft = jsonschema.Draft202012Validator
        validator = draft(schema, format_checker=draft.FORMAT_CHECKER)
        for completion in whole:
            validator.validate(json.loads(completion.output_text))
        all_gaps.append(gaps(policy, requests, sampled))
        num_whole += len(whole)
        print(f"{name}: {len(whole)} of {len(sampled)} ended, all valid")
    gap = torch.cat(all_gaps)
    print(f"{num_whole} valid; logprobs differ by {gap.mean():.1e}, at most {gap.max():.1e}")
    assert num_whole >= 1000
    assert gap.mean() < 1e-5 and gap.max() < 5e-4


def test_masking_costs_under_a_tenth_of_decoding(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds in which a token's mask is computed, applied and moved on from, of all seconds of decoding."""
    _, sampler, requests = parts
    spent = [0.0]

    def timed(call):
        def measured(*args, **kwargs):
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - began

        return measured

    monkeypatch.setattr(NativeSampler, "_allowed", timed(NativeSampler._allowed))
    monkeypatch.setattr(NativeSampler, "_take", timed(NativeSampler._take))
    monkeypatch.setattr(draw, "tempered", timed(draw.tempered))
    shares = {}
    for name in ("flat", "nested", "formats", "patterns", "any of"):
        settings = SamplingSettings(1.0, 1.0, MAX_TOKENS, schema=json.dumps(SCHEMAS[name]))
        spent[0], before = 0.0, sampler.spent.get("decode", 0.0)
        list(sampler.sample(requests, settings))
        shares[name] = spent[0] / (sampler.spent["decode"] - before)
    print({name: f"{share:.1%}" for name, share in shares.items()})
    assert max(shares.values()) < 0.10
