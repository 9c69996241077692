"""What can go wrong, as one tree; the command line turns each leaf into an exit code.

RftError
├── UserError            2   the person can mend it: document, data, grader, model name, run folder
│   ├── JobError             the job document
│   ├── DataError            a data file
│   ├── GraderError          a grader document, its template, formula or source
│   ├── ModelError           a model that cannot be found, read or trained
│   ├── RunError             a run folder or a checkpoint in it
│   └── NotYetError          a legal request that is not built yet
├── MachineError         3   the machine lacks something: memory, a package, a device
│   └── DiskError            the disk refuses: full, quota, broken, not permitted; a running job pauses (75)
├── JobFailedError       4   the job started and could not go on
└── PausedError         75   the job stopped on request and can be resumed
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: what is wrong (with the value seen), where, and what to do about it."""

    what: str
    where: str = ""
    """`file:line:column`, `file:line message 2` or a dotted field; empty when there is no place."""
    remedy: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.what}{place}" + (f" → {self.remedy}" if self.remedy else "")


class RftError(Exception):
    """A failure with one or more located problems; its text is what a person reads."""

    exit_code = 1

    def __init__(
        self, problems: str | Problem | Iterable[Problem], *, where: str = "", remedy: str = ""
    ):
        if isinstance(problems, str):
            problems = Problem(problems, where, remedy)
        self.problems: Sequence[Problem] = (
            (problems,) if isinstance(problems, Problem) else tuple(problems)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UserError(RftError):
    """The person can mend it."""

    exit_code = 2


class JobError(UserError):
    """The job document is not a legal one."""


class DataError(UserError):
    """A data file cannot be read or holds bad rows."""


class GraderError(UserError):
    """A grader document cannot be used as written."""


class ModelError(UserError):
    """A model cannot be found, read or trained."""


class RunError(UserError):
    """A run folder, or a checkpoint in it, is missing, in use or damaged."""


class NotYetError(UserError):
    """A legal request for something that is not built yet."""


class MachineError(RftError):
    """The machine lacks something the job needs."""

    exit_code = 3


class DiskError(MachineError):
    """The disk is full, broken or may not be written; a job that runs pauses over it."""


class JobFailedError(RftError):
    """The job started and could not go on."""

    exit_code = 4


class PausedError(RftError):
    """The job stopped on request; `rft train --resume` goes on from here."""

    exit_code = 75
