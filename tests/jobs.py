"""Job documents for tests, and the parts of a training step without a run folder."""

from pathlib import Path
from typing import Any

from rft.job import JobFacts, ResolvedJob, parse_job, resolve_job
from rft.types import Completion, Example, Grade, Group, Prompt, Rollout

JOB = """
model: MODEL
training_file: train.jsonl
validation_file: valid.jsonl
suffix: tiny
method:
  type: reinforcement
  reinforcement:
    grader:
      type: python
      name: letters
      source: |
        def grade(sample, item):
            text = sample["output_text"]
            return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))
    hyperparameters: {n_epochs: 1, batch_size: 4, eval_interval: 2}
engine:
  lora: {rank: 4, alpha: 8}
  rollout: {group_size: 4, max_completion_tokens: 12}
  training: {learning_rate: 5e-3}
"""


def resolved_job(*overrides: str, num_rows: int = 32) -> ResolvedJob:
    """The test job with every `auto` replaced, for a model that is handed over by the test."""
    job = parse_job(JOB, name="job.yaml", folder=Path("/nowhere"), overrides=overrides)
    facts = JobFacts(
        num_training_rows=num_rows,
        num_parameters=100_000,
        device="cpu",
        dtype="float32",
        context_length=512,
        longest_prompt=40,
        mean_prompt=40,
        kv_bytes_per_token=1024,
        activation_bytes_per_token=100_000,
        num_cores=1,
        sandbox="kernel",
    )
    return resolve_job(job, facts)


def write_job(folder: Path, model: Path | str, num_rows: int = 32) -> Path:
    """A job folder with data; gives the path of job.yaml."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", num_rows), ("valid", 6)):
        rows = [{"messages": [{"role": "user", "content": f"{name} {i}"}]} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "job.yaml"
    path.write_text(JOB.replace("MODEL", str(model)))
    return path


def group(
    ordinal: int,
    prompt_ids: tuple[int, ...],
    completions: list[tuple[int, ...]],
    rewards: list[float | None],
    logprobs: list[tuple[float, ...]] | None = None,
    truncated: tuple[int, ...] = (),
) -> Group:
    """A group with given tokens and rewards."""
    rollouts: list[Any] = []
    for index, (ids, reward) in enumerate(zip(completions, rewards, strict=True)):
        recorded = logprobs[index] if logprobs else (0.0,) * len(ids)
        reason = "length" if index in truncated else "stop"
        completion = Completion(ids, recorded, reason, "", "")
        rollouts.append(Rollout(completion, Grade("g", "python", reward)))
    prompt = Prompt(Example(ordinal, ({"role": "user", "content": ""},), {}), "", prompt_ids)
    return Group(ordinal, prompt, tuple(rollouts))
