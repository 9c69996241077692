"""How a command that fails says so: a line per problem, an exit code, never a traceback."""

import errno
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import typer

from rft.cli.output import Screen, json_text
from rft.errors import JobFailedError, MachineError, PausedError, Problem, RftError, UserError

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
INTERRUPTED = 130
USAGE = 2
GRACE_SECONDS = 3.0
"""How long another rank stays after a failure: the launcher ends all as soon as one has gone."""


class Crash(Exception):
    """An unexpected exception (its cause) while a run was being written."""

    def __init__(self, run_folder: Path | None):
        super().__init__()
        self.run_folder = run_folder


def report_failure(error: Exception, as_json: bool, command: str) -> int:
    """Write what went wrong to stderr, with `as_json` to stdout as well; the exit code."""
    if isinstance(error, typer.TyperException):
        problem = Problem(str(error.format_message()), remedy=f"see {_usage(error, command)}")
        return _write("UsageError", [problem], USAGE, as_json)
    known = _known(error)
    problems = list(known.problems)
    if isinstance(error, JobFailedError) and _is_unexpected(error.__cause__):
        folder = Path(problems[0].where) if problems[0].where else None
        place = _write_traceback(error, folder)
        problems.append(Problem("the traceback is kept", where=place))
    return _write(type(known).__name__, problems, known.exit_code, as_json)


def report_interrupt(as_json: bool) -> int:
    """Say that the person stopped the command; the exit code."""
    return _write("Interrupted", [Problem("interrupted")], INTERRUPTED, as_json)


def other_rank() -> int:
    """This process's rank when a launcher started it as one of several; 0 otherwise."""
    rank = os.environ.get("RANK", "0")
    size = os.environ.get("WORLD_SIZE", "1")
    return int(rank) if rank.isdigit() and size.isdigit() and int(size) > 1 else 0


def _is_unexpected(cause: BaseException | None) -> bool:
    return cause is not None and not isinstance(cause, RftError)


def _known(error: Exception) -> RftError:
    """The failure as one of the tree's."""
    if isinstance(error, RftError):
        return error
    folder = error.run_folder if isinstance(error, Crash) else None
    cause = error.__cause__ if isinstance(error, Crash) and error.__cause__ else error
    if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        place = str(cause.filename or "")
        return MachineError(
            cause.strerror or str(cause), where=place, remedy="check space and permissions"
        )
    if isinstance(cause, ModuleNotFoundError) and not (cause.name or "").startswith("rft"):
        name = (cause.name or "?").partition(".")[0]
        return MachineError(
            f"the package {name} is missing", remedy=f"install it: pip install {name}"
        )
    return JobFailedError(
        f"unexpected {type(cause).__name__}: {_first_line(cause)}",
        remedy=f"the traceback is in {_write_traceback(cause, folder)}; please report it",
    )


def _write(kind: str, problems: list[Problem], code: int, as_json: bool) -> int:
    rank = other_rank()
    is_said_by_first_rank = rank > 0 and code in (UserError.exit_code, PausedError.exit_code)
    if not is_said_by_first_rank:
        screen = Screen(sys.stderr)
        prefix = f"[rank {rank}] error" if rank else "error"
        for problem in problems:
            screen.line(f"{prefix}: {problem}", style="red")
    if as_json and rank == 0:
        Screen(sys.stdout).raw(json_text(_document(kind, problems)) + "\n")
    if rank > 0:
        time.sleep(GRACE_SECONDS)
    return code


def _document(kind: str, problems: list[Problem]) -> dict[str, Any]:
    entries = [
        {"what": problem.what, "where": problem.where, "remedy": problem.remedy}
        for problem in problems
    ]
    message = "\n".join(str(problem) for problem in problems)
    return {"error": {"message": message, "type": kind, "problems": entries}}


def _usage(error: typer.TyperException, command: str) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else command} --help"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _write_traceback(error: BaseException, folder: Path | None) -> str:
    """Keep the traceback in the run folder, or in a temporary file; where it is."""
    text = "".join(traceback.format_exception(error))
    name = f"crash-{os.getpid()}.txt"
    if folder is not None and folder.is_dir():
        try:
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return str(folder / name)
        except OSError:
            pass
    try:
        descriptor, path = tempfile.mkstemp(prefix="rft-crash-", suffix=".txt")
    except OSError:
        return "no file, for none could be written"
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
    return path
