"""What may change between a run and its resumption."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import yaml

from rft.errors import RunError
from rft.job import ResolvedJob, dump_job
from rft.runs.layout import RunFolder, steps_in
from rft.training.setup import Workshop

EPOCHS = "method.reinforcement.hyperparameters.n_epochs"

SAFE_KEYS = (
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
    "engine.rollout.vllm",
    "engine.rollout.slots",
    "engine.training.token_budget",
    "engine.training.gradient_checkpointing",
)
"""Keys that leave the finished steps as they would have been, the last three but for rounding."""


def refuse_changed_job(job: ResolvedJob, folder: RunFolder) -> None:
    """Raise RunError with every difference between the job and the one its run was begun with."""
    if not folder.resolved_job.is_file():
        return
    schedule = job.engine.training.schedule
    before = flattened(yaml.safe_load(folder.resolved_job.read_text(encoding="utf-8")))
    after = flattened(yaml.safe_load(dump_job(job)))
    changed = [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not is_safe(key, schedule)
    ]
    if changed:
        raise RunError(
            "the job differs from the one this run was begun with: " + "; ".join(changed[:20]),
            where=str(folder.root),
            remedy="take the job back to what it was, or start another run",
        )


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


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    pairs: dict[str, Any] = {}
    for key, inner in value.items():
        pairs |= flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    return pairs
