"""Says where a job stands still: in a grader, in a collective that another rank never joins, in a product."""

import faulthandler
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

PATIENCE_SECONDS = 900.0
"""Without any progress for so long a job counts as standing still: longer than a grade may take by default."""

POLL_SECONDS = 1.0

LEAVE_SECONDS = 0.5
"""How long the end of a job waits for a report that does not return."""

PACKAGE = Path(__file__).parent.parent

GRADING_THREAD = "grade"
"""Begins the names of the threads in which grades are computed."""

DOINGS = {
    "training/ranks.py": "waiting for the other ranks",
    "rollout/collect.py": "waiting for grades",
    "rollout/": "sampling",
    "training/update.py": "training",
    "training/passes.py": "training",
    "training/evaluation.py": "evaluating",
    "runs/": "writing",
}
"""By the file of a frame of the engine: what it is about. The innermost that is known tells."""


class HangWatch:
    """Looks from a thread of its own whether `progress` still gives new values; never raises.

    `report` is called from that thread, once per hang and once when it is over.
    """

    def __init__(
        self,
        progress: Callable[[], object],
        report: Callable[[str], None],
        folder: Path | None = None,
        rank: int = 0,
        patience_seconds: float = PATIENCE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ):
        self._progress = progress
        self._report = report
        self._stacks = folder / f"hang-rank-{rank}.txt" if folder else None
        self._patience_seconds = patience_seconds
        self._poll_seconds = poll_seconds
        self._is_over = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> "HangWatch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join(LEAVE_SECONDS)

    def _watch(self) -> None:
        seen, since, is_told = self._look(), time.monotonic(), False
        while not self._is_over.wait(self._poll_seconds):
            now = self._look()
            waited = time.monotonic() - since
            if now != seen:
                if is_told:
                    self._tell(f"going on after {waited:.0f} seconds without progress")
                seen, since, is_told = now, time.monotonic(), False
            elif waited >= self._patience_seconds and not is_told:
                is_told = True
                self._tell(f"no progress for {waited:.0f} seconds: {self._where()}")

    def _look(self) -> object:
        try:
            return self._progress()
        except RuntimeError:  # what it reads was changed while it was read: that is progress
            return object()

    def _tell(self, message: str) -> None:
        try:
            self._report(message)
        except Exception:  # a watch must not take down what it watches
            return

    def _where(self) -> str:
        """What the watched thread does, what the graders do, and where all stacks are."""
        frames = sys._current_frames()
        told = [_doing(_places(frames.get(self._watched)))]
        calls = Counter(
            place
            for thread in threading.enumerate()
            if thread.name.startswith(GRADING_THREAD)
            and (place := _grader_call(_places(frames.get(thread.ident or 0))))
        )
        if calls:
            told.append("grading " + ", ".join(f"{n} in {place}" for place, n in calls.items()))
        if self._stacks is not None:
            told.append(_dump(self._stacks))
        return "; ".join(told)


def _doing(places: Sequence[str]) -> str:
    if not places:
        return "outside rft"
    known = (words for place in places for part, words in DOINGS.items() if part in place)
    return f"{next(known, 'working')}, in {places[0]}"


def _grader_call(places: Sequence[str]) -> str | None:
    return next((place for place in places if place.startswith("rft/graders/")), None)


def _places(frame: FrameType | None) -> list[str]:
    """The frames in files of rft, the innermost first, such as `rft/graders/http.py:12 post`; without
    lambdas and comprehensions, which name nothing."""
    places = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        # by the folder of this package: a checkout named rft may hold a whole environment
        if path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
            inner = path.relative_to(PACKAGE).as_posix()
            places.append(f"rft/{inner}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return places


def _dump(path: Path) -> str:
    """Write the stacks of all threads; gives where they are, or why they are not."""
    try:
        with path.open("w", encoding="utf-8") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
    except OSError as error:
        return f"the stacks could not be written: {error}"
    return f"all stacks are in {path}"
