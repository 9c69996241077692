"""Adapter versions: order of loading and unloading, several processes, and what the canary finds."""

import gc
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rft.errors import JobFailedError, MachineError
from rft.policy import Policy
from rft.rollout.sampler import SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm import VllmRules, VllmSampler
from rft.rollout.vllm_canary import Confirmed, canary_pairs, confirm
from tests.tiny import make_adapter_large, tiny_policy, tiny_tokenizer
from tests.unit.rollout.fake_vllm import FakeVllm, fake_vllm
from tests.unit.rollout.test_vllm import RULES, requests, sampled, sampler_of, server_of

LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"


@pytest.fixture
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


def move(policy: Policy, scale: float = 0.3, seed: int = 5) -> None:
    make_adapter_large(policy, scale, seed)
    policy.refresh()


def nudge(policy: Policy, by: float) -> None:
    """A change of the policy too small to measure."""
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(by)
    policy.refresh()


def test_a_new_version_is_loaded_then_confirmed_then_the_old_one_unloaded(
    policy: Policy, fake: FakeVllm, tmp_path: Path
) -> None:
    sampler = sampler_of(policy, fake, rules=VllmRules(4, 0.01, tmp_path / "shared"))
    first = sampler.adapter
    fake.calls.clear()
    move(policy)
    sampler.refresh()
    assert [path for path, _ in fake.calls] == [LOAD, COMPLETE, UNLOAD]
    (loaded,), (asked,), (unloaded,) = map(fake.bodies, (LOAD, COMPLETE, UNLOAD))
    assert loaded["lora_name"] == asked["model"] == sampler.adapter != first
    assert unloaded["lora_name"] == first
    assert set(loaded) == {"lora_name", "lora_path"}, "never in place"
    (folder,) = (tmp_path / "shared").glob("*/*")
    assert folder == Path(loaded["lora_path"]) and folder.name == sampler.adapter


def test_names_are_of_one_sampler_alone(policy: Policy, fake: FakeVllm) -> None:
    names = {sampler_of(policy, fake).adapter for _ in range(2)}
    assert len(names) == 2


def test_nothing_is_left_behind(policy: Policy, fake: FakeVllm, tmp_path: Path) -> None:
    sampler = sampler_of(policy, fake, rules=VllmRules(4, 0.01, tmp_path))
    assert fake.names == [sampler.adapter] and list(tmp_path.iterdir())
    del sampler
    assert fake.names == [] and not list(tmp_path.iterdir())


def test_nothing_is_left_behind_by_a_sample_that_failed(
    policy: Policy, fake: FakeVllm, tmp_path: Path
) -> None:
    sampler = sampler_of(policy, fake, rules=VllmRules(4, 0.01, tmp_path))
    fake.drops_token_ids = True
    with pytest.raises(MachineError):
        sampled(sampler, SamplingSettings(1.0, 1.0, 3))
    del sampler
    gc.collect()
    assert fake.names == [] and not list(tmp_path.iterdir())


def test_nothing_is_left_behind_by_a_sample_that_was_interrupted(
    policy: Policy, fake: FakeVllm
) -> None:
    sampler = sampler_of(policy, fake)
    completions = sampler.sample(requests(), SamplingSettings(1.0, 1.0, 3))
    next(completions)
    with pytest.raises(KeyboardInterrupt):
        completions.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert fake.names == [sampler.adapter]
    del sampler, completions
    gc.collect()
    assert fake.names == []


def test_after_its_end_a_dead_server_is_asked_once() -> None:
    with fake_vllm() as fake:
        server = server_of(fake)
        server.close()
    with pytest.raises(MachineError, match=r"cannot be reached.*asked 1 times"):
        server.unload_adapter("any")


def test_a_version_that_was_refused_is_not_left_behind_either(
    policy: Policy, fake: FakeVllm
) -> None:
    sampler = sampler_of(policy, fake)
    fake.stuck_at = sampler.adapter
    move(policy)
    with pytest.raises(JobFailedError, match="stale adapter"):
        sampler.refresh()
    assert len(fake.names) == 2
    del sampler
    gc.collect()
    assert fake.names == []


def test_a_first_version_that_was_refused_is_not_left_behind_either(
    policy: Policy, fake: FakeVllm
) -> None:
    fake.stuck_at = "none"
    with pytest.raises(JobFailedError, match="stale adapter"):
        sampler_of(policy, fake)
    gc.collect()
    assert len(fake.bodies(LOAD)) == 1 and fake.names == []


def test_every_replica_gets_every_version(policy: Policy, fake: FakeVllm) -> None:
    with fake_vllm() as second:
        sampler = sampler_of(policy, fake, second)
        move(policy)
        sampler.refresh()
        assert fake.names == second.names == [sampler.adapter]


def test_a_stale_adapter_on_any_replica_fails_the_step(policy: Policy, fake: FakeVllm) -> None:
    with fake_vllm() as second:
        sampler = sampler_of(policy, fake, second)
        second.stuck_at = sampler.adapter
        move(policy)
        with pytest.raises(JobFailedError, match="stale adapter") as caught:
            sampler.refresh()
        assert second.url in str(caught.value) and "--resume" in str(caught.value)


def test_a_server_that_ignores_the_first_adapter_is_found(policy: Policy, fake: FakeVllm) -> None:
    """What a job resumes with is measured against the bare base model."""
    fake.stuck_at = "none"
    with pytest.raises(JobFailedError, match="stale adapter"):
        sampler_of(policy, fake)


def test_small_moves_add_up(policy: Policy, fake: FakeVllm) -> None:
    sampler = sampler_of(policy, fake)
    fake.stuck_at = sampler.adapter
    num_quiet = 0
    with pytest.raises(JobFailedError, match="stale adapter"):  # noqa: PT012
        while num_quiet < 100:
            nudge(policy, 4e-6)
            sampler.refresh()
            num_quiet += 1
    assert num_quiet >= 1


def test_raw_logprobs_are_refused(policy: Policy, fake: FakeVllm) -> None:
    fake.is_raw = True
    with pytest.raises(MachineError, match=r"1\.00 times.*processed_logprobs"):
        sampler_of(policy, fake)


def test_another_base_model_is_refused(fake: FakeVllm) -> None:
    with pytest.raises(JobFailedError, match="disagree by"):
        sampler_of(tiny_policy(seed=1), fake)


class Broadcast:
    """Two processes in one: the second hears what the first said."""

    size = 2

    def __init__(self, said: list[Any], is_main: bool):
        self._said = said
        self._heard = 0
        self.is_main = is_main

    def broadcast(self, value: Any) -> Any:
        if self.is_main:
            self._said.append(value)
            return value
        assert value is None
        self._heard += 1
        return self._said[self._heard - 1]


def test_other_processes_neither_write_nor_load(policy: Policy, fake: FakeVllm) -> None:
    said: list[Any] = []
    transcriber = Transcriber(tiny_tokenizer(), [2])
    main, other = (
        VllmSampler(policy, transcriber, [server_of(fake)], RULES, Broadcast(said, is_main))
        for is_main in (True, False)
    )
    assert main.adapter == other.adapter and len(fake.bodies(LOAD)) == 1
    fake.stuck_at = main.adapter
    move(policy)
    for sampler in (main, other):
        with pytest.raises(JobFailedError, match="stale adapter"):
            sampler.refresh()


@contextmanager
def files_are_small(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_to_all_processes(policy: Policy, fake: FakeVllm) -> None:
    """The adapter's writer has an exception of its own for it, which is no OSError."""
    said: list[Any] = []
    transcriber = Transcriber(tiny_tokenizer(), [2])
    main, other = (
        VllmSampler(policy, transcriber, [server_of(fake)], RULES, Broadcast(said, is_main))
        for is_main in (True, False)
    )
    for sampler in (main, other):
        with (
            files_are_small(20_000),
            pytest.raises(MachineError, match=r"cannot be written for vLLM: .*make room"),
        ):
            sampler.refresh()


def test_any_other_failure_is_told_to_all_processes_too(
    policy: Policy, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    transcriber = Transcriber(tiny_tokenizer(), [2])
    main, other = (
        VllmSampler(policy, transcriber, [server_of(fake)], RULES, Broadcast(said, is_main))
        for is_main in (True, False)
    )

    def fail(folder: Path) -> None:
        raise ValueError("no such layer")

    monkeypatch.setattr(policy, "save_adapter", fail)
    for sampler in (main, other):
        with pytest.raises(JobFailedError, match=r"ValueError: no such layer .*--resume"):
            sampler.refresh()
    assert isinstance(said[-1].__cause__, ValueError)
    assert str(pickle.loads(pickle.dumps(said[-1]))) == str(said[-1])


def test_a_replica_counts_as_stale_only_once_the_policy_moved() -> None:
    before, step = np.zeros(4), np.full(4, 0.3)
    confirmed = confirm("x", before, before + 0.01, None, 1.0)
    assert confirmed.gap == pytest.approx(0.01)
    assert confirm("x", step, step + 0.01, confirmed, 1.0).trainer is step
    with pytest.raises(JobFailedError, match="stale"):
        confirm("x", step, before + 0.01, confirmed, 1.0)
    little = np.full(4, 0.02)
    assert confirm("x", little, before + 0.01, confirmed, 1.0) is confirmed
    with pytest.raises(JobFailedError, match=r"disagree by 0\.11"):
        confirm("x", step, step + 0.11, Confirmed(step, 0.01), 0.1)
    with pytest.raises(JobFailedError, match="disagree"):
        confirm("x", step, np.full(4, np.nan), None, 0.1)


def test_canary_tokens_are_within_the_vocabulary_and_distinct() -> None:
    for size in (10, 260, 49152):
        pairs = canary_pairs(size)
        assert all(0 <= token < size for prompt in pairs.prompts for token in prompt)
        assert len(set(pairs.candidates)) == len(pairs.candidates) == min(16, size)
        assert max(pairs.candidates) < size and len(set(pairs.prompts)) == 8
