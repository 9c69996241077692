"""What went wrong in grading, from the samples and evaluations that a run keeps; like failures together."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rft.errors import RunError
from rft.runs.reader import Run, shown_steps

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")

NUM_EXAMPLES = 3
"""Failures of a kind that are kept whole; of the others only the place."""

OUTPUT = "\noutput:\n"
"""Stands between what went wrong and what the grader printed."""

VALUE = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|-?\d+(?:\.\d+)?")
"""What differs between the messages of one fault: texts in quotation marks and numbers."""


class Place(NamedTuple):
    """Where a completion stands."""

    step: int
    split: Split
    row: int
    sample: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An error flag that a grader raised over a completion."""

    place: Place
    grader: str
    """A part of a multi by its key, or the job's grader by its name."""
    kind: str
    details: str
    completion: Mapping[str, Any]
    """The completion by the columns of its parquet file."""


@dataclass(frozen=True, slots=True)
class FailingSample:
    """A completion over which at least one grader raised an error."""

    place: Place
    failures: tuple[Failure, ...]
    """All that were raised over it."""
    completion: Mapping[str, Any]
    """The completion by the columns of its parquet file."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures of one grader for one cause: they differ at most by the values in their messages."""

    grader: str
    kind: str
    places: tuple[Place, ...]
    """Of all of them, in order."""
    examples: tuple[Failure, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class GradingErrors:
    """The failures among the completions that a run keeps."""

    num_completions: Mapping[Split, int]
    """Those that were looked at, failing or not."""
    causes: tuple[Cause, ...]
    """The most frequent first."""

    def counts(self) -> dict[tuple[str, str], Mapping[Split, int]]:
        """Failing completions by (grader, kind), the most frequent first."""
        places: dict[tuple[str, str], list[Place]] = {}
        for alike in self.causes:
            places.setdefault((alike.grader, alike.kind), []).extend(alike.places)
        return {
            key: {split: sum(place.split == split for place in found) for split in SPLITS}
            for key, found in sorted(places.items(), key=lambda entry: -len(entry[1]))
        }


def grading_errors(run: Run, step: int | None = None, kind: str | None = None) -> GradingErrors:
    """The grading errors of a run, of one of its steps or of one kind.

    Raises RunError when nothing of the step is kept or a file is damaged.
    """
    # pyarrow takes longer to load than all the rest of a command
    from rft.runs.tables import count_rows, read_failing

    num_completions: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    places: dict[tuple[str, str, str], list[Place]] = {}
    examples: dict[tuple[str, str, str], list[Failure]] = {}
    for path, split in kept_files(run, step):
        num_completions[split] += count_rows(path)
        failures = [f for row in read_failing(path) for f in failures_of(row, split)]
        for failure in failures:
            if kind not in (None, failure.kind):
                continue
            cause = (failure.grader, failure.kind, cause_of(failure.details))
            places.setdefault(cause, []).append(failure.place)
            if len(places[cause]) <= NUM_EXAMPLES:
                examples.setdefault(cause, []).append(failure)
    causes = [
        Cause(cause[0], cause[1], tuple(places[cause]), tuple(examples[cause]))
        for cause in sorted(places, key=lambda cause: -len(places[cause]))
    ]
    return GradingErrors(num_completions, tuple(causes))


def failing_samples(
    run: Run, step: int | None = None, kind: str | None = None
) -> list[FailingSample]:
    """Every kept sample with an error, or with one of a kind, of a run or of one of its steps, in order.

    Raises RunError when nothing of the step is kept or a file is damaged.
    """
    # pyarrow takes longer to load than all the rest of a command
    from rft.runs.tables import read_failing

    found = []
    for path, split in kept_files(run, step):
        for row in read_failing(path):
            failures = tuple(failures_of(row, split))
            if failures and (kind is None or kind in {failure.kind for failure in failures}):
                found.append(FailingSample(failures[0].place, failures, row))
    return found


def kept_files(run: Run, step: int | None) -> Iterator[tuple[Path, Split]]:
    """The files of samples and evaluations, step after step, or those of one step."""
    trained, evaluated = run.sample_steps(), run.evaluation_steps()
    steps = sorted({*trained, *evaluated})
    if step is not None and step not in steps:
        raise RunError(
            f"the run keeps neither samples nor an evaluation of step {step}",
            where=str(run.folder.root),
            remedy=f"take one of the steps {shown_steps(steps)}" if steps else "it has none yet",
        )
    for kept in steps if step is None else [step]:
        if kept in trained:
            yield run.folder.samples_file(kept), "train"
        if kept in evaluated:
            yield run.folder.evaluation_file(kept), "valid"


def failures_of(completion: Mapping[str, Any], split: Split) -> Iterator[Failure]:
    """A failure for each flag that any grader raised over a completion."""
    place = Place(completion["step"], split, completion["row"], completion["sample"])
    for grader, errors in completion["errors"].items():
        for kind, details in errors.items():
            yield Failure(place, grader, kind, details, completion)


def cause_of(details: str) -> str:
    """The details without what differs from sample to sample: values in messages, printed output.

    Of a traceback there stay the lines of code and the types of the exceptions.
    """
    kept = []
    is_after_code = True
    for line in without_output(details).splitlines():
        # in a traceback what speaks of code is indented, and the next line names the exception
        is_code = line.startswith(" ")
        if is_code:
            kept.append(line)
        elif is_after_code:
            kept.append(VALUE.sub("…", line.partition(": ")[0]))
        is_after_code = is_code
    return "\n".join(kept)


def last_lines(details: str, count: int) -> str:
    """The end of what went wrong: in a traceback the place in the code and the exception."""
    lines = [line for line in without_output(details).splitlines() if line.strip(" ~^")]
    return "\n".join(lines[-count:])


def without_output(details: str) -> str:
    return details.partition(OUTPUT)[0]
