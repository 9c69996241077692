"""The one writer of a run: events, metrics, results, samples, evaluations, state."""

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from rft.errors import DiskError
from rft.runs import disk
from rft.runs.appended import AppendedFile
from rft.runs.documents import finite, json_bytes, parsed_lines, read_document, read_lines
from rft.runs.layout import RunFolder, steps_in
from rft.runs.lock import RunLock
from rft.runs.results import csv_line, results_columns
from rft.runs.tables import EVALUATION_SCHEMA, SAMPLES_SCHEMA, write_table

Level = Literal["info", "warn", "error"]
Status = Literal[
    "validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"
]

BEGUN = frozenset({"validating_files", "queued", "running", "pausing"})
"""Statuses of a run that a process is at work on, or was when it died."""

FOLLOWING: Mapping[str | None, frozenset[str]] = {
    None: frozenset({"validating_files"}),
    "validating_files": frozenset({"queued", "paused", "failed", "cancelled"}),
    "queued": frozenset({"running", "pausing", "paused", "failed", "cancelled"}),
    "running": frozenset({"running", "pausing", "paused", "succeeded", "failed", "cancelled"}),
    "pausing": frozenset({"paused", "failed", "cancelled"}),
    "paused": frozenset({"validating_files", "cancelled"}),
    "failed": frozenset({"validating_files", "cancelled"}),
    "succeeded": frozenset(),
    "cancelled": frozenset(),
}
"""What may come after each status; a run whose process died may begin again too."""

RESERVE_BYTES = 64 * 1024
"""Held on disk so that a run can still say that the disk is full."""

MAX_SAMPLES_FILES = 200
MAX_EVALUATION_FILES = 100


class RunWriter:
    """Writes a run folder and holds its lock for as long as it is open.

    Every line is on its way to the disk when a call returns, and durable after `status`. Raises
    RunError when another process writes to the folder, and DiskError when
    the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        grader_parts: Sequence[tuple[str, str]],
        clock: Callable[[], float] = time.time,
    ):
        self.folder = RunFolder(folder)
        self._clock = clock
        self._columns = results_columns(grader_parts)
        self._telling = threading.Lock()
        self._owed = b""
        """Events that are told by state.json only, since the disk refused their lines."""
        disk.make_folder(folder)
        with disk.told_as_disk_error(folder):
            self._lock = RunLock(self.folder.lock)
            try:
                self._open()
            except BaseException:
                self._lock.close()
                raise

    def _open(self) -> None:
        folder = self.folder
        disk.sweep(folder.root)
        disk.remove_file(folder.request)
        for inner in (folder.samples, folder.evaluations, folder.checkpoints, folder.states):
            inner.mkdir(exist_ok=True)
            disk.sweep(inner)
        if not folder.reserve.is_file() or folder.reserve.stat().st_size < RESERVE_BYTES:
            # no zeros: some file systems would hold nothing for them
            disk.write(folder.reserve, random.Random(0).randbytes(RESERVE_BYTES))
        self._events = AppendedFile(folder.events)
        self._metrics = AppendedFile(folder.metrics)
        self._results = AppendedFile(folder.results)
        self._begin_results()
        self._num_events = _last_number(read_lines(folder.events))
        self._state = read_document(folder.state)
        self._add_event_of_state()

    def _add_event_of_state(self) -> None:
        """state.json and the event of its status are one write; the list of events follows it."""
        event = self._state.get("event")
        if isinstance(event, dict) and _number(event) > self._num_events:
            self._events.append(_json_line(event))
            self._num_events = _number(event)

    @property
    def state(self) -> Mapping[str, Any]:
        """What state.json holds."""
        return self._state

    def close(self) -> None:
        """Free the run for another writer; a second call does nothing."""
        for file in (self._events, self._metrics, self._results):
            file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def event(
        self,
        level: Level,
        message: str,
        *,
        type: Literal["message", "metrics"] = "message",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an event in the product's shape; also from another thread."""
        with self._telling:
            self._tell(_json_line(self._next_event(level, message, type, data)))

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append the flat metrics of a step (it must hold `step`); a non-finite number is null."""
        if "step" not in row:
            raise ValueError("a line of metrics needs its step")
        self._metrics.append(_json_line(row))

    def results(self, row: Mapping[str, Any]) -> None:
        """Append a line of results.csv, by column; blank where the row has no value.

        Raises ValueError for a column that is not in the header.
        """
        unknown = sorted(set(row) - set(self._columns))
        if unknown:
            raise ValueError(f"{unknown} are not columns of results.csv")
        self._results.append(csv_line([row.get(column) for column in self._columns]))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rollouts of a step (columns of SAMPLES_SCHEMA); the newest 200 steps stay."""
        path = self.folder.samples_file(step)
        self._table(path, SAMPLES_SCHEMA, step, rows)
        for old in steps_in(self.folder.samples, ".parquet")[:-MAX_SAMPLES_FILES]:
            disk.remove_file(self.folder.samples_file(old))

    def evaluation(
        self, step: int, rows: Sequence[Mapping[str, Any]], keep: Collection[int] = ()
    ) -> None:
        """Keep the completions of an evaluation (columns of EVALUATION_SCHEMA).

        Of more than 100 the oldest go first, but never step 0, this one and those in `keep`.
        """
        path = self.folder.evaluation_file(step)
        self._table(path, EVALUATION_SCHEMA, step, rows)
        steps = steps_in(self.folder.evaluations, ".parquet")
        droppable = [old for old in steps if old not in {0, step, *keep}]
        for old in droppable[: max(0, len(steps) - MAX_EVALUATION_FILES)]:
            disk.remove_file(self.folder.evaluation_file(old))

    def status(
        self,
        status: Status,
        message: str | None = None,
        level: Level = "info",
        *,
        step: int | None = None,
        total_steps: int | None = None,
        best: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace state.json and make all lines so far durable; a message is also an event, and both are
        durable in the same write.

        Step, total steps and best stay as they were where None is given; error does not, and message
        only while the status stays. Raises ValueError for a status that cannot follow the present one.
        """
        before = self._state
        self._refuse_transition(before.get("status"), status)
        told = message or (before.get("message") if status == before.get("status") else None)
        with self._telling:
            event = None
            if message:
                event = self._next_event(level, message, "message", {"status": status})
            self._state = {
                "status": status,
                "step": before.get("step", 0) if step is None else step,
                "total_steps": before.get("total_steps") if total_steps is None else total_steps,
                "created_at": before.get("created_at", int(self._clock())),
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "error": finite(error),
                "best": before.get("best") if best is None else finite(best),
                "message": told,
                "event": event,
            }
            try:
                self._sync()
                self.document("state.json", self._state)
            except DiskError:
                self._state = before
                raise
            if event:
                # state.json has it: a line that the disk refuses may follow later
                with contextlib.suppress(DiskError):
                    self._tell(_json_line(event))

    def free_reserve(self) -> None:
        """Give back the space held for the last words of a run on a full disk, if the disk lets it."""
        with contextlib.suppress(DiskError):
            disk.remove_file(self.folder.reserve)

    def _tell(self, line: bytes) -> None:
        """Append an event, and before it those that the disk refused."""
        self._owed += line
        self._events.append(self._owed)
        self._owed = b""

    def _refuse_transition(self, before: str | None, after: str) -> None:
        is_again = after == "validating_files" and (before in BEGUN or before is None)
        if not is_again and after not in FOLLOWING.get(before, {"validating_files"}):
            raise ValueError(f"a run that is {before} cannot become {after}")

    def _next_event(
        self, level: Level, message: str, type: str, data: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        self._num_events += 1
        return {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{self._num_events}",
            "created_at": int(self._clock()),
            "level": level,
            "message": message,
            "type": type,
            "data": data,
        }

    def document(self, name: str, content: Mapping[str, Any] | str) -> None:
        """Replace a file of the run at once: an object as JSON, a text as it is."""
        path = self.folder.root / name
        if isinstance(content, str):
            data = content.encode("utf-8", "backslashreplace")
        else:
            data = json_bytes(content, indent=1) + b"\n"
        disk.replace(path, data)

    def positions(self) -> dict[str, int]:
        """The lengths in bytes of the three appended files; durable after the next `status`."""
        return {
            "events": self._events.size,
            "metrics": self._metrics.size,
            "results": self._results.size,
        }

    def rewind(
        self, positions: Mapping[str, int], step: int, *, keeps_results: bool = True
    ) -> None:
        """Forget what was written after `positions` were taken, at the end of `step`; an empty mapping and
        −1 forget all.

        Of the events those that tell of a change of status stay. `keeps_results`: False begins results.csv
        anew where its columns differ from now on; otherwise a header that differs was damaged.
        """
        files = {"events": self._events, "metrics": self._metrics, "results": self._results}
        short = [name for name, file in files.items() if file.size < positions.get(name, 0)]
        begin = positions.get("events", 0)
        self._events.cut(begin, kept=_changes_of_status(self._events.beyond(begin)))
        for file, name in ((self._metrics, "metrics"), (self._results, "results")):
            file.cut(positions.get(name, 0))
        self._begin_results()
        is_other = self._results.first_line() != csv_line(self._columns)
        if is_other and keeps_results:
            self._results.replace_first_line(csv_line(self._columns))
        elif is_other:
            self._results.cut(0)
            self._begin_results()
        self._num_events = _last_number(read_lines(self.folder.events))
        for later in steps_in(self.folder.samples, ".parquet"):
            if later > step:
                disk.remove_file(self.folder.samples_file(later))
        for later in steps_in(self.folder.evaluations, ".parquet"):
            if later > step:
                disk.remove_file(self.folder.evaluation_file(later))
        if short:
            self.event("warn", f"lines were lost from {', '.join(short)} since the state was saved")

    def _begin_results(self) -> None:
        if self._results.size == 0:
            self._results.append(csv_line(self._columns))

    def _table(self, path: Path, schema: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        write_table(path, schema, [{**row, "step": step} for row in rows])

    def _sync(self) -> None:
        for file in (self._events, self._metrics, self._results):
            file.sync()


def _json_line(value: Mapping[str, Any]) -> bytes:
    return json_bytes(value) + b"\n"


def _number(event: Mapping[str, Any]) -> int:
    """The number in an event's id; 0 for none."""
    digits = str(event.get("id", "")).removeprefix("ftevent-")
    return int(digits) if digits.isdecimal() else 0


def _last_number(events: Iterable[Mapping[str, Any]]) -> int:
    return max(map(_number, events), default=0)


def _changes_of_status(lines: bytes) -> bytes:
    """Those of the lines of events that tell of a change of status."""
    events = parsed_lines(lines.splitlines(keepends=True))
    return b"".join(_json_line(event) for event in events if "status" in (event.get("data") or {}))
