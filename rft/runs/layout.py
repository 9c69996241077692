"""Where things lie in a run folder, and which folder a job may write to."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rft.errors import MachineError, RunError
from rft.runs.documents import read_document

RUNS_FOLDER = Path("runs")
"""Where runs lie by default, below the current folder."""

FINISHED = frozenset({"succeeded", "cancelled"})
"""Statuses after which a run has nothing left to do; a failed run can be resumed."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run; computing them touches no disk."""

    root: Path

    @property
    def job(self) -> Path:
        return self.root / "job.yaml"

    @property
    def resolved_job(self) -> Path:
        return self.root / "job.resolved.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "env.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def request(self) -> Path:
        """What somebody asks the run's process to do."""
        return self.root / "request.json"

    @property
    def fork(self) -> Path:
        """Of what run a fork is a copy, and from which step on."""
        return self.root / "fork.json"

    @property
    def reserve(self) -> Path:
        """Space for last words on a full disk."""
        return self.root / "reserve"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.root / "results.csv"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def start_adapter(self) -> Path:
        """The adapter that the run continues from, where it does: its own run may drop it."""
        return self.root / "start_adapter"

    @property
    def states(self) -> Path:
        return self.root / "states"

    def samples_file(self, step: int) -> Path:
        return self.samples / f"step_{step}.parquet"

    def evaluation_file(self, step: int) -> Path:
        return self.evaluations / f"step_{step}.parquet"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step}"

    def state_folder(self, step: int) -> Path:
        return self.states / f"step_{step}"

    @property
    def newest_state(self) -> Path:
        """Names the state that was saved last."""
        return self.states / "latest.json"

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.state.is_file() or self.lock.is_file()


@dataclass(frozen=True, slots=True)
class RunChoice:
    """The folder a job is to write to, and what it finds there."""

    folder: Path
    action: Literal["start", "resume", "finished"]
    """`start`: no state to go on from; `resume`: there is one; `finished`: nothing left to do."""


def steps_in(folder: Path, suffix: str = "") -> list[int]:
    """The steps N of the entries `step_N<suffix>` of a folder, ascending; none without it."""
    pattern = re.compile(rf"step_(\d+){re.escape(suffix)}")
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def numbered_runs(suffix: str, parent: Path) -> list[int]:
    """The numbers n of the folders `<suffix>-<n>` below `parent`, ascending."""
    pattern = re.compile(rf"{re.escape(suffix)}-(\d+)")
    names = os.listdir(parent) if parent.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def numbered_name(name: str) -> str:
    """The suffix of a run's name: `capitals-3` → `capitals`."""
    return re.sub(r"-\d+$", "", name)


def newest_run(suffix: str, parent: Path) -> Path | None:
    """The folder of the run of that suffix with the highest number."""
    numbers = numbered_runs(suffix, parent)
    return parent / f"{suffix}-{numbers[-1]}" if numbers else None


def new_run_folder(suffix: str, parent: Path) -> Path:
    """Create `<parent>/<suffix>-<n>` under the number after the highest one taken.

    Two processes that ask at once get two folders. Raises MachineError when it cannot be written.
    """
    number = max(numbered_runs(suffix, parent), default=0) + 1
    while True:
        folder = parent / f"{suffix}-{number}"
        try:
            _make(folder)
            return folder
        except FileExistsError:
            number += 1


def choose_run_folder(suffix: str, run_dir: Path | None, resume: bool, parent: Path) -> RunChoice:
    """The folder for a job, created if need be.

    Without `run_dir`: a new one, or with `resume` the newest run of the suffix. With `run_dir`:
    that one, which may exist only with `resume`. Raises RunError or MachineError.
    """
    if run_dir is None:
        newest = newest_run(suffix, parent) if resume else None
        if newest is None:
            return RunChoice(new_run_folder(suffix, parent), "start")
        return _reopened(newest)
    if not os.path.lexists(run_dir):
        try:
            _make(run_dir)
            return RunChoice(run_dir, "start")
        except FileExistsError:
            pass
    refuse_existing(run_dir, resume)
    return _reopened(run_dir)


def refuse_existing(run_dir: Path | None, resume: bool) -> None:
    """Raise RunError when a named run folder is there already and is not to be resumed."""
    if run_dir is not None and not resume and os.path.lexists(run_dir):
        raise RunError(
            "the run folder exists already",
            where=str(run_dir),
            remedy="add --resume to go on with that run, or name a folder that does not exist yet",
        )


def _reopened(folder: Path) -> RunChoice:
    """What a run that exists already can do."""
    if not folder.is_dir():
        raise RunError(
            "the run folder is a file", where=str(folder), remedy="name a folder with --run-dir"
        )
    run = RunFolder(folder)
    if not run.is_run and any(folder.iterdir()):
        raise RunError(
            "not a run folder: it holds files, but none of a run",
            where=str(folder),
            remedy="name the folder of a run, or one that does not exist yet",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, "permission denied")
    if read_document(run.state).get("status") in FINISHED:
        return RunChoice(folder, "finished")
    return RunChoice(folder, "resume" if steps_in(run.states) else "start")


def refuse_unwritable(folder: Path) -> None:
    """Raise MachineError when a folder that may not exist yet could not be written to."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise _unwritable(folder, f"{existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unwritable(folder, "permission denied")


def _make(folder: Path) -> None:
    """Create a folder and those above it; FileExistsError only when the folder itself is there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(
            "a file stands where a folder is needed",
            where=str(folder.parent),
            remedy="move it, or name another folder with --run-dir",
        ) from None
    except NotADirectoryError:
        raise RunError(
            "a part of the path is a file",
            where=str(folder),
            remedy="name another folder with --run-dir",
        ) from None
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from None
    try:
        folder.mkdir()
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from None


def _unwritable(folder: Path, reason: str) -> MachineError:
    return MachineError(
        f"the run folder cannot be written: {reason}",
        where=str(folder),
        remedy="name a folder you may write to with --run-dir",
    )
