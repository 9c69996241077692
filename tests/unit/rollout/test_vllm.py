"""The vLLM sampler against a server in miniature: what it asks, what it makes of answers, and how it ends."""

from collections.abc import Iterator

import pytest
import torch

from rft.errors import JobError, MachineError
from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.rollout.randomness import Purpose, uniforms
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm import VllmRules, VllmSampler, seed_of
from rft.rollout.vllm_server import VllmServer
from tests.tiny import tiny_policy, tiny_tokenizer
from tests.unit.rollout.fake_vllm import FakeVllm, fake_vllm

PROMPTS = ((5, 6, 7, 8), (9, 10, 11))
RULES = VllmRules(num_slots=4, tolerance=0.01)
END = 2


def server_of(fake: FakeVllm, needed_tokens: int = 64) -> VllmServer:
    return VllmServer(fake.url, 20.0, 4, needed_tokens, backoff_seconds=0.001)


def sampler_of(policy: Policy, *fakes: FakeVllm, rules: VllmRules = RULES) -> VllmSampler:
    transcriber = Transcriber(tiny_tokenizer(), [END])
    return VllmSampler(policy, transcriber, [server_of(fake) for fake in fakes], rules)


def requests(num_samples: int = 3) -> list[SampleRequest]:
    return [
        SampleRequest(ids, num_samples, 7, Purpose.TRAIN, 1, n) for n, ids in enumerate(PROMPTS)
    ]


def sampled(sampler: Sampler, settings: SamplingSettings, num_samples: int = 3) -> list[Sampled]:
    found = sampler.sample(requests(num_samples), settings)
    return sorted(found, key=lambda one: (one.request, one.sample))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_recorded_logprobs_are_the_trainers(
    policy: Policy, fake: FakeVllm, temperature: float
) -> None:
    found = sampled(sampler_of(policy, fake), SamplingSettings(temperature, 1.0, 9))
    assert [(one.request, one.sample) for one in found] == [
        (r, s) for r in (0, 1) for s in range(3)
    ]
    for one in found:
        completion = one.completion
        group = TokenGroup(PROMPTS[one.request], (completion.token_ids,))
        with torch.no_grad():
            scored = policy.score(pack([group], policy.device), temperature or 1.0).logprobs[0]
        recorded = torch.tensor(completion.sampling_logprobs)
        assert (scored - recorded).norm() <= 1e-4 * recorded.norm() + 1e-5
    assert isinstance(sampler_of(policy, fake), Sampler)


def test_each_completion_has_its_own_counted_seed(policy: Policy, fake: FakeVllm) -> None:
    settings = SamplingSettings(1.0, 1.0, 6)
    sampler = sampler_of(policy, fake)
    first = sampled(sampler, settings)
    bodies = [body for body in fake.bodies("/v1/completions") if body.get("return_token_ids")]
    assert len({body["seed"] for body in bodies}) == len(bodies) == 6
    (point,) = uniforms(7, Purpose.TRAIN, 1, 1, 2, 1)
    assert seed_of(requests()[1], 2) == point * 2**53
    assert seed_of(requests()[1], 2) in {body["seed"] for body in bodies}
    assert sampled(sampler, settings) == first


def test_a_request_leaves_nothing_to_the_models_generation_config(
    policy: Policy, fake: FakeVllm
) -> None:
    sampled(sampler_of(policy, fake), SamplingSettings(0.7, 1.0, 2, ("\n",)), num_samples=1)
    body = fake.bodies("/v1/completions")[-1]
    assert body.items() >= {
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": [END], "stop": ["\n"],
        "max_tokens": 2, "temperature": 0.7, "logprobs": 0,
    }.items()  # fmt: skip


def test_a_completion_ends_by_our_own_rule(policy: Policy, fake: FakeVllm) -> None:
    """The miniature knows no stop strings: what it draws beyond one is cut off, logprobs with it."""
    sampler = sampler_of(policy, fake)
    whole = sampled(sampler, SamplingSettings(1.0, 1.0, 12))
    text = max((one.completion.text for one in whole), key=len)
    stop = text[2]
    for before, after in zip(
        whole, sampled(sampler, SamplingSettings(1.0, 1.0, 12, (stop,))), strict=True
    ):
        count = len(after.completion.token_ids)
        assert after.completion.token_ids == before.completion.token_ids[:count]
        assert after.completion.sampling_logprobs == before.completion.sampling_logprobs[:count]
        assert stop not in after.completion.output_text
        if stop in before.completion.text:
            assert after.completion.finish_reason == "stop"
            assert after.completion.text.endswith(stop)
        else:
            assert after.completion == before.completion


def test_a_group_stays_on_one_of_several_replicas(policy: Policy, fake: FakeVllm) -> None:
    with fake_vllm() as second:
        sampler = sampler_of(policy, fake, second)
        alone = sampled(sampler_of(policy, fake), SamplingSettings(1.0, 1.0, 4))
        fake.calls.clear()
        assert sampled(sampler, SamplingSettings(1.0, 1.0, 4)) == alone
        for server, prompt in ((fake, PROMPTS[0]), (second, PROMPTS[1])):
            asked = [b["prompt"] for b in server.bodies("/v1/completions") if b["max_tokens"] == 4]
            assert asked == [list(prompt)] * 3


def test_a_busy_or_broken_reply_is_asked_again(policy: Policy, fake: FakeVllm) -> None:
    sampler = sampler_of(policy, fake)
    expected = sampled(sampler, SamplingSettings(1.0, 1.0, 3))
    fake.failures = [503, 0, 500, 429]
    assert sampled(sampler, SamplingSettings(1.0, 1.0, 3)) == expected
    assert fake.failures == []


def test_a_server_that_dies_is_an_error_with_its_url_and_a_remedy(policy: Policy) -> None:
    with fake_vllm() as server:
        sampler = sampler_of(policy, server)
    with pytest.raises(MachineError) as caught:
        sampled(sampler, SamplingSettings(1.0, 1.0, 3))
    told = str(caught.value)
    assert server.url in told and "cannot be reached" in told and "--resume" in told


def test_a_restarted_server_has_lost_the_adapter(policy: Policy, fake: FakeVllm) -> None:
    sampler = sampler_of(policy, fake)
    fake.names.clear()
    with pytest.raises(MachineError, match=r"does not exist.*lost the adapter"):
        sampled(sampler, SamplingSettings(1.0, 1.0, 3))


def test_a_server_without_token_ids_is_too_old(policy: Policy, fake: FakeVllm) -> None:
    sampler = sampler_of(policy, fake)
    fake.drops_token_ids = True
    with pytest.raises(MachineError, match=r"no token ids.*0\.32"):
        sampled(sampler, SamplingSettings(1.0, 1.0, 3))


def test_a_context_too_short_is_told_at_the_start(fake: FakeVllm) -> None:
    with pytest.raises(MachineError, match=r"holds 512 tokens.*--max-model-len 513"):
        server_of(fake, needed_tokens=513)
    assert server_of(fake, needed_tokens=512).version == "0.32.0"


def test_nucleus_sampling_is_refused(policy: Policy, fake: FakeVllm) -> None:
    sampler = sampler_of(policy, fake)
    with pytest.raises(JobError, match="top_p"):
        list(sampler.sample(requests(), SamplingSettings(1.0, 0.9, 3)))


def test_it_says_what_it_is(policy: Policy, fake: FakeVllm) -> None:
    sampler = sampler_of(policy, fake)
    assert sampler.facts == {
        "sampler": "vllm",
        "bitwise": False,
        "vllm": "0.32.0",
        "num_replicas": 1,
    }
    assert not sampler.is_exact and sampler.spent == {}
