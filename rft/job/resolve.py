"""`auto` → numbers: a pure function of the job document and a few facts."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rft.errors import JobError, Problem
from rft.graders import Tier, grader_parts, local_judges
from rft.job.consistency import contradictions
from rft.job.document import Hyperparameters, Job
from rft.job.places import dotted
from rft.job.resolved import ResolvedJob

Number = TypeVar("Number", int, float)

GIB = 2**30
CPU_ACTIVATION_MEMORY = GIB
CPU_SATURATION = 1024
"""Rows beyond which a CPU's matrix kernels gain nothing; they are near their best from 256 on."""
PROMPTS_PER_PART = 7
"""The tokens of a part of a group, in those of its prompt: then cutting adds a sixth to what is computed."""
ROLLOUTS_PER_PROMPT = 8
"""Completions per prompt at compute_multiplier 1."""
COMPLETION_TOKENS = {"default": 256, "low": 128, "medium": 256, "high": 512}
"""By reasoning_effort, where the job sets no limit."""
ENDPOINT_CONCURRENCY = 16
"""Grades computed side by side where an endpoint grader is asked."""
LOCAL_JUDGE_CONCURRENCY = 32
"""Questions that a judge in this process answers together, at most."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What has to be known about data, model and machine before a job can be resolved."""

    num_training_rows: int
    num_parameters: int
    """Of the base model."""
    device: str
    """`cpu` or `cuda`, already chosen."""
    dtype: str
    """`float32`, `bfloat16` or `float16`, already chosen."""
    context_length: int
    """Tokens the model can hold."""
    longest_prompt: int
    """Tokens of the longest training or validation prompt."""
    mean_prompt: int
    """Tokens of a training prompt, on average."""
    kv_bytes_per_token: int
    activation_bytes_per_token: int
    num_cores: int
    sandbox: Tier
    """The best one this machine has for python graders."""


def resolve_job(job: Job, facts: JobFacts) -> ResolvedJob:
    """The job with every `auto` replaced; a resolved job resolves to itself.

    Raises JobError with everything that cannot be.
    """
    hyperparameters = _resolve_hyperparameters(job.hyperparameters, facts)
    engine = _resolve_engine(job, hyperparameters, facts)
    problems = _impossibilities(hyperparameters, engine, facts)
    if problems:
        raise JobError(problems)
    document = job.model_dump()
    document["engine"] = engine
    document["method"]["reinforcement"]["hyperparameters"] = hyperparameters
    resolved = ResolvedJob.model_validate(document)
    if faults := contradictions(resolved):
        raise JobError(Problem(f.what, dotted(f.path), f.remedy) for f in faults)
    return resolved


def completion_limit(job: Job) -> int:
    """Tokens at which a completion is cut."""
    effort = job.hyperparameters.reasoning_effort
    return _or(job.engine.rollout.max_completion_tokens, COMPLETION_TOKENS[effort])


def learning_rate(num_parameters: int) -> float:
    """The learning rate that suits LoRA on a model of this size."""
    if num_parameters < 0.5e9:
        return 2e-4
    if num_parameters < 2e9:
        return 1e-4
    return 5e-5 if num_parameters < 10e9 else 2e-5


def _resolve_hyperparameters(given: Hyperparameters, facts: JobFacts) -> dict[str, Any]:
    rows = facts.num_training_rows
    batch_size = _or(given.batch_size, max(1, min(8, rows)))
    n_epochs = _or(given.n_epochs, min(10, max(1, math.ceil(100 * batch_size / max(1, rows)))))
    steps = n_epochs * rows // batch_size
    return {
        **given.model_dump(),
        "n_epochs": n_epochs,
        "batch_size": batch_size,
        "eval_interval": _or(given.eval_interval, max(1, steps // 10)),
        "eval_samples": _or(given.eval_samples, 1),
        "learning_rate_multiplier": _or(given.learning_rate_multiplier, 1.0),
        "compute_multiplier": _or(given.compute_multiplier, 1.0),
    }


def _resolve_engine(job: Job, hyperparameters: dict[str, Any], facts: JobFacts) -> dict[str, Any]:
    engine = job.engine.model_dump()
    rollout = job.engine.rollout
    compute = hyperparameters["compute_multiplier"]
    group_size = _or(rollout.group_size, max(2, round(ROLLOUTS_PER_PROMPT * compute)))
    completion = completion_limit(job)
    row_tokens = facts.longest_prompt + completion
    sampled = hyperparameters["eval_samples"] > 1
    _fill(engine["model"], dtype=facts.dtype, device=facts.device)
    _fill(
        engine["rollout"],
        group_size=group_size,
        max_prompt_tokens=facts.context_length - completion,
        max_completion_tokens=completion,
        slots=_slots(hyperparameters["batch_size"] * group_size, completion, facts),
    )
    _fill(
        engine["training"],
        learning_rate=learning_rate(facts.num_parameters),
        token_budget=_token_budget(group_size, completion, facts),
        gradient_checkpointing=_needs_checkpointing(row_tokens, facts),
    )
    _fill(engine["evaluation"], temperature=rollout.temperature if sampled else 0.0)
    _fill(engine["grading"], concurrency=_concurrency(job, facts))
    _fill(engine["grading"]["python"], sandbox=facts.sandbox)
    engine["tracking"]["report_to"] = _trackers(job)
    return engine


def _impossibilities(
    hyperparameters: dict[str, Any], engine: dict[str, Any], facts: JobFacts
) -> list[Problem]:
    rows, batch_size = facts.num_training_rows, hyperparameters["batch_size"]
    prompt = engine["rollout"]["max_prompt_tokens"]
    completion = engine["rollout"]["max_completion_tokens"]
    problems = []
    if batch_size > rows:
        what = f"batch_size ({batch_size}) is more than the training rows ({rows})"
        where = "method.reinforcement.hyperparameters.batch_size"
        problems.append(Problem(what, where, "lower batch_size or add rows"))
    if prompt <= 0:
        what = f"max_completion_tokens ({completion}) leaves no room for a prompt in the model's "
        what += f"context of {facts.context_length} tokens"
        where, remedy = "engine.rollout.max_completion_tokens", "lower max_completion_tokens"
        problems.append(Problem(what, where, remedy))
    elif prompt + completion > facts.context_length:
        what = f"max_prompt_tokens ({prompt}) and max_completion_tokens ({completion}) exceed the "
        what += f"model's context of {facts.context_length} tokens"
        remedy = "lower one of them, or leave max_prompt_tokens on auto"
        problems.append(Problem(what, "engine.rollout.max_prompt_tokens", remedy))
    return problems


def _slots(num_rollouts: int, max_completion_tokens: int, facts: JobFacts) -> int:
    """Rows of the sampler: the step's rollouts, within a cap and the memory set aside for KV."""
    cap = 64 if facts.device == "cpu" else 256
    memory = GIB if facts.device == "cpu" else 16 * GIB
    bytes_per_row = facts.kv_bytes_per_token * (facts.longest_prompt + max_completion_tokens)
    return max(4, min(num_rollouts, cap, memory // max(1, bytes_per_row)))


def _token_budget(group_size: int, max_completion_tokens: int, facts: JobFacts) -> int:
    """Packed tokens of a micro-batch: as many as the memory set aside for activations holds, at least 256,
    and on a CPU no more than keep its matrix kernels busy.

    A group that is cut has its prompt computed again for each part. So that this costs little, the budget is raised
    to `PROMPTS_PER_PART` usual prompts or two of the longest, whichever is more, but not beyond the largest group
    or half of what memory can be expected to hold.
    """
    memory = CPU_ACTIVATION_MEMORY if facts.device == "cpu" else 8 * GIB
    bytes_per_token = max(1, facts.activation_bytes_per_token)
    budget = max(256, memory // bytes_per_token)
    if facts.device == "cpu":
        budget = min(budget, CPU_SATURATION)
    part = max(2 * facts.longest_prompt, PROMPTS_PER_PART * facts.mean_prompt)
    copied = math.ceil(facts.longest_prompt * facts.kv_bytes_per_token / bytes_per_token)
    group = facts.longest_prompt + group_size * (max_completion_tokens + copied)
    return max(budget, min(part, group, _most_activations(facts) // 2 // bytes_per_token))


def _needs_checkpointing(row_tokens: int, facts: JobFacts) -> bool:
    """Whether the longest prompt with the longest completion, the least that a micro-batch can be cut to,
    leaves more for its backward pass than memory can be expected to hold."""
    return row_tokens * facts.activation_bytes_per_token > _most_activations(facts)


def _most_activations(facts: JobFacts) -> int:
    """Bytes that memory can be expected to hold of a pass, on a machine that runs such a model at all."""
    return 6 * GIB if facts.device == "cpu" else 24 * GIB


def _concurrency(job: Job, facts: JobFacts) -> int:
    """One grade per core, more where grading is mostly waiting for a server or for a judge's turn."""
    kinds = {kind for _, kind in grader_parts(job.grader)}
    wanted: list[int] = []
    if "endpoint" in kinds:
        wanted.append(ENDPOINT_CONCURRENCY)
    if kinds & {"score_model", "label_model"}:
        wanted.append(job.engine.grading.judge.concurrency)
    if local_judges(job.grader):
        wanted.append(LOCAL_JUDGE_CONCURRENCY)
    return max(wanted, default=max(1, facts.num_cores))


def _trackers(job: Job) -> tuple[str, ...]:
    """The trackers asked for, and wandb when an integration names it."""
    asked = [*job.engine.tracking.report_to, *(entry.type for entry in job.integrations)]
    return tuple(dict.fromkeys(asked))


def _or(value: Literal["auto"] | Number, resolved: Number) -> Number:
    return resolved if value == "auto" else value


def _fill(section: dict[str, Any], **resolved: Any) -> None:
    """Replaces `auto` in a freshly dumped section."""
    section.update({key: value for key, value in resolved.items() if section[key] == "auto"})
