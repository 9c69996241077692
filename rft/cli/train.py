"""`rft train`: the main job, in this process or over several."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rft.cli.failure import Crash, other_rank
from rft.cli.live import LiveReport
from rft.cli.output import Json, Reply, Screen, stdout_screen
from rft.cli.probe import JobFile, Overrides
from rft.cli.summary import summary_lines
from rft.errors import PausedError, RftError
from rft.runs.layout import RUNS_FOLDER, RunFolder, newest_run, refuse_existing
from rft.runs.lock import refuse_held
from rft.runs.reader import Run

if TYPE_CHECKING:
    from rft.training.report import Outcome

EXIT_CODES: Mapping[str, int] = {"succeeded": 0, "cancelled": 0, "failed": 4, "paused": 75}


def train(
    job_file: JobFile,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder; by default runs/<suffix>-<n>."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in DIR, or the newest of the suffix."),
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes to train with, one per GPU.")
    ] = 1,
    as_json: Json = False,
) -> Reply | int:
    """Train a model on a job. Ctrl-C pauses it; --resume goes on from there.

    \b
    Example:
      rft train job.yaml
      rft train job.yaml engine.training.loss=grpo seed=7 --run-dir runs/try
      rft train job.yaml --resume
      rft train job.yaml --processes 4
    """
    order = Order(job_file, tuple(overrides or ()), run_dir, resume)
    return run_job(order, processes, as_json)


@dataclass(frozen=True, slots=True)
class Order:
    """A job to run, as the command line asks for it."""

    job_file: Path
    overrides: tuple[str, ...]
    run_dir: Path | None
    resume: bool

    def arguments(self, as_json: bool) -> list[str]:
        """The same command for each process of a launch."""
        options: list[Any] = ["--run-dir", self.run_dir] if self.run_dir is not None else []
        options += ["--resume"] if self.resume else []
        options += ["--json"] if as_json else []
        return ["train", *map(str, options), "--", str(self.job_file), *self.overrides]


def run_job(order: Order, processes: int, as_json: bool) -> Reply | int:
    """Train in this process, or start as many as are asked for; refused at once where another process
    writes to the run."""
    from rft.data import load_sound_job

    job = load_sound_job(order.job_file, order.overrides)
    from rft.cli import launch

    if not launch.is_launched():
        refuse_existing(order.run_dir, order.resume)
        folder = (order.run_dir or newest_run(job.suffix, RUNS_FOLDER)) if order.resume else None
        if folder is not None:
            refuse_held(RunFolder(folder).lock)
    if processes > 1 and not launch.is_launched():
        arguments = order.arguments(as_json)
        return launch.launch(job, arguments, processes, order.run_dir, order.resume)

    from rft.training.report import Silent
    from rft.training.start import train as train_session

    screen = stdout_screen(as_json)
    report = LiveReport(screen)
    try:
        outcome = train_session(
            job,
            job_text=order.job_file.read_text(encoding="utf-8-sig"),
            run_folder=order.run_dir,
            resume=order.resume,
            report=Silent() if other_rank() else report,
        )
    except PausedError:
        if report.outcome is None:
            raise
        outcome = report.outcome
    except RftError:
        raise
    except Exception as error:
        raise Crash(report.run_folder) from error
    if other_rank():
        return EXIT_CODES[outcome.status]
    if report.outcome is None:
        screen.line(outcome.message)
    return _reply(outcome, screen, as_json)


def _reply(outcome: "Outcome", screen: Screen, as_json: bool) -> Reply:
    run = Run(RunFolder(outcome.run_folder))
    lines = [] if as_json else summary_lines(run, screen.width, screen.is_unicode)
    document = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(outcome).items()
    }
    return Reply(document, lines, as_json, EXIT_CODES[outcome.status])
