"""Templates over the columns of a row: `{{ question }}`, `{{ answers.text[0] }}`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from rft.data.rows import RowError
from rft.errors import DataError, Problem
from rft.job import DataSettings
from rft.job.places import one_line

_TEMPLATE = re.compile(r"\{\{((?:(?!\{\{|\}\}).)*)\}\}", re.DOTALL)
_PATH = re.compile(r"([^.\[\]]+)((?:\.[^.\[\]]+|\[\d{1,9}\])*)")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
MAX_SHOWN = 100
"""Characters of a template that an error repeats."""


def check_templates(settings: DataSettings) -> None:
    """Raises DataError with every malformed template of `engine.data.fields`."""
    problems = []
    for name, template in settings.fields.items():
        where = one_line(f"engine.data.fields.{name}")
        seen = template if len(template) <= MAX_SHOWN else template[:MAX_SHOWN] + "…"
        rest = _TEMPLATE.sub("", template)
        columns = [found[1].strip() for found in _TEMPLATE.finditer(template)]
        if name == "messages":
            remedy = "name the column in engine.data.messages, or set engine.data.fields.prompt"
            problems.append(Problem("`messages` is no field", where, remedy))
        elif "{{" in rest or "}}" in rest or not all(columns):
            what = one_line(f"the template {seen!r} is malformed")
            problems.append(Problem(what, where, "write {{ column }}"))
        elif not columns:
            what = one_line(f"the template {seen!r} names no column")
            remedy = one_line(f'write a template such as "{{{{ {seen.strip()} }}}}"')
            problems.append(Problem(what, where, remedy))
    if problems:
        raise DataError(problems)


def render(template: str, row: Mapping[str, Any]) -> Any:
    """The template with the row's values; a single bare `{{ column }}` gives the value itself."""
    if whole := _TEMPLATE.fullmatch(template.strip()):
        return _look_up(whole[1].strip(), row)
    return _TEMPLATE.sub(lambda found: as_text(_look_up(found[1].strip(), row)), template)


def as_text(value: Any) -> str:
    """A text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_MISSING = object()


def _look_up(path: str, row: Mapping[str, Any]) -> Any:
    """The value at `column` or `column.key[0]`; a column of that very name comes first."""
    if path in row:
        return row[path]
    parts = _PATH.fullmatch(path)
    value = row.get(parts[1], _MISSING) if parts else _MISSING
    for step in _STEP.finditer(parts[2] if parts else ""):
        value = _step_into(value, step)
    if value is not _MISSING:
        return value
    what = f"the row has no `{path}`, which a template of engine.data.fields names"
    raise RowError(what, f"its columns: {', '.join(list(row)[:12])}")


def _step_into(value: Any, step: re.Match[str]) -> Any:
    key, index = step[1], step[2]
    if key is not None:
        return value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    is_there = isinstance(value, list) and int(index) < len(value)
    return value[int(index)] if is_there else _MISSING
