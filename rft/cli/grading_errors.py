"""`rft runs errors`: which graders failed, how often, on what, and why."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rft.cli.output import Json, Reply, stdout_screen
from rft.cli.summary import last_message
from rft.cli.text import clean, decimal, indented, shorten, table
from rft.runs.failures import (
    SPLITS,
    Cause,
    FailingSample,
    Failure,
    GradingErrors,
    Place,
    Split,
    failing_samples,
    grading_errors,
    last_lines,
)
from rft.runs.layout import RUNS_FOLDER
from rft.runs.reader import open_run

MAX_PLACES = 5
"""Places that are named of the failures beyond the examples."""


def errors(
    name: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="A run, or one of its steps.")],
    kind: Annotated[
        str | None, typer.Option(metavar="FLAG", help="Only this kind of error.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Only this step and the evaluation after it.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="How many causes to print; --all prints all there is.")
    ] = 8,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Every failing sample in full, one by one: row, completion, tracebacks; also as JSON.",
        ),
    ] = False,
    as_json: Json = False,
) -> Reply:
    """Show what graders failed on: counts and rates, then cases with their tracebacks.

    Failures that differ at most by the values in their messages are one cause with a count and three
    cases; --all shows every failing sample instead.

    \b
    Example:
      rft runs errors capitals-1
      rft runs errors capitals-1 --step 10 --kind python_grader_runtime_error
      rft runs errors capitals-1 --step 10 --all
    """
    run = open_run(name, RUNS_FOLDER)
    step = run.step if step is None else step
    found = grading_errors(run, step, kind)
    width = stdout_screen(as_json).width
    lines = [_headline(found, kind), *_summary_lines(found)]
    if every:
        samples = failing_samples(run, step, kind)
        for sample in samples:
            lines += ["", *_sample_lines(sample, width)]
        return Reply(_page([_sample_document(sample) for sample in samples], found), lines, as_json)
    shown = found.causes[:limit]
    for cause in shown:
        lines += ["", *_cause_lines(cause, width)]
    if num_left := len(found.causes) - len(shown):
        lines += [
            "",
            f"{num_left} more; --limit, --kind and --step choose what is shown, --all shows all",
        ]
    page = _page([_cause_document(cause) for cause in shown], found, len(found.causes) > limit)
    return Reply(page, lines, as_json)


def _page(
    data: list[dict[str, Any]], found: GradingErrors, has_more: bool = False
) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "summary": _summary(found),
        "num_completions": dict(found.num_completions),
    }


def _headline(found: GradingErrors, kind: str | None) -> str:
    failing = {place for cause in found.causes for place in cause.places}
    parts = [
        f"{sum(place.split == split for place in failing)} of {count:,} {word} completions"
        for split, word in zip(SPLITS, ("training", "validation"), strict=True)
        if (count := found.num_completions[split])
    ]
    if not parts:
        return "the run keeps no completions yet"
    return f"{kind or 'grading errors'} in {' and '.join(parts)}"


def _summary(found: GradingErrors) -> list[dict[str, Any]]:
    return [
        {
            "grader": grader,
            "kind": kind,
            **{f"{split}_count": counts[split] for split in SPLITS},
            **{f"{split}_mean": _rate(counts, split, found) for split in SPLITS},
        }
        for (grader, kind), counts in found.counts().items()
    ]


def _rate(counts: Mapping[Split, int], split: Split, found: GradingErrors) -> float | None:
    """Per completion; None where there are none."""
    total = found.num_completions[split]
    return counts[split] / total if total else None


def _summary_lines(found: GradingErrors) -> list[str]:
    rows = [
        (
            entry["grader"],
            entry["kind"],
            str(entry["train_count"]),
            _percentage(entry["train_mean"]),
            str(entry["valid_count"]),
            _percentage(entry["valid_mean"]),
        )
        for entry in _summary(found)
    ]
    header = ("grader", "kind", "train", "rate", "valid", "rate")
    return ["", *table(header, rows)] if rows else []


def _percentage(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1%}"


def _cause_lines(cause: Cause, width: int) -> list[str]:
    count = len(cause.places)
    times = "once" if count == 1 else f"{count:,} times"
    lines = [f"{cause.grader}: {cause.kind}, {times}"]
    first, *others = cause.examples
    lines += _failure_lines(first, first.details, width)
    seen = last_lines(first.details, 1)
    for failure in others:
        message = last_lines(failure.details, 1)
        lines += _failure_lines(failure, "" if message == seen else message, width)
    rest = cause.places[len(cause.examples) :]
    if rest:
        named = "; ".join(map(_place_text, rest[:MAX_PLACES]))
        lines.append(f"  {len(rest):,} more: {named}" + ("; …" if len(rest) > MAX_PLACES else ""))
    return lines


def _failure_lines(failure: Failure, details: str, width: int) -> list[str]:
    completion = failure.completion
    return [
        f"  {_place_text(failure.place)}, {_earned(completion)}",
        f"    prompt  {shorten(last_message(completion), width - 12)}",
        *indented(completion["output_text"] or "", "    │ ", width, 12),
        *_details_lines(details),
    ]


def _sample_lines(sample: FailingSample, width: int) -> list[str]:
    """The sample with nothing left out."""
    completion = sample.completion
    text = completion["output_text"] or ""
    lines = [
        f"{_place_text(sample.place)}, {_earned(completion)}",
        f"    item    {json.dumps(completion['item'], ensure_ascii=False)}",
        f"    prompt  {clean(last_message(completion))}".replace("\n", "\n            "),
        *(f"    │ {line}" for line in clean(text).split("\n")),
    ]
    for failure in sample.failures:
        lines += [f"  {failure.grader}: {failure.kind}", *_details_lines(failure.details)]
    return [part for line in lines for part in line.split("\n")]


def _details_lines(details: str) -> list[str]:
    """Indented; lines of code keep their own indentation."""
    return [f"    {line}" for line in clean(details).rstrip().split("\n") if line]


def _earned(completion: Mapping[str, Any]) -> str:
    reward = completion["reward"]
    return "ungraded" if reward is None else f"reward {decimal(reward)}"


def _place_text(place: Place) -> str:
    return f"step {place.step} {place.split} row {place.row} sample {place.sample}"


def _sample_document(sample: FailingSample) -> dict[str, Any]:
    """The completion as it is kept; `errors` has the details by grader and kind."""
    return {**sample.completion, "split": sample.place.split}


def _cause_document(cause: Cause) -> dict[str, Any]:
    return {
        "grader": cause.grader,
        "kind": cause.kind,
        "count": len(cause.places),
        "places": [place._asdict() for place in cause.places],
        "examples": [
            {**failure.completion, "split": failure.place.split, "details": failure.details}
            for failure in cause.examples
        ],
    }
