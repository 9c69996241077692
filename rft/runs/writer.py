"""The one writer of a run: events, metrics, results, samples, evaluations, state."""

import csv
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from rft.errors import RunError
from rft.runs.appended import AppendedFile
from rft.runs.documents import finite, json_bytes, read_document, read_lines, replace_file
from rft.runs.folders import disk_error, sweep
from rft.runs.layout import RunFolder, steps_in
from rft.runs.lock import RunLock
from rft.runs.results import csv_line, results_columns
from rft.runs.tables import EVALUATION_SCHEMA, SAMPLES_SCHEMA, write_table

Level = Literal["info", "warn", "error"]
Status = Literal["validating_files", "running", "paused", "succeeded", "failed", "cancelled"]

MAX_SAMPLES_FILES = 200
MAX_EVALUATION_FILES = 100


class RunWriter:
    """Writes a run folder and holds its lock for as long as it is open.

    Every line is on its way to the disk when a call returns, and durable after `status` and
    `positions`. Raises RunError when another process writes to the folder, and MachineError when
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.folder.lock)
            try:
                self._open()
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise disk_error(error, folder) from error

    def _open(self) -> None:
        folder = self.folder
        sweep(folder.root)
        for inner in (folder.samples, folder.evaluations, folder.checkpoints, folder.states):
            inner.mkdir(exist_ok=True)
            sweep(inner)
        self._events = AppendedFile(folder.events)
        self._metrics = AppendedFile(folder.metrics)
        self._results = AppendedFile(folder.results)
        self._begin_results()
        self._num_events = sum(1 for _ in read_lines(folder.events))
        self._state = read_document(folder.state)

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
        """Append an event in the product's shape."""
        self._num_events += 1
        self._events.append(
            _json_line(
                {
                    "object": "fine_tuning.job.event",
                    "id": f"ftevent-{self._num_events}",
                    "created_at": int(self._clock()),
                    "level": level,
                    "message": message,
                    "type": type,
                    "data": data,
                }
            )
        )

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
            self.folder.samples_file(old).unlink(missing_ok=True)

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
            self.folder.evaluation_file(old).unlink(missing_ok=True)

    def status(
        self,
        status: Status,
        *,
        step: int | None = None,
        total_steps: int | None = None,
        best: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        message: str | None = None,
    ) -> None:
        """Replace state.json and make all lines so far durable.

        Step, total steps and best stay as they were where None is given; error and message do not.
        """
        before = self._state
        self._state = {
            "status": status,
            "step": before.get("step", 0) if step is None else step,
            "total_steps": before.get("total_steps") if total_steps is None else total_steps,
            "created_at": before.get("created_at", int(self._clock())),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "error": finite(error),
            "best": before.get("best") if best is None else finite(best),
            "message": message,
        }
        self._sync()
        self.document("state.json", self._state)

    def document(self, name: str, content: Mapping[str, Any] | str) -> None:
        """Replace a file of the run at once: an object as JSON, a text as it is."""
        path = self.folder.root / name
        if isinstance(content, str):
            data = content.encode("utf-8", "backslashreplace")
        else:
            data = json_bytes(content, indent=1) + b"\n"
        try:
            replace_file(path, data)
        except OSError as error:
            raise disk_error(error, path) from error

    def positions(self) -> dict[str, int]:
        """The lengths in bytes of the three appended files, all of it durable."""
        self._sync()
        return {
            "events": self._events.size,
            "metrics": self._metrics.size,
            "results": self._results.size,
        }

    def rewind(self, positions: Mapping[str, int]) -> None:
        """Forget what was written after `positions` were taken; an empty mapping forgets all.

        Samples and evaluations go when their step is later than the last one left in the metrics.
        """
        files = {"events": self._events, "metrics": self._metrics, "results": self._results}
        short = [name for name, file in files.items() if file.size < positions.get(name, 0)]
        for name, file in files.items():
            file.cut(positions.get(name, 0))
        self._begin_results()
        self._check_results()
        self._num_events = sum(1 for _ in read_lines(self.folder.events))
        last_step = max((int(row["step"]) for row in read_lines(self.folder.metrics)), default=-1)
        for step in steps_in(self.folder.samples, ".parquet"):
            if step > last_step:
                self.folder.samples_file(step).unlink(missing_ok=True)
        for step in steps_in(self.folder.evaluations, ".parquet"):
            if step > last_step:
                self.folder.evaluation_file(step).unlink(missing_ok=True)
        if short:
            self.event("warn", f"lines were lost from {', '.join(short)} since the state was saved")

    def _begin_results(self) -> None:
        if self._results.size == 0:
            self._results.append(csv_line(self._columns))

    def _check_results(self) -> None:
        with self.folder.results.open(encoding="utf-8", newline="") as stream:
            found = next(csv.reader(stream))
        if found != list(self._columns):
            raise RunError(
                "results.csv was begun with other graders than the job has now",
                where=str(self.folder.results),
                remedy="resume with the job's own graders, or start another run",
            )

    def _table(self, path: Path, schema: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            write_table(path, schema, [{**row, "step": step} for row in rows])
        except OSError as error:
            raise disk_error(error, path) from error

    def _sync(self) -> None:
        for file in (self._events, self._metrics, self._results):
            file.sync()


def _json_line(value: Mapping[str, Any]) -> bytes:
    return json_bytes(value) + b"\n"
