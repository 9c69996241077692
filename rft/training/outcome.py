"""A run's result as its folder tells it."""

import contextlib
from pathlib import Path

from rft.errors import RunError
from rft.runs.compare import compare_evaluations
from rft.runs.layout import FINISHED, RunFolder, newest_run
from rft.runs.reader import Run
from rft.training.report import Outcome


def finished_outcome(suffix: str, run_folder: Path | None, runs_folder: Path) -> Outcome | None:
    """The outcome of the run that would be resumed, if it has nothing left to do."""
    folder = run_folder or newest_run(suffix, runs_folder)
    if folder is None or not folder.is_dir():
        return None
    status = Run(RunFolder(folder)).status().status
    if status not in FINISHED:
        return None
    return outcome_of(folder, status, f"{folder.name} has already {status}")


def outcome_of(folder: Path, status: str, message: str) -> Outcome:
    """A run's result as its folder tells it."""
    run = Run(RunFolder(folder))
    valid = {m["step"]: m["valid_reward_mean"] for m in run.metrics() if "valid_reward_mean" in m}
    best = run.best_checkpoint()
    error = None
    if best and {0, best.step} <= set(run.evaluation_steps()):
        with contextlib.suppress(RunError):  # a damaged file is no reason to end otherwise
            comparison = compare_evaluations(run.evaluation(0), run.evaluation(best.step))
            error = comparison.standard_error
    return Outcome(
        status=status,
        run_folder=folder,
        step=run.status().step,
        baseline=valid.get(0),
        best_step=best.step if best else None,
        best=best.valid_reward_mean if best else None,
        final=valid[max(valid)] if valid else None,
        gain_standard_error=error,
        message=message,
    )
