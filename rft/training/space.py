"""What a run takes on disk, estimated from its job, and whether there is that much."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rft.errors import DiskError
from rft.job import ResolvedJob
from rft.runs.disk import told_as_disk_error
from rft.runs.writer import MAX_EVALUATION_FILES, MAX_SAMPLES_FILES
from rft.training.states import NUM_KEPT
from rft.types import Prompt

MARGIN = 1.1
"""Times what is estimated."""

TOKEN_BYTES = 8
"""Of the text of a completion's token, in `completion` and again in `output_text`."""

ROLLOUT_BYTES = 200
"""Numbers, rewards and parquet's own of one row."""

STEP_BYTES = 16_000
"""A step's lines of events, metrics and results."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes on disk, upper estimates."""

    step: int
    """What a step and the evaluation after it add, before anything old is dropped."""
    run: int
    """The whole folder at its largest, a state and a checkpoint on their way included."""


def space_of(
    num_parameters: int,
    job: ResolvedJob,
    train_prompts: Sequence[Prompt],
    valid_prompts: Sequence[Prompt],
) -> Space:
    """`num_parameters`: of the adapter, in float32, with two moments each in a state."""
    adapter = 4 * num_parameters
    state = 3 * adapter
    hyperparameters, rollout = job.hyperparameters, job.engine.rollout
    steps = job.steps(len(train_prompts))
    num_rollouts = hyperparameters.batch_size * rollout.group_size
    num_answers = len(valid_prompts) * hyperparameters.eval_samples
    samples = num_rollouts * _row_bytes(train_prompts, rollout.max_completion_tokens)
    evaluation = num_answers * _row_bytes(valid_prompts, rollout.max_completion_tokens)
    # checkpoints that no longer rank wait for the next state
    num_waiting = (job.engine.checkpoints.state_every_steps - 1) // hyperparameters.eval_interval
    num_evaluations = steps // hyperparameters.eval_interval + 2
    run = (
        (NUM_KEPT + 1) * state
        + (job.engine.checkpoints.keep + 3 + num_waiting) * adapter
        + min(steps, MAX_SAMPLES_FILES + 1) * samples
        + min(num_evaluations, MAX_EVALUATION_FILES + 1) * evaluation
        + steps * STEP_BYTES
    )
    return Space(state + adapter + samples + evaluation + STEP_BYTES, run)


def refuse_full_disk(folder: Path, num_bytes: int) -> None:
    """Raise DiskError when the disk of a folder has less room than that, with a margin."""
    needed, free = int(MARGIN * num_bytes), free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"cannot write: {os.strerror(errno.ENOSPC)}: about {needed / 1e6:,.1f} MB are needed, "
            f"{free / 1e6:,.1f} MB are free",
            where=str(folder),
            remedy="free some space; what was saved before is untouched",
        )


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there."""
    with told_as_disk_error(folder):
        found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def used_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _row_bytes(prompts: Sequence[Prompt], max_completion_tokens: int) -> int:
    """The largest row of a table of rollouts: the prompt as text and as messages, the item, the completion."""
    longest = max(
        2 * len(prompt.text.encode("utf-8", "replace"))
        + len(json.dumps(prompt.example.item, default=str))
        for prompt in prompts
    )
    return longest + 2 * TOKEN_BYTES * max_completion_tokens + ROLLOUT_BYTES
