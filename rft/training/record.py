"""What a run leaves on disk while it goes on; only the first rank has one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rft.errors import MachineError
from rft.job import ResolvedJob
from rft.runs.writer import Level, RunWriter, Status
from rft.training.checkpoints import CheckpointStore
from rft.training.evaluation import Evaluation
from rft.training.metrics import (
    Part,
    evaluation_metrics,
    evaluation_rows,
    metric_tree,
    results_row,
    sample_rows,
    step_metrics,
)
from rft.training.report import Report
from rft.training.trainer import StepRecord


class Recorder:
    """Turns records of steps and evaluations into lines, tables, checkpoints and words."""

    def __init__(
        self,
        writer: RunWriter,
        report: Report,
        job: ResolvedJob,
        parts: Sequence[Part],
        total_steps: int,
    ):
        self.writer = writer
        self.checkpoints = CheckpointStore(writer.folder, job.engine.checkpoints.keep)
        self._report = report
        self._pass_threshold = job.engine.evaluation.pass_threshold
        self._parts = parts
        self._total_steps = total_steps
        self._tracker = open_tracker(job, writer.folder.root)

    def close(self) -> None:
        if self._tracker:
            with self._tracking_may_fail():
                self._tracker.end_training()

    @contextmanager
    def _tracking_may_fail(self) -> Iterator[None]:
        """Go on without the tracker after any error of its own: it must not take a run down."""
        try:
            yield
        except Exception as error:
            self._tracker = None
            self.say("warn", f"tracking stops here: {type(error).__name__}: {error}")

    def say(self, level: Level, message: str) -> None:
        """An event, told to the watcher too."""
        self.writer.event(level, message)
        self._report.event(level, message)

    def end(self, status: Status, message: str, level: Level = "info") -> None:
        """The last status of a run, with its event, in one durable write."""
        error = {"message": message} if status == "failed" else None
        self.writer.status(status, message, level, error=error)
        self._report.event(level, message)

    def step(
        self,
        record: StepRecord | None,
        evaluation: Evaluation | None,
        measured: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write all that a step and the evaluation after it have to say, with what the watch measured;
        gives the flat metrics."""
        step = record.step if record else 0
        flat: dict[str, Any] = {"step": step, "total_steps": self._total_steps}
        if record:
            flat |= step_metrics(record)
            self.writer.samples(step, sample_rows(record))
        if evaluation:
            flat |= evaluation_metrics(evaluation, self._pass_threshold)
            seconds = flat.get("timing/full_iteration", 0.0) + evaluation.seconds
            flat["timing/full_iteration"] = seconds
            kept = [entry.step for entry in self.checkpoints.ranking()]
            self.writer.evaluation(step, evaluation_rows(evaluation), keep=kept)
        flat |= measured
        tree = metric_tree(flat, self._parts, record, evaluation)
        self.writer.metrics(flat)
        self.writer.results(results_row(flat, tree))
        self.writer.event("info", _headline(flat, tree), type="metrics", data=tree)
        if self._tracker:
            numbers = {k: v for k, v in flat.items() if isinstance(v, (int, float))}
            with self._tracking_may_fail():
                self._tracker.log(numbers, step=step)
        if record:
            self._report.step(flat)
        if evaluation:
            self._report.evaluated(step, flat)
        return flat


def open_tracker(job: ResolvedJob, run_folder: Path) -> Accelerator | None:
    """Accelerate's trackers, if the job asks for any.

    Raises MachineError when a tracker's package is missing.
    """
    names = list(job.engine.tracking.report_to)
    if not names:
        return None
    wandb = next((entry.wandb for entry in job.integrations), None)
    project = wandb.project if wandb else "rft"
    details = (
        {"name": wandb.name, "entity": wandb.entity, "tags": list(wandb.tags)} if wandb else {}
    )
    config = {"run": run_folder.name, "model": job.model}
    on_cpu = job.engine.model.device == "cpu"
    try:
        accelerator = Accelerator(cpu=on_cpu, log_with=names, project_dir=str(run_folder))
        accelerator.init_trackers(project, config, init_kwargs={"wandb": details})
    except Exception as error:  # each tracker has errors of its own
        raise MachineError(
            f"tracking cannot start: {error}",
            where="engine.tracking.report_to",
            remedy="install the tracker's package, or leave it out",
        ) from None
    if len(accelerator.trackers) < len(names):
        raise MachineError(
            f"of the trackers {', '.join(names)} not all are installed",
            where="engine.tracking.report_to",
            remedy="install the tracker's package, or leave it out",
        )
    return accelerator


def _headline(flat: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """The product's sentence for a metrics event."""
    parts = [f"Step {flat['step']}/{flat['total_steps']} "]
    for label, value in (
        ("train mean reward", tree["train_mean_reward"]),
        ("full validation mean reward", tree["full_valid_mean_reward"]),
        ("full validation mean parse error", tree["full_valid_mean_parse_error"]),
    ):
        if value is not None:
            parts.append(f"{label}={value:.2f}")
    return ", ".join(parts)
