"""Under a response_format every completion is JSON of its schema, and the trainer sees the masked distribution."""

import json

import jsonschema
import numpy as np
import pytest
import torch

from rft.graders.json_schema import unenforceable
from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.rollout.native import NativeSampler
from rft.rollout.plain import PlainSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.types import Completion
from tests.schemas import SCHEMAS, an_object
from tests.tiny import tiny_policy, tiny_tokenizer

END = 2
MAX_TOKENS = 400
SMALL = an_object(a={"enum": ["x", "yy"]}, b={"type": "string", "maxLength": 12})


def settings_for(schema: object, temperature: float = 1.0, top_p: float = 1.0) -> SamplingSettings:
    return SamplingSettings(temperature, top_p, MAX_TOKENS, schema=json.dumps(schema))


def requests_for(num_prompts: int = 3, num_samples: int = 4) -> list[SampleRequest]:
    prompts = [
        tuple((7 * i + 11 * n) % 250 + 4 for i in range(5 + 9 * n)) for n in range(num_prompts)
    ]
    return [
        SampleRequest(ids, num_samples, 0, Purpose.TRAIN, 1, ordinal)
        for ordinal, ids in enumerate(prompts)
    ]


def native(policy: Policy, num_slots: int = 8) -> NativeSampler:
    return NativeSampler(policy, Transcriber(tiny_tokenizer(), [END]), num_slots)


def plain(policy: Policy) -> PlainSampler:
    policy.stop_packing("a test")
    return PlainSampler(policy, Transcriber(tiny_tokenizer(), [END]), 8)


def drawn(
    sampler: Sampler, settings: SamplingSettings, requests: list[SampleRequest]
) -> list[Sampled]:
    found = list(sampler.sample(requests, settings))
    return sorted(found, key=lambda one: (one.request, one.sample))


def assert_valid(completion: Completion, schema: object) -> None:
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(json.loads(completion.output_text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_completion_is_json_of_its_schema_unless_truncated(name: str) -> None:
    schema = SCHEMAS[name]
    assert unenforceable(schema) is None
    found = drawn(native(tiny_policy()), settings_for(schema), requests_for())
    whole = [one.completion for one in found if not one.completion.is_truncated]
    assert whole or name == "any object"
    for completion in whole:
        assert completion.token_ids[-1] == END
        assert_valid(completion, schema)


@pytest.mark.parametrize("make", [native, plain])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 0.6)])
def test_the_trainer_scores_the_masked_distribution(make, temperature: float, top_p: float) -> None:
    policy, requests = tiny_policy(), requests_for()
    found = drawn(make(policy), settings_for(SMALL, temperature, top_p), requests)
    groups = [
        TokenGroup(
            request.prompt_ids,
            tuple(one.completion.token_ids for one in found if one.request == index),
            tuple(one.completion.allowed_tokens for one in found if one.request == index),
        )
        for index, request in enumerate(requests)
    ]
    batch = pack(groups, policy.device)
    with torch.no_grad():
        scored = policy.score(batch, temperature).logprobs
        unmasked = policy.score(
            pack([TokenGroup(g.prompt_ids, g.completions) for g in groups], policy.device),
            temperature,
        ).logprobs
    recorded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one.completion.sampling_logprobs) for one in found], batch_first=True
    )
    gap = (scored - recorded)[batch.completion_mask].abs()
    assert gap.mean() < 1e-5 and gap.max() < 5e-4
    assert (unmasked - recorded)[batch.completion_mask].abs().mean() > 0.1


def test_a_token_is_always_one_of_those_allowed_and_a_forced_one_is_certain() -> None:
    forced = 0
    for one in drawn(native(tiny_policy()), settings_for(SMALL), requests_for()):
        completion = one.completion
        assert completion.allowed_tokens is not None
        bits = np.unpackbits(completion.allowed_tokens, axis=1, count=260)
        for token_id, logprob, allowed in zip(
            completion.token_ids, completion.sampling_logprobs, bits, strict=True
        ):
            assert allowed[token_id]
            if allowed.sum() == 1:
                forced += 1
                assert logprob == 0
    assert forced > 50


@pytest.mark.parametrize("num_slots", [1, 3, 20])
def test_completions_are_independent_of_their_neighbours(num_slots: int) -> None:
    policy, requests = tiny_policy(), requests_for()
    expected = drawn(native(policy), settings_for(SMALL), requests)
    found = drawn(native(policy, num_slots), settings_for(SMALL), requests)
    for one, other in zip(expected, found, strict=True):
        assert one.completion.token_ids == other.completion.token_ids
        assert one.completion.sampling_logprobs == other.completion.sampling_logprobs
        assert np.array_equal(one.completion.allowed_tokens, other.completion.allowed_tokens)


def test_both_samplers_draw_the_same() -> None:
    requests = requests_for()
    ours = drawn(native(tiny_policy()), settings_for(SMALL), requests)
    theirs = drawn(plain(tiny_policy()), settings_for(SMALL), requests)
    assert [one.completion.token_ids for one in ours] == [
        one.completion.token_ids for one in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.completion.allowed_tokens, other.completion.allowed_tokens)


def test_greedy_completions_are_valid_too() -> None:
    for one in drawn(native(tiny_policy()), settings_for(SMALL, temperature=0.0), requests_for()):
        assert_valid(one.completion, SMALL)


def test_json_that_does_not_end_within_the_limit_is_truncated() -> None:
    settings = SamplingSettings(1.0, 1.0, 3, schema=json.dumps(SMALL))
    for one in drawn(native(tiny_policy()), settings, requests_for()):
        assert one.completion.is_truncated and len(one.completion.token_ids) == 3


def test_without_a_schema_nothing_is_masked() -> None:
    found = drawn(native(tiny_policy()), SamplingSettings(1.0, 1.0, 5), requests_for())
    assert all(one.completion.allowed_tokens is None for one in found)
