"""What may change in the job document of a run that is resumed."""

from typing import Any

import yaml

from rft.errors import RunError
from rft.job import ResolvedJob, dump_job
from rft.runs.layout import RunFolder

SAFE_KEYS = (
    "metadata",
    "integrations",
    "method.reinforcement.hyperparameters.n_epochs",
    "engine.budget",
    "engine.tracking",
    "engine.evaluation.stop_at",
    "engine.evaluation.patience",
    "engine.checkpoints",
    "engine.grading.concurrency",
    "engine.grading.error_pause_rate",
)
"""Keys that leave the finished steps as they would have been."""


def refuse_changed_job(job: ResolvedJob, folder: RunFolder) -> None:
    """Raise RunError with every difference between the job and the one its run was begun with."""
    if not folder.resolved_job.is_file():
        return
    before = flattened(yaml.safe_load(folder.resolved_job.read_text(encoding="utf-8")))
    after = flattened(yaml.safe_load(dump_job(job)))
    changed = [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not is_safe(key)
    ]
    if changed:
        raise RunError(
            "the job differs from the one this run was begun with: " + "; ".join(changed[:20]),
            where=str(folder.root),
            remedy="take the job back to what it was, or start another run",
        )


def is_safe(key: str) -> bool:
    return any(key == safe or key.startswith(safe + ".") for safe in SAFE_KEYS)


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    pairs: dict[str, Any] = {}
    for key, inner in value.items():
        pairs |= flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    return pairs
