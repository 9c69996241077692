"""What may change between a run and its resumption."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rft.errors import RunError
from rft.job import Job, ResolvedJob, dump_job
from rft.runs.layout import RunFolder, steps_in
from rft.training.setup import Workshop
from rft.training.states import Origin, State

EPOCHS = "method.reinforcement.hyperparameters.n_epochs"

SAFE_KEYS = (
    "training_file",
    "validation_file",
    "metadata",
    "integrations",
    EPOCHS,
    "engine.budget",
    "engine.tracking",
    "engine.evaluation.stop_at",
    "engine.evaluation.patience",
    "engine.checkpoints",
    "engine.grading.concurrency",
    "engine.grading.error_pause_rate",
    "engine.grading.judge.concurrency",
    "engine.grading.judge.timeout_seconds",
    "engine.grading.judge.api_key_env",
    "engine.rollout.vllm",
    "engine.rollout.slots",
    "engine.training.token_budget",
    "engine.training.gradient_checkpointing",
)
"""Keys that leave the finished steps as they would have been, the last three but for rounding; the rows of
the files are compared by themselves."""


TENSOR_KEYS = ("model", "engine.lora")
"""Keys that say which weights a state holds: not even a fork may change them."""

FORMAT_KEYS = ("engine.model.dtype", "engine.model.quantization")
"""Keys that say how a base's numbers are held."""

REWARD_KEYS = (
    "method.reinforcement.grader.",
    "method.reinforcement.response_format",
    "method.reinforcement.hyperparameters.eval_samples",
    "method.reinforcement.hyperparameters.reasoning_effort",
    "engine.data.messages",
    "engine.data.system",
    "engine.data.fields",
    "engine.evaluation.temperature",
    "engine.grading.judge.base_url",
    "engine.grading.on_exception",
    "engine.grading.pass_threshold_shapes_reward",
    "engine.grading.similarity_model",
    "engine.model.chat_template",
    "engine.rollout.max_completion_tokens",
    "engine.rollout.stop",
    "engine.rollout.top_p",
)
"""Beginnings of keys that change what a validation reward means."""

EVAL_INTERVAL = "method.reinforcement.hyperparameters.eval_interval"


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where a session begins."""

    state: State | None
    """None: from nothing."""
    faults: Sequence[str]
    """What was wrong on the way to that state, or is different from when it was saved."""
    origin: Origin
    """What the run is made with from now on."""
    data_digest: str
    is_fork: bool = False
    """Whether it is a copy of a run that has no state of its own yet."""
    keeps_ranking: bool = True
    """Whether earlier rewards say as much as later ones: not in a fork to another grader or other rows."""


def keep_settled(job: Job, folder: RunFolder | None) -> Job:
    """The job with the interval of evaluations that its run began with, where it says `auto`: more epochs
    would stretch it, and the finished steps could no longer be the same."""
    if folder is None or not folder.resolved_job.is_file():
        return job
    try:
        begun = flattened(yaml.safe_load(folder.resolved_job.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError):
        return job  # the state has the document too, and tells what differs
    hyperparameters = job.method.reinforcement.hyperparameters
    if hyperparameters.eval_interval != "auto" or EVAL_INTERVAL not in begun:
        return job
    settled = hyperparameters.model_copy(update={"eval_interval": begun[EVAL_INTERVAL]})
    reinforcement = job.method.reinforcement.model_copy(update={"hyperparameters": settled})
    method = job.method.model_copy(update={"reinforcement": reinforcement})
    return job.model_copy(update={"method": method})


def refuse_changed_job(
    job: ResolvedJob, begun: str, folder: RunFolder, is_fork: bool = False
) -> None:
    """Raise RunError with every difference that matters between the job and the one its run was begun
    with, as its state holds it."""
    schedule = job.engine.training.schedule
    before = flattened(yaml.safe_load(begun))
    after = flattened(yaml.safe_load(dump_job(job)))
    changed = [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not (is_forkable(key) if is_fork else is_safe(key, schedule))
    ]
    is_shorter = after[EPOCHS] < before[EPOCHS] and is_safe(EPOCHS, schedule)
    if not is_fork and is_shorter:
        changed.append(f"{EPOCHS}: {before[EPOCHS]!r} → {after[EPOCHS]!r} (more are possible)")
    if changed:
        raise RunError(
            "the job differs from the one this run was begun with: " + "; ".join(changed[:20]),
            where=str(folder.root),
            remedy="start another run: a fork keeps the weights' shape"
            if is_fork
            else "take the job back to what it was, start another run, or go on with the changed job "
            "in a copy: rft runs resume RUN KEY=VALUE --fork",
        )


def same_rewards(job: ResolvedJob, begun: str) -> bool:
    """Whether a job grades and measures as the one that a run was begun with."""
    before, after = flattened(yaml.safe_load(begun)), flattened(yaml.safe_load(dump_job(job)))
    keys = [key for key in before.keys() | after.keys() if key.startswith(REWARD_KEYS)]
    return all(before.get(key) == after.get(key) for key in keys)


def is_forkable(key: str) -> bool:
    """Whether a fork of a run may change a key."""
    return not any(key == fixed or key.startswith(fixed + ".") for fixed in TENSOR_KEYS)


def machine_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine and the libraries differs from when a state was saved, as one warning."""
    compared = ("python", "rft", "processor", "num_threads", "world_size", "device", "variables")
    pairs = [(key, before.get(key), now.get(key)) for key in compared]
    old, new = before.get("libraries", {}), now.get("libraries", {})
    pairs += [(name, old.get(name), new.get(name)) for name in sorted({*old, *new})]
    changed = [f"{name} {was} → {is_now}" for name, was, is_now in pairs if was != is_now]
    if not changed:
        return []
    return [
        "this is not where the run was begun, so its numbers may differ in their last digits: "
        + ", ".join(changed)
    ]


def is_safe(key: str, schedule: str = "constant") -> bool:
    """Whether a key leaves the finished steps as they were; more epochs stretch a falling schedule."""
    if key == EPOCHS and schedule != "constant":
        return False
    return any(key == safe or key.startswith(safe + ".") for safe in SAFE_KEYS)


def data_digest(workshop: Workshop) -> str:
    """SHA-256 over the prompts and items of both files, in order."""
    digest = hashlib.sha256()
    for prompt in (*workshop.train_prompts, *workshop.valid_prompts):
        content = [prompt.token_ids, prompt.example.item]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def refuse_lost_state(folder: RunFolder, faults: Sequence[str]) -> None:
    """Raise RunError when a run has finished steps but no state to go on from: they are not thrown away."""
    if not faults and not steps_in(folder.checkpoints) and not steps_in(folder.samples, ".parquet"):
        return
    raise RunError(
        "this run has finished steps but no state to go on from"
        + "".join(f"; {f}" for f in faults),
        where=str(folder.root),
        remedy="start another run; the checkpoints of this one can still be used",
    )


def refuse_changed_data(before: str, now: str, folder: RunFolder) -> None:
    """Raise RunError when the rows are not those the run was begun with."""
    if before != now:
        raise RunError(
            "the training or validation rows differ from those this run was begun with",
            where=str(folder.root),
            remedy="take the files back to what they were, or start another run",
        )


def refuse_changed_model(
    before: Origin, now: Origin, job: ResolvedJob, folder: RunFolder, faults: Sequence[str]
) -> None:
    """Raise RunError when the weights under the run's adapter, or the adapter it continues from, are not those it
    was begun with; `faults`: what is wrong with what the run keeps of them. What a fork holds in another number
    format cannot be compared."""
    begun, here = (flattened(yaml.safe_load(origin.job)) for origin in (before, now))
    is_alike = all(begun.get(key) == here.get(key) for key in FORMAT_KEYS)
    same_base = before.base_digest in (None, now.base_digest) or not is_alike
    if same_base and before.adapter_digest in (None, now.adapter_digest):
        return
    raise RunError(
        f"the weights of {job.model} differ from those this run was begun with"
        + "".join(f"; {fault}" for fault in faults),
        where=str(folder.root),
        remedy="take the model back to what it was, or start another run",
    )


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    pairs: dict[str, Any] = {}
    for key, inner in value.items():
        pairs |= flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    return pairs
