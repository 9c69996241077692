"""`rft runs pause`, `resume` and `cancel`."""

import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rft.cli.output import Json, Reply
from rft.cli.probe import Overrides
from rft.cli.summary import shown_name
from rft.cli.train import Order, run_job
from rft.errors import MachineError, RunError, UserError
from rft.runs.documents import read_document
from rft.runs.fork import fork_run, was_never_taken_up
from rft.runs.layout import FINISHED, RUNS_FOLDER
from rft.runs.lock import is_held, refuse_held
from rft.runs.reader import ENDED, Run, open_run, split_reference
from rft.runs.requests import Action, ask
from rft.runs.writer import RunWriter

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name below runs/, or the path of its folder.")
]
Patience = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to wait until the run has stopped.")
]

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 60.0


def pause(name: RunName, timeout: Patience = PATIENCE_SECONDS, as_json: Json = False) -> Reply:
    """Pause a running job, wherever it runs; the step in progress is given up if it takes too long.

    \b
    Example:
      rft runs pause capitals-1
    """
    run = _open_whole(name)
    status = run.status()
    if status.status in FINISHED | {"failed"}:
        raise RunError(
            f"the run has {status.status}: there is nothing to pause", where=str(run.folder.root)
        )
    if status.status == "paused":
        return _reply(run, as_json)
    _refuse_unbegun(run)
    return _stop(run, "pause", timeout, as_json)


def cancel(name: RunName, timeout: Patience = PATIENCE_SECONDS, as_json: Json = False) -> Reply:
    """End a run for good; what it has written stays, its checkpoints too.

    \b
    Example:
      rft runs cancel capitals-1
    """
    run = _open_whole(name)
    status = run.status()
    if status.status in FINISHED:
        raise RunError(f"the run has already {status.status}", where=str(run.folder.root))
    if status.status not in ENDED:
        _refuse_unbegun(run)
        return _stop(run, "cancel", timeout, as_json)
    with RunWriter(run.folder.root, ()) as writer:
        writer.status("cancelled", "cancelled by rft runs cancel")
    return _reply(run, as_json)


def resume(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN[@STEP]", help="A run; with --fork perhaps one of its states."),
    ],
    overrides: Overrides = None,
    job: Annotated[
        Path | None,
        typer.Option(metavar="JOB.yaml", help="The job to go on with; by default the run's own."),
    ] = None,
    fork: Annotated[
        bool, typer.Option("--fork", help="Go on in a copy of the run; the job may then differ.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Processes to train with; by default as many as before."
        ),
    ] = None,
    as_json: Json = False,
) -> Reply | int:
    """Go on with a run where it stopped, whatever stopped it.

    \b
    Example:
      rft runs resume capitals-1
      rft runs resume capitals-1 engine.budget.hours=null
      rft runs resume capitals-1 engine.training.learning_rate=1e-4 --fork
    """
    run = open_run(name, RUNS_FOLDER)
    if _names_a_step(name) and (run.step is None or not fork):
        raise RunError(
            "a run goes on from its newest state",
            where=name,
            remedy="leave the step out, or add --fork to go on from that step in a copy",
        )
    if not fork:
        refuse_held(run.folder.lock)
    document = job or run.folder.resolved_job
    if not document.is_file():
        raise RunError(
            "there is no job document", where=str(document), remedy="name one with --job"
        )
    begun = read_document(run.folder.environment).get("world_size")
    size = processes or (begun if isinstance(begun, int) else 1)
    if fork:
        return _resume_copy(run, document, tuple(overrides or ()), size, as_json)
    order = Order(document, tuple(overrides or ()), run.folder.root, resume=True)
    return run_job(order, size, as_json)


def _resume_copy(
    run: Run, document: Path, overrides: tuple[str, ...], processes: int, as_json: bool
) -> Reply | int:
    """Go on in a copy, of which nothing stays when it is refused."""
    copy = fork_run(run.folder, run.step)
    try:
        order = Order(document, overrides, copy.root, resume=True)
        return run_job(order, processes, as_json)
    except UserError as error:
        # the copy is gone by the time this is read
        there, here = str(copy.root), str(run.folder.root)
        problems = [replace(p, where=p.where.replace(there, here)) for p in error.problems]
        raise type(error)(problems) from None
    finally:
        if was_never_taken_up(copy):
            shutil.rmtree(copy.root, ignore_errors=True)


def _stop(run: Run, action: Action, timeout: float, as_json: bool) -> Reply:
    """Ask the run's process, and wait for what comes of it."""
    ask(run.folder, action, f"rft runs {action}")
    give_up_at = time.monotonic() + timeout
    while run.status().status not in ENDED or is_held(run.folder.lock):
        if time.monotonic() >= give_up_at:
            raise MachineError(
                f"the run has not stopped within {timeout:g} seconds; it is asked to, and may still",
                where=str(run.folder.root),
                remedy=_look(run),
            )
        time.sleep(POLL_SECONDS)
    return _reply(run, as_json)


def _look(run: Run) -> str:
    """What to do about a run that does not answer."""
    host = read_document(run.folder.state).get("host")
    if host != socket.gethostname() and not is_held(run.folder.lock):
        return (
            f"it was begun on {host}, and no process holds it here: if that machine is gone, "
            f"rft runs resume {shown_name(run)} goes on with it here"
        )
    return f"look at it: rft runs show {shown_name(run)}"


def _names_a_step(name: str) -> bool:
    return split_reference(name)[0] != name


def _open_whole(name: str) -> Run:
    """The run of that name; raises RunError for one with @STEP."""
    if _names_a_step(name):
        raise RunError("a run is stopped as a whole", where=name, remedy="leave the step out")
    return open_run(name, RUNS_FOLDER)


def _refuse_unbegun(run: Run) -> None:
    """Raise RunError for a folder in which a process ended before it wrote what the run is."""
    if not run.folder.state.is_file() and not is_held(run.folder.lock):
        raise RunError(
            "the run was never begun", where=str(run.folder.root), remedy="delete the folder"
        )


def _reply(run: Run, as_json: bool) -> Reply:
    status = run.status()
    document: dict[str, Any] = {
        "run": run.name,
        "status": status.status,
        "step": status.step,
        "message": status.message,
    }
    lines = [f"{run.folder.root}: {status}, step {status.step}"]
    if status.message:
        lines.append(f"  {status.message.splitlines()[0]}")
    if status.status == "paused":
        lines.append(f"  go on with: rft runs resume {shown_name(run)}")
    return Reply(document, lines, as_json)
