"""Recorded decoding steps against the plain path, bit for bit, with recordings that fix what a graph fixes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import rft.linear
from rft.attention import use_layouts
from rft.head import Head
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout import graphs
from rft.rollout.draw import draw
from rft.rollout.graphs import DecodeGraphs, SlotStep, length_buckets, row_buckets
from rft.rollout.memory import release_memory
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.recorders import (
    EagerRecorder,
    EagerRecording,
    Kernels,
    Recorder,
    RecorderWithFallback,
    Recording,
)
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.slots import LENGTH_BUCKET, Slots
from rft.rollout.transcribe import Transcriber
from tests.tiny import FAMILIES, make_adapter_large, tiny_model, tiny_policy, tiny_tokenizer

SAMPLING = SamplingSettings(temperature=0.8, top_p=1.0, max_tokens=40)
META = torch.device("meta")


class Operations(TorchDispatchMode):
    """Keeps every operation with the tensors it was given and those it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, given))
        return given


class NoConstants(TorchFunctionMode):
    """Refuses to make a tensor of Python's numbers: on a device that is a copy which waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor):
            raise RuntimeError("a constant is copied to the device")
        return func(*args, **(kwargs or {}))


class FixedRecording:
    """Runs the same operations on the same storage again: Python is not asked what to do."""

    num_bytes = 0

    def __init__(self, kernels: Kernels):
        with Operations() as operations:
            kernels()
        self.calls = operations.calls

    def replay(self) -> None:
        present: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return present.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, given in self.calls:
            again = func(*tree_map(now, args), **tree_map(now, kwargs))
            for old, new in zip(tree_flatten(given)[0], tree_flatten(again)[0], strict=True):
                present[id(old)] = new


class FixedRecorder:
    facts: ClassVar[dict[str, object]] = {"decode": "fixed"}

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, kernels: Kernels) -> Recording:
        self.num_recorded += 1
        return FixedRecording(kernels)


def recording_sampler(policy: Policy, num_slots: int, recorder: Recorder) -> NativeSampler:
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


def plain_sampler(policy: Policy, num_slots: int = 8) -> NativeSampler:
    """With the layout that recordings have: a copy of the prompt in each slot."""
    sampler = sharing_sampler(policy, num_slots)
    sampler.invariance = replace(sampler.invariance, prompt_row_multiple=0)
    return sampler


def sharing_sampler(policy: Policy, num_slots: int = 8) -> NativeSampler:
    return NativeSampler(policy, Transcriber(tiny_tokenizer(), [2]), num_slots)


def unpacked_policy(monkeypatch: pytest.MonkeyPatch, family: str = "llama") -> Policy:
    """Merged matrices as a device has them: plain tensors, written to in place."""
    monkeypatch.setattr(rft.linear, "packing_works", lambda: False)
    return tiny_policy(family)


def bfloat16_policy() -> Policy:
    """Sampled through the adapter."""
    policy = new_policy(tiny_model().to(torch.bfloat16), LoraShape(rank=4, alpha=8), 0)
    make_adapter_large(policy)
    return policy


def negate_adapter(policy: Policy) -> None:
    """Change B in place, as an optimizer does."""
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            if ".lora_B." in name:
                parameter.mul_(-1)


@pytest.mark.parametrize("family", ["llama", "gemma2 sliding", "qwen2 sliding"])
@pytest.mark.parametrize("recorder", [EagerRecorder(), FixedRecorder()], ids=["eager", "fixed"])
def test_completions_are_those_of_the_plain_path(
    monkeypatch: pytest.MonkeyPatch, family: str, recorder: Recorder
) -> None:
    """Ragged prompts, rows that finish, slots that are filled again, lengths that cross buckets."""
    policy = unpacked_policy(monkeypatch, family)
    requests = requests_for([5, 17, 28, 30, 3])
    plain, recorded = plain_sampler(policy), recording_sampler(policy, 8, recorder)
    assert plain.invariance.is_bitwise
    expected = completions(plain, requests)
    assert completions(recorded, requests) == expected
    assert {len(one.completion.token_ids) for one in expected} > {SAMPLING.max_tokens}
    assert recorded.facts["decode"] == recorder.facts["decode"] and "decode" not in plain.facts
    # one for each bucket of key lengths, where the machine's safe number of rows leaves one bucket of rows
    assert not isinstance(recorder, FixedRecorder) or recorder.num_recorded >= 4


@pytest.mark.parametrize(
    ("family", "row_multiple"), [("llama", 1), ("gemma2 sliding", 4), ("qwen2 sliding", 2)]
)
def test_rows_that_read_their_prompt_together_draw_the_same(family: str, row_multiple: int) -> None:
    policy = tiny_policy(family)
    requests = requests_for([5, 17, 28, 30, 3, 41])
    shared, copied = sharing_sampler(policy), plain_sampler(policy)
    shared.invariance = replace(shared.invariance, prompt_row_multiple=row_multiple)
    assert shared.facts["layers"] == ("plain" if "gemma2" in family else "lean")
    pairs = zip(completions(shared, requests), completions(copied, requests), strict=True)
    for one, other in pairs:
        assert one.completion.token_ids == other.completion.token_ids
        np.testing.assert_allclose(
            one.completion.sampling_logprobs, other.completion.sampling_logprobs, atol=1e-4
        )


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=9),
        SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=9),
        SamplingSettings(temperature=0.8, top_p=0.7, max_tokens=9),
        SamplingSettings(temperature=float(LENGTH_BUCKET), top_p=1.0, max_tokens=9),
    ],
    ids=str,
)
def test_each_way_to_draw(monkeypatch: pytest.MonkeyPatch, settings: SamplingSettings) -> None:
    """One sampler goes from one to another: no recording is taken for that of other settings."""
    policy = unpacked_policy(monkeypatch)
    recorded = recording_sampler(policy, 8, FixedRecorder())
    requests = requests_for([5, 9])
    completions(recorded, requests)
    found = completions(recorded, requests, settings)
    for one, other in zip(
        found, completions(plain_sampler(policy), requests, settings), strict=True
    ):
        assert one.completion.token_ids == other.completion.token_ids
        assert one.completion.sampling_logprobs == other.completion.sampling_logprobs
        masks = one.completion.allowed_tokens, other.completion.allowed_tokens
        assert (masks[0] is None) == (masks[1] is None) == (settings.top_p == 1)
        assert masks[0] is None or (masks[0] == masks[1]).all()


def test_what_was_recorded_is_not_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = unpacked_policy(monkeypatch)
    recorder = FixedRecorder()
    sampler = recording_sampler(policy, 8, recorder)
    completions(sampler, requests_for([5, 9]))
    first = recorder.num_recorded
    completions(sampler, requests_for([5, 9]))
    assert recorder.num_recorded == first > 0


def test_recordings_of_the_merged_copy_follow_a_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recomputed in place: nothing is recorded again, and the new weights are what counts."""
    policy = unpacked_policy(monkeypatch)
    recorder = FixedRecorder()
    sampler, requests = recording_sampler(policy, 8, recorder), requests_for([5, 9])
    before = completions(sampler, requests)
    recorded = recorder.num_recorded
    negate_adapter(policy)
    sampler.refresh()
    after = completions(sampler, requests)
    assert after == completions(plain_sampler(policy), requests) != before
    negate_adapter(policy)
    sampler.refresh()
    assert completions(sampler, requests) == before
    assert recorder.num_recorded <= recorded + 4  # other completions may meet other lengths


def test_recordings_follow_an_adapter_that_is_not_merged() -> None:
    policy = bfloat16_policy()
    assert not policy.merges_exactly
    recorder = FixedRecorder()
    sampler, requests = recording_sampler(policy, 8, recorder), requests_for([5, 9])
    before = completions(sampler, requests)
    negate_adapter(policy)
    after = completions(sampler, requests)
    assert before != after
    eager = recording_sampler(policy, 8, EagerRecorder())
    assert after == completions(eager, requests)


def test_weights_that_moved_are_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As packed matrices do at each refresh, and a model that is moved."""
    policy = tiny_policy()
    sampler, requests = recording_sampler(policy, 8, FixedRecorder()), requests_for([5, 9])
    before = completions(sampler, requests)
    for _ in range(3):  # back and forth: a matrix may get the memory of the one before the last
        negate_adapter(policy)
        sampler.refresh()
        after = completions(sampler, requests)
    expected = completions(plain_sampler(policy), requests)
    new_sampler = recording_sampler(policy, 8, FixedRecorder())
    assert after == completions(new_sampler, requests) != before
    assert tokens_of(after) == tokens_of(expected) != tokens_of(before)
    for found, wanted in zip(after, expected, strict=True):  # of other lengths, on some processors
        logprobs = (one.completion.sampling_logprobs for one in (found, wanted))
        assert np.allclose(*logprobs, rtol=0, atol=1e-5)


def test_slots_and_recordings_are_given_back_and_made_again() -> None:
    sampler, requests = (
        recording_sampler(tiny_policy(), 8, FixedRecorder()),
        requests_for([5, 9]),
    )
    assert not release_memory(sampler)
    before = completions(sampler, requests)
    assert release_memory(sampler) and not release_memory(sampler)
    assert completions(sampler, requests) == before


def tokens_of(sampled: Sequence[Sampled]) -> list[tuple[int, ...]]:
    return [one.completion.token_ids for one in sampled]


def test_an_adapter_that_was_switched_off_is_recorded_again() -> None:
    policy = bfloat16_policy()
    sampler, requests = recording_sampler(policy, 8, FixedRecorder()), requests_for([5, 9])
    with_adapter = completions(sampler, requests)
    with policy.adapter_off():
        bare = completions(sampler, requests)
        assert bare == completions(recording_sampler(policy, 8, EagerRecorder()), requests)
    assert bare != with_adapter == completions(sampler, requests)


def test_larger_slots_take_new_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = unpacked_policy(monkeypatch)
    sampler = recording_sampler(policy, 8, FixedRecorder())
    plain = plain_sampler(policy)
    for lengths in ([5, 9], [5, 70], [5, 9]):
        requests = requests_for(lengths)
        assert completions(sampler, requests) == completions(plain, requests)


def step_of(policy: Policy, num_slots: int, capacity: int = 64) -> SlotStep:
    """Slots that hold noise where tokens are."""
    slots = Slots(num_slots, capacity, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for store in (slots.memory.keys, slots.memory.values):
        for layer in range(3):
            store[layer] = torch.randn(num_slots, 2, slots.memory.capacity, 16, generator=generator)
    return SlotStep(policy.merged.model, policy.head, slots, policy.merged.products)


def test_spare_rows_touch_nothing_but_the_start_of_free_slots() -> None:
    policy = tiny_policy()
    step = step_of(policy, 16)
    before = {layer: keys.clone() for layer, keys in step.slots.memory.keys.items()}
    DecodeGraphs(step, EagerRecorder(), min_rows=12).step(
        [5, 6, 7], [0, 9, 40], [0.5] * 3, SAMPLING
    )
    for layer, keys in step.slots.memory.keys.items():
        changed = (keys != before[layer]).any(-1).any(1).nonzero().tolist()
        assert changed == [[0, 0], [1, 9], [2, 40], *([row, 0] for row in range(3, 12))]


def test_rows_do_not_see_how_many_spare_ones_there_are() -> None:
    policy = tiny_policy()
    inputs = [5, 6, 7], [3, 9, 40], [0.1, 0.5, 0.9]
    found = [
        DecodeGraphs(step_of(policy, 32), EagerRecorder(), min_rows).step(*inputs, SAMPLING)
        for min_rows in (12, 16, 32)
    ]
    for drawn in found[1:]:
        assert torch.equal(drawn.token_ids, found[0].token_ids)
        assert torch.equal(drawn.logprobs, found[0].logprobs)


def test_the_bucket_is_full() -> None:
    """All slots live, at the last place of the last bucket."""
    step = step_of(tiny_policy(), 8, capacity=40)
    drawn = DecodeGraphs(step, EagerRecorder()).step([3] * 8, [63] * 8, [0.5] * 8, SAMPLING)
    assert drawn.token_ids.shape == (8,) and drawn.logprobs.isfinite().all()


class RefusingRecorder:
    """Records so many pieces of work, and then what it is given fails."""

    facts: ClassVar[dict[str, object]] = {"decode": "cuda graphs"}

    def __init__(self, error: RuntimeError, num_recorded: int = 0):
        self._error = error
        self._num_left = num_recorded

    def record(self, kernels: Kernels) -> Recording:
        self._num_left -= 1
        if self._num_left < 0:
            raise self._error
        return EagerRecording(kernels)


def refusal() -> RuntimeError:
    return RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile …")


@pytest.mark.parametrize("num_recorded", [0, 1])
def test_where_nothing_can_be_captured_it_goes_on_and_says_so(num_recorded: int) -> None:
    """At once, or when something was captured already."""
    policy = tiny_policy()
    inputs = [5, 6], [3, 9], [0.1, 0.5]
    recorder = RecorderWithFallback(RefusingRecorder(refusal(), num_recorded))
    assert recorder.facts == {"decode": "cuda graphs"}
    decode = DecodeGraphs(step_of(policy, 16), recorder)
    found = decode.step(*inputs, SAMPLING)
    expected = DecodeGraphs(step_of(policy, 16), EagerRecorder()).step(*inputs, SAMPLING)
    assert torch.equal(found.token_ids, expected.token_ids)
    assert recorder.facts == {
        "decode": "eager",
        "decode_capture_refused": "CUDA error: operation not permitted when stream is capturing",
    }


def broken_by_want_of_memory() -> RuntimeError:
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        broken_by_want_of_memory(),
    ],
    ids=["allocator", "kernel", "capture"],
)
def test_want_of_memory_is_no_refusal_to_capture(error: RuntimeError) -> None:
    """It is for the sampler to go on with fewer slots; what then is recorded is captured again."""
    recorder = RecorderWithFallback(RefusingRecorder(error))
    with pytest.raises(RuntimeError) as raised:
        recorder.record(lambda: None)
    assert raised.value is error
    assert recorder.facts == {"decode": "cuda graphs"}


def test_a_fault_of_the_step_is_not_hidden() -> None:
    recorder = RecorderWithFallback(RefusingRecorder(refusal()))
    decode = DecodeGraphs(step_of(tiny_policy(), 16), recorder)
    with pytest.raises(IndexError):
        decode.step([9999], [3], [0.1], SAMPLING)


class HeavyRecorder:
    """Recordings that hold half of what all may hold."""

    facts: ClassVar[dict[str, object]] = {}

    def record(self, kernels: Kernels) -> Recording:
        return EagerRecording(kernels, graphs.MAX_RECORDING_BYTES // 2)


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    heavy = DecodeGraphs(step_of(policy, 16, 128), HeavyRecorder())
    light = DecodeGraphs(step_of(policy, 16, 128), EagerRecorder())
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 3)
    for position in (3, 40, 70, 100, 3):
        drawn = [one.step([5], [position], [0.5], SAMPLING).logprobs for one in (heavy, light)]
        assert torch.equal(*drawn)
    assert (heavy.num_recordings, light.num_recordings) == (2, 3)


@pytest.mark.parametrize(
    ("num_rows", "min_rows", "buckets"),
    [
        (128, 1, (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)),
        (20, 12, (12, 16, 20)),
        (12, 12, (12,)),
        (4, 4, (4,)),
    ],
)
def test_row_buckets(num_rows: int, min_rows: int, buckets: tuple[int, ...]) -> None:
    assert row_buckets(num_rows, min_rows) == buckets


def test_length_buckets() -> None:
    assert length_buckets(32) == (32,)
    assert length_buckets(160) == (32, 64, 96, 128, 160)
    buckets = length_buckets(4096)
    assert all(one % LENGTH_BUCKET == 0 for one in buckets) and buckets[-1] == 4096
    for needed in range(1, 4097):
        bucket = next(one for one in buckets if one >= needed)
        assert bucket - needed < max(LENGTH_BUCKET, needed / 4)
    assert len(buckets) < 30


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_step_never_asks_the_host(family: str, temperature: float) -> None:
    """On the meta device an operation that needs a value, or a tensor from elsewhere, raises."""
    policy = tiny_policy(family)
    old, base = policy.head, policy.base.to(META, torch.bfloat16)
    use_layouts(base)
    slots = Slots(8, 64, META)
    for store in (slots.memory.keys, slots.memory.values):
        store |= {n: torch.zeros(8, 2, 64, 16, device=META, dtype=torch.bfloat16) for n in range(3)}
    head = Head(base.get_output_embeddings().weight, None, old.scale, old.softcap)
    ids, uniforms = torch.zeros(4, 1, dtype=torch.long, device=META), torch.zeros(4, device=META)
    with torch.inference_mode(), NoConstants():
        hidden = SlotStep(base, head, slots).hidden(ids, ids, 32)
        drawn = draw(head.logits(hidden), uniforms, temperature, 1.0)
    assert hidden.dtype == torch.bfloat16
    assert drawn.token_ids.device == drawn.logprobs.device == META


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[x > 0],
        lambda x: x / float(x.max()),
        lambda x: x if (x > 0).all() else -x,
        lambda x: x + torch.ones(3),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=META),
    ],
    ids=["mask", "item", "branch", "other device", "constant"],
)
def test_the_meta_device_finds_what_asks_the_host(work: Callable[[Tensor], Tensor]) -> None:
    with (
        pytest.raises((RuntimeError, NotImplementedError)),
        torch.inference_mode(),
        NoConstants(),
    ):
        work(torch.zeros(3, device=META))
