"""A run seen from outside: read-only, at any time, also while it is being written."""

import difflib
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft.errors import RunError
from rft.runs.documents import read_document, read_lines
from rft.runs.folders import manifest_faults, verify_folder
from rft.runs.layout import RunFolder, steps_in
from rft.runs.lock import is_held

ENDED = frozenset({"paused", "succeeded", "failed", "cancelled"})
"""Statuses that hold without a live process."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands."""

    status: str
    step: int
    total_steps: int | None
    created_at: int | None
    """Seconds since 1970."""
    best: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    message: str | None
    process_ended: bool
    """The run says it is running, but its process is gone; it can be resumed."""

    def __str__(self) -> str:
        return "paused (its process ended)" if self.process_ended else self.status


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A kept adapter."""

    step: int
    folder: Path
    valid_reward_mean: float | None
    metrics: Mapping[str, Any]
    created_at: int | None
    """Seconds since 1970."""
    is_pause: bool = False
    """It was made because the run paused there, not for its reward."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder, perhaps at a step somebody named."""

    folder: RunFolder
    step: int | None = None
    """The step of `RUN@step`; None for `RUN` and `RUN@best`."""

    @property
    def name(self) -> str:
        return self.folder.root.resolve().name

    def status(self) -> RunStatus:
        state = read_document(self.folder.state)
        recorded = str(state.get("status", "unknown"))
        # a lock says nothing about a process on another machine
        is_here = state.get("host") == socket.gethostname()
        is_gone = is_here and recorded not in ENDED and not is_held(self.folder.lock)
        return RunStatus(
            status="paused" if is_gone else recorded,
            step=state.get("step") or 0,
            total_steps=state.get("total_steps"),
            created_at=state.get("created_at"),
            best=state.get("best"),
            error=state.get("error"),
            message=state.get("message"),
            process_ended=is_gone,
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, flat, in order of steps."""
        return list(read_lines(self.folder.metrics))

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl, oldest first, and the newest one that only state.json has yet."""
        found = list(read_lines(self.folder.events))
        newest = read_document(self.folder.state).get("event")
        if not isinstance(newest, dict) or newest.get("id") in {e.get("id") for e in found}:
            return found
        return [*found, newest]

    def sample_steps(self) -> list[int]:
        return steps_in(self.folder.samples, ".parquet")

    def evaluation_steps(self) -> list[int]:
        return steps_in(self.folder.evaluations, ".parquet")

    def samples(self, step: int) -> list[dict[str, Any]]:
        """The rollouts of a training step. Raises RunError when they are not kept."""
        path = self.folder.samples_file(step)
        return self._table(path, f"samples of step {step}", self.sample_steps())

    def evaluation(self, step: int) -> list[dict[str, Any]]:
        """The completions of the evaluation at a step. Raises RunError when there is none."""
        path = self.folder.evaluation_file(step)
        return self._table(path, f"evaluation at step {step}", self.evaluation_steps())

    def checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints by step; one without a whole manifest does not exist."""
        folders = [
            (step, self.folder.checkpoint(step)) for step in steps_in(self.folder.checkpoints)
        ]
        found = [_checkpoint(step, path) for step, path in folders if not manifest_faults(path)]
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def best_checkpoint(self) -> Checkpoint | None:
        """The one state.json names, else the highest validation reward, the later of equals, else the
        newest of a run that has paused before any evaluation."""
        checkpoints = self.checkpoints()
        named = (read_document(self.folder.state).get("best") or {}).get("step")
        for checkpoint in checkpoints:
            if checkpoint.step == named:
                return checkpoint
        ranked = [
            (checkpoint.valid_reward_mean, checkpoint.step, checkpoint)
            for checkpoint in checkpoints
            if checkpoint.valid_reward_mean is not None
        ]
        if ranked:
            return max(ranked, key=lambda entry: entry[:2])[2]
        return checkpoints[-1] if checkpoints else None

    def best_evaluation_step(self) -> int | None:
        """The step of the best checkpoint, else the last evaluation after the start."""
        best = self.best_checkpoint()
        steps = self.evaluation_steps()
        if best is not None and best.step in steps:
            return best.step
        return steps[-1] if steps else None

    def _table(self, path: Path, what: str, kept: list[int]) -> list[dict[str, Any]]:
        if path.is_file():
            # pyarrow takes longer to load than all the rest of a command
            from rft.runs.tables import read_table

            return read_table(path)
        raise RunError(
            f"the run keeps no {what}",
            where=str(self.folder.root),
            remedy=f"take one of the steps {shown_steps(kept)}" if kept else "it has none yet",
        )


def open_run(reference: str, parent: Path) -> Run:
    """The run named by a path or by a name below `parent`, with `@step` or `@best` if wanted.

    Raises RunError, with the nearest names, when there is none.
    """
    name, step = split_reference(reference)
    for folder in (Path(name), parent / name):
        if RunFolder(folder).is_run:
            return Run(RunFolder(folder), step)
    known = [run.name for run in list_runs(parent)]
    near = difflib.get_close_matches(name, known, n=3) or known[-3:]
    remedy = f"did you mean {' or '.join(near)}?" if near else "give the path of a run folder"
    raise RunError(f"there is no run {name!r}", where=str(parent / name), remedy=remedy)


def split_reference(reference: str) -> tuple[str, int | None]:
    """`RUN`, `RUN@best`, `RUN@12` or `RUN@step_12` as a name and a step; None means the best."""
    name, mark, tail = reference.rpartition("@")
    match = re.fullmatch(r"(?:step_)?(\d{1,18})", tail)
    if mark and name and match:
        return name, int(match[1])
    if mark and name and tail == "best":
        return name, None
    return reference, None


def list_runs(parent: Path) -> list[Run]:
    """The runs below a folder that can be read, by name and number."""
    entries = parent.iterdir() if parent.is_dir() else iter(())
    runs = [Run(RunFolder(entry)) for entry in entries if _is_readable_run(RunFolder(entry))]
    return sorted(runs, key=lambda run: _natural(run.name))


def _is_readable_run(folder: RunFolder) -> bool:
    try:
        return folder.is_run
    except PermissionError:  # another user's, or a volume's `lost+found`
        return False


def adapter_folder(reference: str, parent: Path) -> Path:
    """The PEFT folder of `RUN` (its best) or `RUN@step`, with every hash checked.

    Raises RunError when the checkpoint is missing or damaged.
    """
    run = open_run(reference, parent)
    checkpoints = {checkpoint.step: checkpoint for checkpoint in run.checkpoints()}
    chosen = run.best_checkpoint() if run.step is None else checkpoints.get(run.step)
    if chosen is None and run.step is None:
        raise RunError(
            "the run has no checkpoint yet",
            where=str(run.folder.root),
            remedy="a checkpoint is made at each evaluation; wait for the first one",
        )
    if chosen is None:
        raise RunError(
            f"the run keeps no checkpoint of step {run.step}",
            where=str(run.folder.root),
            remedy=f"take one of the steps {shown_steps(list(checkpoints))}"
            if checkpoints
            else "it has none yet",
        )
    if faults := verify_folder(chosen.folder):
        raise RunError(
            f"the checkpoint is damaged: {'; '.join(faults)}",
            where=str(chosen.folder),
            remedy="take another checkpoint of the run",
        )
    return chosen.folder


def shown_steps(steps: list[int]) -> str:
    """Steps for a message, the middle of a long list left out."""
    if len(steps) <= 12:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))}, …, {', '.join(map(str, steps[-6:]))}"


def _checkpoint(step: int, folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None when it says that it is another step's."""
    document = read_document(folder / "checkpoint.json")
    if document.get("step") != step:
        return None
    reward = document.get("valid_reward_mean")
    metrics = document.get("metrics")
    return Checkpoint(
        step=step,
        folder=folder,
        valid_reward_mean=float(reward) if isinstance(reward, int | float) else None,
        metrics=metrics if isinstance(metrics, dict) else {},
        created_at=document.get("created_at"),
        is_pause=document.get("is_pause") is True,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which run-10 comes after run-9."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
