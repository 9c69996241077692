"""Every rule that replaces an `auto`, with exact values."""

from dataclasses import replace
from typing import Any

import pytest

from rft.errors import JobError
from rft.job import ResolvedJob, dump_job, resolve_job
from tests.unit.job.job_text import FACTS, JOB, parse

GIB = 2**30


def resolve(*overrides: str, **facts: Any) -> ResolvedJob:
    return resolve_job(parse(JOB, *overrides), replace(FACTS, **facts))


def key(path: str) -> str:
    return f"method.reinforcement.hyperparameters.{path}"


@pytest.mark.parametrize(
    ("rows", "overrides", "batch_size", "n_epochs", "steps", "eval_interval"),
    [
        (100, [], 8, 8, 100, 10),
        (10, [], 8, 10, 12, 1),
        (5, [], 5, 10, 10, 1),
        (1000, [], 8, 1, 125, 12),
        (790, [], 8, 2, 197, 19),
        (100, [f"{key('batch_size')}=4"], 4, 4, 100, 10),
        (343, [f"{key('batch_size')}=4", f"{key('n_epochs')}=1"], 4, 1, 85, 8),
        (100, [f"{key('eval_interval')}=7"], 8, 8, 100, 7),
    ],
)
def test_steps(
    rows: int, overrides: list[str], batch_size: int, n_epochs: int, steps: int, eval_interval: int
) -> None:
    job = resolve(*overrides, num_training_rows=rows)
    hyperparameters = job.hyperparameters
    assert (hyperparameters.batch_size, hyperparameters.n_epochs) == (batch_size, n_epochs)
    assert (job.steps(rows), hyperparameters.eval_interval) == (steps, eval_interval)


def test_the_plain_autos() -> None:
    job = resolve()
    assert job.hyperparameters.eval_samples == 1
    assert job.hyperparameters.learning_rate_multiplier == 1.0
    assert job.hyperparameters.compute_multiplier == 1.0
    assert (job.engine.model.device, job.engine.model.dtype) == ("cpu", "float32")
    assert job.engine.grading.concurrency == 2
    assert job.engine.grading.python.sandbox == "kernel"
    assert job.engine.rollout.max_prompt_tokens == 8192 - 256
    assert resolve(num_cores=0).engine.grading.concurrency == 1


@pytest.mark.parametrize("num_cores", [2, 64])
def test_an_endpoint_grader_is_asked_sixteen_at_a_time(num_cores: int) -> None:
    endpoint = "{type: endpoint, url: 'https://example.com/grade'}"
    alone = f"method.reinforcement.grader={endpoint}"
    part = f"method.reinforcement.grader={{type: multi, graders: {{a: {endpoint}}}, calculate_output: a}}"
    assert resolve(alone, num_cores=num_cores).engine.grading.concurrency == 16
    assert resolve(part, num_cores=num_cores).engine.grading.concurrency == 16
    set_by_hand = resolve(alone, "engine.grading.concurrency=3")
    assert set_by_hand.engine.grading.concurrency == 3


@pytest.mark.parametrize(
    ("model", "overrides", "concurrency"),
    [("m", [], 16), ("m", ["engine.grading.judge.concurrency=50"], 50), ("local:base", [], 32)],
)
def test_a_judge_is_asked_as_often_as_it_can_answer(
    model: str, overrides: list[str], concurrency: int
) -> None:
    judge = f"{{type: score_model, name: j, model: {model}, base_url: http://localhost/v1, "
    judge += "input: [{role: user, content: x}]}"
    judge = judge.replace("base_url: http://localhost/v1, ", "") if model != "m" else judge
    job = resolve(f"method.reinforcement.grader={judge}", *overrides)
    assert job.engine.grading.concurrency == concurrency


@pytest.mark.parametrize(
    ("multiplier", "group_size"),
    [("auto", 8), ("0.01", 2), ("0.5", 4), ("1.2", 10), ("3", 24), ("10", 80)],
)
def test_group_size(multiplier: str, group_size: int) -> None:
    assert (
        resolve(f"{key('compute_multiplier')}={multiplier}").engine.rollout.group_size == group_size
    )
    set_by_hand = resolve(
        f"{key('compute_multiplier')}={multiplier}", "engine.rollout.group_size=5"
    )
    assert set_by_hand.engine.rollout.group_size == 5


@pytest.mark.parametrize(
    ("num_parameters", "learning_rate"),
    [
        (499_999_999, 2e-4),
        (500_000_000, 1e-4),
        (1_999_999_999, 1e-4),
        (2_000_000_000, 5e-5),
        (9_999_999_999, 5e-5),
        (10_000_000_000, 2e-5),
    ],
)
def test_learning_rate(num_parameters: int, learning_rate: float) -> None:
    job = resolve(f"{key('learning_rate_multiplier')}=0.5", num_parameters=num_parameters)
    assert job.engine.training.learning_rate == learning_rate
    assert job.effective_learning_rate == 0.5 * learning_rate


@pytest.mark.parametrize(
    ("facts", "slots"),
    [
        ({}, 64),
        ({"device": "cuda"}, 64),
        ({"kv_bytes_per_token": GIB // 356 // 10}, 10),
        ({"kv_bytes_per_token": GIB // 356 // 10, "device": "cuda"}, 64),
        ({"kv_bytes_per_token": GIB}, 4),
        ({"longest_prompt": 2074}, 10),  # GIB // (46 080 · 2 330)
    ],
)
def test_slots(facts: dict[str, Any], slots: int) -> None:
    assert resolve(**facts).engine.rollout.slots == slots


@pytest.mark.parametrize(("device", "slots"), [("cpu", 64), ("cuda", 256)])
def test_slots_are_capped_by_the_device(device: str, slots: int) -> None:
    big = [f"{key('batch_size')}=64", "engine.rollout.group_size=16"]
    job = resolve(*big, device=device, kv_bytes_per_token=1)
    assert job.engine.rollout.slots == slots
    small = [f"{key('batch_size')}=3", "engine.rollout.group_size=2"]
    assert resolve(*small, device=device).engine.rollout.slots == 6


@pytest.mark.parametrize(
    ("group_size", "longest", "mean", "token_budget"),
    [
        (8, 100, 50, 751),
        (8, 300, 250, 892),  # the whole group: 300 + 8 · (64 + what each keeps of 300)
        (16, 300, 250, 1484),
        (32, 300, 250, 1750),  # seven prompts of a part's tokens
        (32, 500, 50, 1000),  # twice the longest
        (64, 1000, 500, 2255),  # 3 GiB // 1 428 480 at most
    ],
)
def test_a_token_budget_has_room_behind_the_prompts(
    group_size: int, longest: int, mean: int, token_budget: int
) -> None:
    shape = [f"engine.rollout.group_size={group_size}", "engine.rollout.max_completion_tokens=64"]
    facts = {"longest_prompt": longest, "mean_prompt": mean}
    job = resolve(*shape, **facts, activation_bytes_per_token=1_428_480)
    assert job.engine.training.token_budget == token_budget


@pytest.mark.parametrize(
    ("device", "activation_bytes", "token_budget"),
    [
        ("cpu", 1_428_480, 751),  # 1 GiB of it; the 135M model
        ("cuda", 1_428_480, 6013),
        ("cpu", 500_000, 1024),  # more gains a CPU nothing
        ("cuda", 500_000, 17179),
        ("cpu", 1, 1024),
        ("cpu", GIB, 256),
        ("cuda", GIB, 256),
    ],
)
def test_token_budget_by_memory(device: str, activation_bytes: int, token_budget: int) -> None:
    job = resolve(device=device, activation_bytes_per_token=activation_bytes)
    assert job.engine.training.token_budget == token_budget


@pytest.mark.parametrize("group_size", [2, 16])
@pytest.mark.parametrize(("device", "gibibytes"), [("cpu", 6), ("cuda", 24)])
def test_gradient_checkpointing_starts_where_one_completion_does_not_fit(
    device: str, gibibytes: int, group_size: int
) -> None:
    """A micro-batch can be cut down to a prompt with one completion, so the group's size is nothing to it."""
    shape = ["engine.rollout.max_completion_tokens=960", f"engine.rollout.group_size={group_size}"]
    facts = {"device": device, "longest_prompt": 64}  # 1024 tokens in a row
    limit = gibibytes * GIB // 1024
    at = resolve(*shape, **facts, activation_bytes_per_token=limit)
    above = resolve(*shape, **facts, activation_bytes_per_token=limit + 1)
    assert at.engine.training.gradient_checkpointing is False
    assert above.engine.training.gradient_checkpointing is True


@pytest.mark.parametrize(
    ("overrides", "temperature"),
    [
        ([], 0.0),
        ([f"{key('eval_samples')}=1", "engine.rollout.temperature=0.7"], 0.0),
        ([f"{key('eval_samples')}=2", "engine.rollout.temperature=0.7"], 0.7),
        (["engine.evaluation.temperature=0.3"], 0.3),
    ],
)
def test_evaluation_temperature(overrides: list[str], temperature: float) -> None:
    assert resolve(*overrides).engine.evaluation.temperature == temperature


def test_a_wandb_integration_turns_tracking_on_once() -> None:
    entry = "integrations=[{type: wandb, wandb: {project: p}}]"
    assert resolve(entry).engine.tracking.report_to == ("wandb",)
    both = resolve(entry, "engine.tracking.report_to=[tensorboard, wandb]")
    assert both.engine.tracking.report_to == ("tensorboard", "wandb")


def test_what_is_set_stays_and_updates_are_counted() -> None:
    job = resolve(
        "engine.training.num_iterations=3",
        "engine.training.minibatches=4",
        "engine.training.token_budget=99",
        "engine.training.gradient_checkpointing=true",
        "engine.model.device=cuda:1",
        "engine.model.dtype=bfloat16",
        "engine.rollout.slots=5",
        "engine.grading.concurrency=9",
        "engine.grading.python.sandbox=unsafe-local",
    )
    assert job.num_updates_per_step == 12
    assert (job.engine.training.token_budget, job.engine.rollout.slots) == (99, 5)
    assert job.engine.training.gradient_checkpointing is True
    assert (job.engine.model.device, job.engine.model.dtype) == ("cuda:1", "bfloat16")
    assert job.grading_settings.sandbox == "unsafe-local"
    assert job.engine.grading.concurrency == 9


def test_a_resolved_job_loads_again_and_resolves_to_itself() -> None:
    resolved = resolve("integrations=[{type: wandb, wandb: {project: p}}]")
    again = parse(dump_job(resolved))
    assert "auto" not in dump_job(resolved)
    assert resolve_job(again, FACTS) == resolved
    other_machine = replace(
        FACTS, num_training_rows=500, num_cores=64, device="cuda", num_parameters=1
    )
    assert resolve_job(again, other_machine) == resolved


@pytest.mark.parametrize(
    ("overrides", "facts", "wheres"),
    [
        ([f"{key('batch_size')}=101"], {}, [key("batch_size")]),
        ([], {"num_training_rows": 0}, [key("batch_size")]),
        (
            ["engine.rollout.max_completion_tokens=8192"],
            {},
            ["engine.rollout.max_completion_tokens"],
        ),
        (["engine.rollout.max_prompt_tokens=7937"], {}, ["engine.rollout.max_prompt_tokens"]),
        (["engine.training.minibatches=9"], {}, ["engine.training.minibatches"]),
        (
            [f"{key('batch_size')}=200", "engine.rollout.max_completion_tokens=9000"],
            {},
            [key("batch_size"), "engine.rollout.max_completion_tokens"],
        ),
    ],
)
def test_what_cannot_be_resolved_is_told_at_once(
    overrides: list[str], facts: dict[str, Any], wheres: list[str]
) -> None:
    with pytest.raises(JobError) as raised:
        resolve(*overrides, **facts)
    assert [problem.where for problem in raised.value.problems] == wheres
    assert all(problem.remedy for problem in raised.value.problems)
