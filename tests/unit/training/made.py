"""Groups, evaluations and jobs made in one line, for tests to vary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rft.job import JobFacts, ResolvedJob, parse_job, resolve_job
from rft.training.batch import TrainingGroup
from rft.training.evaluation import Evaluation
from rft.types import Completion, Example, FinishReason, Grade, Group, Prompt, Rollout

JOB = """\
model: tiny
training_file: train.jsonl
validation_file: valid.jsonl
seed: 7
method:
  type: reinforcement
  reinforcement:
    grader:
      type: string_check
      name: exact
      input: "{{ sample.output_text }}"
      reference: "{{ item.answer }}"
      operation: eq
    hyperparameters: {n_epochs: 1, batch_size: 2}
engine:
  rollout: {group_size: 2, max_completion_tokens: 8}
  training: {learning_rate: 0.01, token_budget: 1000, gradient_checkpointing: false}
"""

FACTS = JobFacts(
    num_training_rows=20,
    num_parameters=1000,
    device="cpu",
    dtype="float32",
    context_length=512,
    longest_prompt=10,
    mean_prompt=10,
    kv_bytes_per_token=1,
    activation_bytes_per_token=1,
    num_cores=1,
    sandbox="kernel",
)


def make_job(*overrides: str) -> ResolvedJob:
    job = parse_job(JOB, name="job.yaml", folder=Path("/jobs"), overrides=overrides)
    return resolve_job(job, FACTS)


def make_completion(
    token_ids: Sequence[int] = (5,),
    logprobs: Sequence[float] | None = None,
    finish_reason: FinishReason = "stop",
    text: str = "",
    num_reasoning_tokens: int = 0,
) -> Completion:
    return Completion(
        token_ids=tuple(token_ids),
        sampling_logprobs=tuple(logprobs or [-1.0] * len(token_ids)),
        finish_reason=finish_reason,
        text=text,
        output_text=text,
        num_reasoning_tokens=num_reasoning_tokens,
    )


def make_grade(
    reward: float | None, errors: Mapping[str, str] | None = None, **parts: Grade
) -> Grade:
    return Grade("exact", "string_check", reward, parts, errors or {})


def make_prompt(row: int = 0, token_ids: Sequence[int] = (3, 4), /, **item: Any) -> Prompt:
    example = Example(row, ({"role": "user", "content": f"prompt {row}"},), item)
    return Prompt(example, f"<user>prompt {row}", tuple(token_ids))


def make_group(
    *rewards: float | Grade | None,
    ordinal: int = 0,
    completions: Sequence[Completion] | None = None,
    prompt: Prompt | None = None,
) -> Group:
    """A group with a rollout per reward (or grade)."""
    completions = completions or [make_completion((5 + i,)) for i in range(len(rewards))]
    grades = [reward if isinstance(reward, Grade) else make_grade(reward) for reward in rewards]
    rollouts = tuple(map(Rollout, completions, grades))
    return Group(ordinal, prompt or make_prompt(ordinal), rollouts)


def make_evaluation(*rows: Sequence[float | None], step: int = 1) -> Evaluation:
    groups = tuple(make_group(*row, ordinal=index) for index, row in enumerate(rows))
    return Evaluation(step, groups, 0.5)


def make_training_group(
    completions: Sequence[Completion],
    advantages: Sequence[float],
    ordinal: int = 0,
    prompt_ids: Sequence[int] = (3, 4),
) -> TrainingGroup:
    rollouts = tuple(Rollout(completion, make_grade(0.0)) for completion in completions)
    return TrainingGroup(ordinal, tuple(prompt_ids), rollouts, tuple(advantages))
