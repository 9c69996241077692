"""Rows → Examples, with every bad row told at once."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rft.data.columns import as_text, check_templates, render
from rft.data.messages import check_messages
from rft.data.rows import RowError, kind
from rft.data.sources import read_rows, shown
from rft.data.tools import check_tools
from rft.errors import DataError, NotYetError, Problem
from rft.job import DataSettings
from rft.types import Example

MAX_PROBLEMS = 20
"""Bad rows told at once; the rest is counted."""
MAX_ROWS = {"training_file": 50_000, "validation_file": 1_000}
"""The hosted product's maxima; above them is a warning."""


def load_examples(
    source: str, settings: DataSettings, *, field: str, minimum: int
) -> list[Example]:
    """The examples of a source; `field` is the job's key for it, `minimum` its fewest rows.

    Raises DataError with all bad rows (the first 20, and a count), or NotYetError when all of them
    only ask for something unbuilt.
    """
    examples, error = readable_examples(source, settings, field=field, minimum=minimum)
    if error is not None:
        raise error
    return examples


def readable_examples(
    source: str, settings: DataSettings, *, field: str, minimum: int
) -> tuple[list[Example], DataError | NotYetError | None]:
    """The examples of the good rows, and the error that `load_examples` raises for the others.

    Raises DataError itself where there are no rows to read.
    """
    check_templates(settings)
    examples: list[Example] = []
    problems: list[Problem] = []
    num_bad = num_unbuilt = 0
    for index, row in enumerate(read_rows(source, field)):
        made = _example_or_error(index, row.value, settings)
        if isinstance(made, Example):
            examples.append(made)
            continue
        num_bad += 1
        num_unbuilt += made.not_yet
        if num_bad <= MAX_PROBLEMS:  # told at once, for the error would keep its row in memory
            problems.append(made.problem(row.place))
    name = shown(source)
    if num_bad > MAX_PROBLEMS:
        problems.append(Problem(f"and {num_bad - MAX_PROBLEMS} more bad rows", name))
    if problems:
        return examples, (NotYetError if num_unbuilt == num_bad else DataError)(problems)
    if len(examples) < minimum:
        what = f"{field} has {len(examples)} example(s), but must have at least {minimum}"
        return examples, DataError(what, where=name, remedy="add rows")
    return examples, None


def row_place(source: str, example: Example) -> str:
    """Where an example stands, as errors name it: `train.jsonl row 3`, blank lines not counted."""
    return f"{shown(source)} row {example.row + 1}"


def data_warnings(train: Sequence[Example], valid: Sequence[Example]) -> list[str]:
    """What is legal in the two files but likely a mistake."""
    warnings = []
    for name, examples in (("training_file", train), ("validation_file", valid)):
        if len(examples) > MAX_ROWS[name]:
            limit = f"the hosted product takes at most {MAX_ROWS[name]}"
            warnings.append(f"{name} has {len(examples)} rows; {limit}")
        if num_repeated := len(examples) - len({_conversation(example) for example in examples}):
            warnings.append(f"{name} repeats {num_repeated} prompt(s)")
    trained = {_conversation(example): example.row + 1 for example in train}
    shared = [example for example in valid if _conversation(example) in trained]
    if shared:
        rows = f"validation row {shared[0].row + 1} is training row"
        warnings.append(
            f"{len(shared)} validation prompt(s) are also trained on, so valid_reward_mean will "
            f"flatter the model; such as: {rows} {trained[_conversation(shared[0])]}"
        )
    return warnings


def _conversation(example: Example) -> str:
    return json.dumps([example.messages, example.tools], sort_keys=True)


def _example_or_error(index: int, row: Any, settings: DataSettings) -> Example | RowError:
    if isinstance(row, RowError):
        return row
    try:
        return _example(index, row, settings)
    except RowError as error:
        return error


def _example(index: int, row: Any, settings: DataSettings) -> Example:
    if not isinstance(row, dict):
        raise RowError(f"the row is {kind(row)}", "write a JSON object on each line")
    item = _item(row, settings)
    messages, tools = check_messages(item["messages"]), check_tools(item.get("tools"))
    if settings.system is not None and messages[0]["role"] not in ("system", "developer"):
        messages = ({"role": "system", "content": settings.system}, *messages)
    return Example(row=index, messages=messages, item=item, tools=tools)


def _item(row: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
    """The row as graders see it: its own keys, the mapped fields, and always `messages`."""
    if "prompt" not in settings.fields and settings.messages not in row:
        columns = ", ".join(list(row)[:12]) or "none"
        remedy = f"add it, or set engine.data.fields.prompt to a template over its keys ({columns})"
        raise RowError(f'the row is missing key "{settings.messages}"', remedy)
    item = _with_messages(row, settings)
    for name in settings.fields:
        item |= _mapped(name, row, settings)
    return item


def item_by_hand(row: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
    """A row somebody wrote to try a grader, as graders see rows: what it lacks for that is left out.

    Raises DataError with every malformed template of `engine.data.fields`.
    """
    check_templates(settings)
    item = _with_messages(row, settings)
    for name in settings.fields:
        with suppress(RowError):
            item |= _mapped(name, row, settings)
    return item


def _with_messages(row: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
    """The row's own keys, and its column of messages, if it has that, by the name that graders know."""
    found = {"messages": row[settings.messages]} if settings.messages in row else {}
    return {**row, **found}


def _mapped(name: str, row: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
    """The key of an item that a field of `engine.data.fields` makes; raises RowError."""
    value = render(settings.fields[name], row)
    if name == "prompt":
        return {"messages": [{"role": "user", "content": as_text(value)}]}
    return {name: value}
