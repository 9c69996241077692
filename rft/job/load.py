"""A job file and overrides → a Job, or an error with everything that is wrong with it."""

import os
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rft.errors import JobError, NotYetError, Problem
from rft.graders import problems_of
from rft.job.consistency import contradictions
from rft.job.document import Job
from rft.job.faults import faults_of
from rft.job.marked import MAX_CHARACTERS, read_marked
from rft.job.mend import mended
from rft.job.not_yet import GRADER, moot_path, not_yet_faults
from rft.job.overrides import apply_overrides
from rft.job.paths import with_absolute_paths
from rft.job.places import Fault, KeyPath, Marked, Place, dotted, one_line, place_after
from rft.job.response_format import RESPONSE_FORMAT, nested_format

MAX_BYTES = 4 * MAX_CHARACTERS
MAX_PROBLEMS = 20
"""Faults told at once; the rest is counted."""


@dataclass(frozen=True)
class Reading:
    """A job document as far as it can be read."""

    job: Job | None
    """The job, with harmless stand-ins for what is at fault; None where little is left of it."""
    error: JobError | NotYetError | None
    """All that is wrong with the document."""
    unread: tuple[KeyPath, ...]
    """The paths at which something stands in."""

    def says(self, *path: str) -> bool:
        """Whether what stands at a path, and all of it, is what the person wrote."""
        return not any(
            unread[: len(path)] == path or path[: len(unread)] == unread for unread in self.unread
        )


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job a file describes; relative paths in it are taken from its folder and made absolute.

    Raises JobError with every fault and its `file:line:column`, NotYetError when the only faults are
    legal requests for something unbuilt.
    """
    path = Path(path)
    return parse_job(_read(path), name=str(path), folder=path.parent, overrides=overrides)


def parse_job(text: str, *, name: str, folder: Path, overrides: Sequence[str] = ()) -> Job:
    """The job a YAML or JSON text describes, as `load_job` gives it, and raising like it.

    `name` stands in errors; paths are relative to `folder`.
    """
    reading = _parse(text, name, folder, overrides)
    if reading.error is not None:
        raise reading.error
    assert reading.job is not None
    return reading.job


def read_job(path: Path, overrides: Sequence[str] = ()) -> Reading:
    """The job a file describes as far as it can be read; raises JobError where it is no document."""
    path = Path(path)
    return _parse(_read(path), str(path), path.parent, overrides)


def _parse(text: str, name: str, folder: Path, overrides: Sequence[str]) -> Reading:
    marked = read_marked(text, name)
    if () in {fault.path for fault in marked.faults}:
        raise _error(marked.faults, marked, name)
    if not isinstance(marked.value, dict):
        no_mapping = Fault((), "the document is not a mapping", "write `key: value` lines")
        raise _error([no_mapping], marked, name)
    marked = nested_format(apply_overrides(marked, overrides), RESPONSE_FORMAT)
    told = [*marked.faults, *not_yet_faults(marked.value)]
    job, found, unread = _validate(marked.value)
    if job is not None:
        job = with_absolute_paths(job, folder.absolute())
        found += _inner_faults(job)
    moot = {moot_path(fault) for fault in told if fault.path}
    faults = told + [fault for fault in found if not _inside(fault.path, moot)]
    return Reading(job, _error(faults, marked, name) if faults else None, (*unread, *moot))


def _validate(document: dict[str, Any]) -> tuple[Job | None, list[Fault], list[KeyPath]]:
    """The job, faults of its form, and the paths at which something had to stand in for them."""
    try:
        return Job.model_validate(document), [], []
    except ValidationError as error:
        faults = faults_of(error, document)
    unread: list[KeyPath] = []
    left = faults
    for whole_graders in (False, True, True):
        document, paths = mended(document, left, whole_graders=whole_graders)
        unread += paths
        try:
            return Job.model_validate(document), faults, unread
        except ValidationError as error:
            left = faults_of(error, document)
    return None, faults, unread


def _read(path: Path) -> str:
    where = one_line(str(path))
    if os.path.isdir(path):
        what, remedy = "a folder stands where a job file is wanted", "name the file in it"
        raise JobError(what, where=where, remedy=remedy)
    if os.path.exists(path) and not os.path.isfile(path):
        what, remedy = "the job file is not a regular file", "save what it gives as a file"
        raise JobError(what, where=where, remedy=remedy)  # nobody may ever write to a pipe
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise JobError("no such job file", where=where, remedy="check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"cannot read the job file: {reason}"
        raise JobError(what, where=where, remedy="check path and permissions") from None
    if len(data) > MAX_BYTES:
        what = f"the job file has more than {MAX_BYTES} bytes"
        raise JobError(what, where=where, remedy="name the job document, not the data")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
        what = f"the job file is not UTF-8: byte 0x{error.object[at]:02x}"
        place = place_after(error.object[:at].decode(), where)
        raise JobError(what, where=str(place), remedy="save the file as UTF-8") from None


def _inner_faults(job: Job) -> list[Fault]:
    """What is wrong with a document that is valid in form."""
    faults = contradictions(job)
    for problem in problems_of(job.grader, dotted(GRADER), job.grading_settings):
        what = f"{problem.where}: {problem.what}"
        faults.append(Fault(_key_path(problem.where), what, problem.remedy))
    return faults


def _key_path(where: str) -> KeyPath:
    """The path that a dotted place spells: `a.input[0].content`."""
    steps = re.findall(r"\[([0-9]{1,9})\]|([^.\[]+|\[)", where)
    return tuple(int(index) if index else key for index, key in steps)


def _inside(path: KeyPath, sections: Set[KeyPath]) -> bool:
    return any(path[:length] in sections for length in range(len(path) + 1))


def _error(faults: Sequence[Fault], marked: Marked, name: str) -> JobError | NotYetError:
    once = {(_place(fault, marked), fault.what): fault for fault in faults}  # aliases repeat faults
    placed = [(place, fault) for (place, _), fault in once.items()]
    placed.sort(key=lambda pair: (pair[0] is None, pair[0] or Place(False, 0, 0, "")))
    problems = [
        Problem(one_line(fault.what), str(place or one_line(name)), one_line(fault.remedy))
        for place, fault in placed[:MAX_PROBLEMS]
    ]
    if len(placed) > MAX_PROBLEMS:
        problems.append(Problem(f"and {len(placed) - MAX_PROBLEMS} more", one_line(name)))
    return (NotYetError if all(fault.not_yet for fault in faults) else JobError)(problems)


def _place(fault: Fault, marked: Marked) -> Place | None:
    """Where a fault is shown: at the key or the value, or at the section that lacks it."""
    if fault.place is not None:
        return fault.place
    if fault.at_key and fault.path in marked.keys:
        return marked.keys[fault.path]
    if fault.path in marked.values:
        return marked.values[fault.path]
    return marked.place_of_key(fault.path[:-1]) or marked.place_of_value(())
