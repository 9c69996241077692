"""The built-in 135M model on the real command line: reward rises, three checkpoints, exact logprobs."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rft.job import ModelSettings
from rft.models import encode_prompts, end_token_ids, find_model, load_model, load_tokenizer
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.runs.reader import open_run
from rft.types import Completion, Example
from tests.launch import ROOT, run_rft
from tests.tiny import make_adapter_large

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    job = ROOT / "configs/smoke/job.yaml"
    done = run_rft("train", str(job), "--run-dir", str(folder / "run"), cwd=folder, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "run"


def test_the_reward_visibly_rises(smoke_run: Path) -> None:
    rows = open_run(str(smoke_run), smoke_run.parent).metrics()
    rewards = [row["valid_reward_mean"] for row in rows if "valid_reward_mean" in row]
    assert len(rewards) == 5
    assert rewards[-1] > rewards[0] + 0.1


def test_three_checkpoints_with_a_best_one_stay(smoke_run: Path) -> None:
    run = open_run(str(smoke_run), smoke_run.parent)
    best = run.best_checkpoint()
    assert run.status().status == "succeeded"
    assert len(run.checkpoints()) == 3 and best is not None
    assert best.valid_reward_mean == max(c.valid_reward_mean for c in run.checkpoints())


def test_the_record_is_whole(smoke_run: Path) -> None:
    run = open_run(str(smoke_run), smoke_run.parent)
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(9))
    assert all(math.isfinite(row["train_reward_mean"]) for row in rows[1:])
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in rows[1:])
    metrics = [event["data"] for event in run.events() if event["type"] == "metrics"]
    assert [data["step"] for data in metrics] == list(range(9))
    assert metrics[2]["scores"]["graders"][0]["name"] == "brevity"
    for step in (0, 2, 4, 6, 8):
        evaluation = run.evaluation(step)
        assert {row["row"] for row in evaluation} == set(range(len(evaluation)))
    assert len(run.samples(1)) == 16
    environment = json.loads((smoke_run / "env.json").read_text())
    assert environment["bitwise"] is True and environment["world_size"] == 1


@dataclass(frozen=True)
class Real:
    """The built-in model with a large adapter, and requests to sample from it."""

    policy: Policy
    transcriber: Transcriber
    requests: list[SampleRequest]


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
        sampler = NativeSampler(real.policy, real.transcriber, num_slots)
        assert sampler.invariance.is_bitwise
        found = sampler.sample(chosen, settings)
        return {(chosen[s.request].ordinal, s.sample): s.completion for s in found}

    expected = sampled(24, requests)
    assert sampled(5, requests[::-1]) == expected
    alone = sampled(24, requests[1:2])
    assert alone == {place: expected[place] for place in alone}


def test_sampler_and_trainer_agree_on_thousands_of_tokens(real: Real) -> None:
    policy, ends = real.policy, real.transcriber.end_token_ids
    sampler = NativeSampler(policy, real.transcriber, num_slots=32)
    sampled = list(sampler.sample(real.requests, SamplingSettings(0.8, 1.0, 48)))
    gaps, effects, num_ends = [], [], 0
    for index, request in enumerate(real.requests):
        completions = [s.completion for s in sampled if s.request == index]
        num_ends += sum(completion.token_ids[-1] in ends for completion in completions)
        group = TokenGroup(request.prompt_ids, tuple(c.token_ids for c in completions))
        batch = pack([group], policy.device)
        with torch.no_grad():
            logprobs = policy.score(batch, 0.8).logprobs
        recorded = [torch.tensor(completion.sampling_logprobs) for completion in completions]
        padded = torch.nn.utils.rnn.pad_sequence(recorded, batch_first=True)
        gaps.append((logprobs - padded)[batch.completion_mask].abs())
        reference = policy.reference_logprobs(batch, 0.8)
        effects.append((logprobs - reference)[batch.completion_mask].abs())
    gap, effect = torch.cat(gaps), torch.cat(effects)
    print(f"{len(gap)} tokens, {num_ends} ends, mean {gap.mean():.2e}, max {gap.max():.2e}")
    print(f"effect of the adapter: {effect.mean():.2f} nats")
    assert len(gap) >= 2000 and num_ends >= 10
    assert effect.mean() > 0.1
    assert gap.mean() < 1e-5 and gap.max() < 5e-4
