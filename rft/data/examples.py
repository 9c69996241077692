"""Rows → Examples, with every bad row told at once."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rft.data.columns import as_text, check_templates, render
from rft.data.messages import check_messages
from rft.data.rows import RowError, kind
from rft.data.sources import read_rows, shown
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
    """The examples of a data source; `field` is the job's key for it, `minimum` the fewest rows it may hold.

    Raises DataError with all bad rows (the first 20, and a count), or NotYetError when all of them only ask for
    something unbuilt.
    """
    check_templates(settings)
    examples: list[Example] = []
    problems: list[Problem] = []
    only_not_yet = True
    for row in read_rows(source, field):
        try:
            if isinstance(row.value, RowError):
                raise row.value
            examples.append(_example(len(examples) + len(problems), row.value, settings))
        except RowError as error:
            problems.append(error.problem(row.place))
            only_not_yet = only_not_yet and error.not_yet
    if problems:
        shown = problems[:MAX_PROBLEMS]
        if len(problems) > MAX_PROBLEMS:
            shown.append(Problem(f"and {len(problems) - MAX_PROBLEMS} more bad rows", source))
        raise (NotYetError if only_not_yet else DataError)(shown)
    if not examples:
        raise DataError(f"{field} holds no rows", where=source, remedy=f"at least {minimum}")
    if len(examples) < minimum:
        what = f"{field} has {len(examples)} example(s), but must have at least {minimum}"
        raise DataError(what, where=source, remedy="add rows")
    return examples


def data_warnings(train: Sequence[Example], valid: Sequence[Example]) -> list[str]:
    """What is legal in the two files but likely a mistake."""
    warnings = []
    for name, examples in (("training_file", train), ("validation_file", valid)):
        if len(examples) > MAX_ROWS[name]:
            warnings.append(
                f"{name} has {len(examples)} rows; the hosted product takes at most {MAX_ROWS[name]}"
            )
        repeated = len(examples) - len({_fingerprint(example) for example in examples})
        if repeated:
            warnings.append(f"{name} repeats {repeated} prompt(s)")
    trained = {_fingerprint(example): example.row for example in train}
    shared = [example for example in valid if _fingerprint(example) in trained]
    if shared:
        first = shared[0]
        warnings.append(
            f"{len(shared)} validation prompt(s) are also trained on, such as validation row {first.row + 1} = "
            f"training row {trained[_fingerprint(first)] + 1}: valid_reward_mean will flatter the model"
        )
    return warnings


def _fingerprint(example: Example) -> str:
    return json.dumps(example.messages, sort_keys=True, default=str)


def _example(index: int, row: Any, settings: DataSettings) -> Example:
    if not isinstance(row, dict):
        raise RowError(f"the row is {kind(row)}", "write a JSON object on each line")
    if row.get("tools"):
        raise RowError("`tools` in a row are not built yet", "remove them", not_yet=True)
    item = _item(row, settings)
    messages = check_messages(item["messages"])
    if settings.system is not None and all(message["role"] != "system" for message in messages):
        messages = ({"role": "system", "content": settings.system}, *messages)
    return Example(row=index, messages=messages, item=item)


def _item(row: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
    """The row as graders see it: its own keys, the mapped fields, and always `messages`."""
    item = dict(row)
    for name, template in settings.fields.items():
        if name != "prompt":
            item[name] = render(template, row)
    if "prompt" in settings.fields:
        content = str(as_text(render(settings.fields["prompt"], row)))
        item["messages"] = [{"role": "user", "content": content}]
    elif settings.messages in row:
        item["messages"] = row[settings.messages]
    else:
        columns = ", ".join(list(map(str, row))[:12]) or "none"
        remedy = f"add it, or set engine.data.fields.prompt to a template over the row's keys ({columns})"
        raise RowError(f'the row is missing key "{settings.messages}"', remedy)
    return item
