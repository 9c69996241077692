"""The plain sampler beside the native one, which draws with the same uniforms from the same policy."""

from dataclasses import replace

import pytest
import torch

from rft.errors import ModelError
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout import choose
from rft.rollout.choose import open_sampler, slow_path_warnings
from rft.rollout.memory import SlottedSampler
from rft.rollout.native import NativeSampler
from rft.rollout.plain import PlainSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import (
    NotFiniteError,
    Sampled,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from rft.rollout.transcribe import Transcriber
from tests.tiny import tiny_model, tiny_policy, tiny_tokenizer

TRANSCRIBER = Transcriber(tiny_tokenizer(), [2])
REQUESTS = [
    SampleRequest(tuple((7 * i + 11 * n) % 250 + 4 for i in range(n)), 3, 5, Purpose.TRAIN, 1, k)
    for k, n in enumerate((9, 4, 9, 17))
]
SAMPLING = SamplingSettings(temperature=0.8, top_p=1.0, max_tokens=16)


def drawn(
    sampler: Sampler,
    settings: SamplingSettings = SAMPLING,
    requests: list[SampleRequest] = REQUESTS,
) -> list[Sampled]:
    sampled = sampler.sample(requests, settings)
    return sorted(sampled, key=lambda one: (one.request, one.sample))


def unpacked_policy() -> Policy:
    policy = tiny_policy()
    policy.stop_packing("a test")
    return policy


def require_same(found: list[Sampled], expected: list[Sampled]) -> None:
    assert len(found) == len(expected) == 12
    for one, other in zip(found, expected, strict=True):
        assert (one.request, one.sample) == (other.request, other.sample)
        ours, theirs = one.completion, other.completion
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reason == theirs.finish_reason
        assert (ours.text, ours.output_text) == (theirs.text, theirs.output_text)
        assert ours.sampling_logprobs == pytest.approx(theirs.sampling_logprobs, abs=5e-5)
        if theirs.allowed_tokens is None:
            assert ours.allowed_tokens is None
        else:
            assert ours.allowed_tokens is not None
            assert (ours.allowed_tokens == theirs.allowed_tokens).all()


@pytest.mark.parametrize("why_uncached", [None, "a test"], ids=["cache", "no cache"])
@pytest.mark.parametrize(
    "settings",
    [
        SAMPLING,
        SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=8),
        SamplingSettings(temperature=1.3, top_p=0.6, max_tokens=8),
        SamplingSettings(1.3, 0.6, max_tokens=8, keeps_allowed_tokens=False),
        SamplingSettings(1.0, 1.0, max_tokens=1),
        SamplingSettings(1.5, 1.0, max_tokens=16, stop=("a", "e", "1", "é", "(")),
    ],
    ids=["plain", "greedy", "nucleus", "nucleus unkept", "one token", "stop"],
)
def test_it_draws_what_the_native_sampler_draws(
    settings: SamplingSettings, why_uncached: str | None
) -> None:
    native = NativeSampler(tiny_policy(), TRANSCRIBER, 8)
    plain = PlainSampler(unpacked_policy(), TRANSCRIBER, 8, why_uncached)
    require_same(drawn(plain, settings), drawn(native, settings))


def test_it_draws_with_both_ways_to_end() -> None:
    ends = range(2, 20)
    sampler = PlainSampler(unpacked_policy(), Transcriber(tiny_tokenizer(), ends), 8)
    completions = [one.completion for one in drawn(sampler)]
    for one in completions:
        ended = one.token_ids[-1] in ends
        assert one.finish_reason == ("stop" if ended else "length")
        assert not set(one.token_ids[:-1]) & set(ends)
        assert ended or len(one.token_ids) == SAMPLING.max_tokens
    assert {one.finish_reason for one in completions} == {"stop", "length"}


@pytest.mark.parametrize("num_slots", [1, 2, 5, 50])
def test_slots_change_nothing(num_slots: int) -> None:
    policy = unpacked_policy()
    expected = drawn(PlainSampler(policy, TRANSCRIBER, 3))
    require_same(drawn(PlainSampler(policy, TRANSCRIBER, num_slots)), expected)


def test_no_more_rows_than_slots() -> None:
    policy = unpacked_policy()
    sizes: list[int] = []
    policy.base.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sampler = PlainSampler(policy, TRANSCRIBER, 4)
    drawn(sampler)
    assert max(sizes) == 4
    assert isinstance(sampler, SlottedSampler)
    sampler.halve_slots()
    sizes.clear()
    drawn(sampler)
    assert (sampler.num_slots, max(sizes)) == (2, 2)
    sampler.halve_slots()
    sampler.halve_slots()
    assert sampler.num_slots == 1


def test_tokens_are_counted_by_stage() -> None:
    sampler = PlainSampler(unpacked_policy(), TRANSCRIBER, 50)
    sampled = drawn(sampler)
    spent = sampler.spent
    assert spent["prefill_tokens"] == 3 * (9 + 4 + 9 + 17)
    num_drawn = sum(len(one.completion.token_ids) for one in sampled)
    assert spent["decode_tokens"] == num_drawn - len(sampled)  # the first comes of the prompt
    assert spent["prefill"] > 0 and spent["decode"] > 0
    drawn(sampler)
    assert sampler.spent["prefill_tokens"] == 2 * spent["prefill_tokens"]


def test_it_follows_the_adapter_without_a_refresh() -> None:
    policy = unpacked_policy()
    sampler = PlainSampler(policy, TRANSCRIBER, 8)
    before = [one.completion.token_ids for one in drawn(sampler)]
    for name, parameter in policy.parameters().items():
        if ".lora_B." in name:
            parameter.data.mul_(-1)
    assert before != [one.completion.token_ids for one in drawn(sampler)]


def test_nothing_is_asked_for() -> None:
    assert drawn(PlainSampler(unpacked_policy(), TRANSCRIBER, 8), requests=[]) == []


@pytest.mark.parametrize(("dtype", "is_exact"), [(torch.float32, True), (torch.bfloat16, False)])
def test_it_is_exact_in_float32_alone(dtype: torch.dtype, is_exact: bool) -> None:
    policy = new_policy(tiny_model().to(dtype), LoraShape(4, 8), 0)
    assert PlainSampler(policy, TRANSCRIBER, 8).is_exact is is_exact


@pytest.mark.parametrize("family", ["llama", "bloom", "recurrent_gemma"])
def test_damaged_weights_are_said_to_be_so(family: str) -> None:
    """Whatever the sampler: it is not the family that is not served."""
    policy = tiny_policy(family)
    embeddings = policy.base.get_input_embeddings().weight
    embeddings.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError) as raised:
        open_sampler(policy, TRANSCRIBER, 8)
    assert str(raised.value) == (
        "the model's logits are not finite (engine.model.dtype) → use float32 or bfloat16; "
        "if it is so already, the weights are damaged"
    )


def test_every_token_is_checked_not_the_first_alone() -> None:
    """The row of one token is damaged: only what follows it is no number."""
    policy = unpacked_policy()
    sampler = PlainSampler(policy, TRANSCRIBER, 8)
    greedy = SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=8)
    (sampled,) = sampler.sample([replace(REQUESTS[0], num_samples=1)], greedy)
    first = sampled.completion.token_ids[0]
    assert first not in REQUESTS[0].prompt_ids

    def damage(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        ids = args[0]  # type: ignore[index]
        return output.masked_fill((ids == first)[..., None], float("nan"))

    policy.base.get_input_embeddings().register_forward_hook(damage)
    with pytest.raises(NotFiniteError):
        list(sampler.sample([REQUESTS[0]], greedy))


def test_a_cache_that_is_not_trusted_is_said_to_be_so() -> None:
    policy = tiny_policy("recurrent_gemma")
    sampler = open_sampler(policy, TRANSCRIBER, 8)
    assert sampler.facts["sampler"] == "plain, uncached"
    why = str(sampler.facts["why_uncached"])
    assert "disagree by" in why or "Error" in why
    (warning,) = slow_path_warnings(policy, sampler)
    assert "uncached, a pass over everything per token" in warning and why in warning


def test_a_mainstream_model_is_served_by_the_native_sampler() -> None:
    policy = tiny_policy()
    sampler = open_sampler(policy, TRANSCRIBER, 8)
    assert isinstance(sampler, NativeSampler)
    assert slow_path_warnings(policy, sampler) == []


@pytest.mark.parametrize(
    ("family", "is_fast"), [("mistral sliding", True), ("qwen2_moe sliding", False)]
)
def test_a_window_longer_than_what_is_tried(family: str, is_fast: bool) -> None:
    """A window that attention is not told of would show in long prompts alone."""
    policy = tiny_policy(family, sliding_window=64)
    sampler = open_sampler(policy, TRANSCRIBER, 8)
    assert isinstance(sampler, NativeSampler) is is_fast
    if not is_fast:
        assert policy.why_unpacked == "Qwen2MoeAttention keeps its window in a mask of its own"


def test_a_policy_that_stopped_packing_never_goes_back() -> None:
    policy = unpacked_policy()
    sampler = open_sampler(policy, TRANSCRIBER, 8)
    assert sampler.facts == {"sampler": "plain", "why_plain": "a test", "bitwise": False}
    (warning,) = slow_path_warnings(policy, sampler)
    assert "uncached" not in warning
    assert warning.startswith(
        "the fast sampler and the packed training pass do not serve LlamaForCausalLM (a test): "
    )


def test_a_model_that_contradicts_itself_is_refused() -> None:
    """Its logits are other ones each time."""
    policy = tiny_policy()

    def add_noise(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output + torch.randn(output.shape)

    policy.base.get_output_embeddings().register_forward_hook(add_noise)
    with pytest.raises(ModelError) as refusal:
        open_sampler(policy, TRANSCRIBER, 8)
    said = str(refusal.value)
    assert (
        "LlamaForCausalLM does not fit the engine: the sampler and LlamaForCausalLM disagree"
        in said
    )
    assert said.endswith("(model) → this model family is not supported yet")


def test_want_of_memory_is_no_fault_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NativeSampler:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate …")

    monkeypatch.setattr(choose, "NativeSampler", fail)
    policy = tiny_policy()
    with pytest.raises(RuntimeError, match="allocate memory"):
        open_sampler(policy, TRANSCRIBER, 8)
    assert policy.why_unpacked is None
