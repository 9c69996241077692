"""Templates over the columns of a row: `{{ question }}`, `{{ answers.text[0] }}`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from rft.data.rows import RowError
from rft.errors import DataError, Problem
from rft.job import DataSettings

_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"([^.\[\]]+)((?:\.[^.\[\]]+|\[\d{1,9}\])*)")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def _check_templates(settings: DataSettings) -> None:
    for name, template in settings.fields.items():
        where = f"engine.data.fields.{name}"
        if name == "messages":
            raise DataError(
                "`messages` is no field", where=where, remedy="use engine.data.messages"
            )
        rest = _TEMPLATE.sub("", template)
        if (
            "{{" in rest
            or "}}" in rest
            or any(not m[1].strip() for m in _TEMPLATE.finditer(template))
        ):
            raise DataError(
                "a template that does not close", where=where, remedy="write {{ column }}"
            )
        if not _TEMPLATE.search(template):
            remedy = f"write a template such as {{{{ {template.strip()} }}}}"
            raise DataError(f"{template!r} names no column", where=where, remedy=remedy)


def _render(template: str, row: Mapping[str, Any]) -> Any:
    """The template with the row's values; one that is a single bare `{{ column }}` gives the value itself."""
    whole = _TEMPLATE.fullmatch(template.strip())
    if whole and "{{" not in whole[1]:
        return _look_up(whole[1].strip(), row)
    return _TEMPLATE.sub(lambda found: _as_text(_look_up(found[1].strip(), row)), template)


def _look_up(path: str, row: Mapping[str, Any]) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    position = 0
    while position < len(path):
        step = _PATH_STEP.match(f".{path}", position + 1 if position else 0)
        if step is None:
            break
        value = _step(value, step[1] if step[2] is None else int(step[2]))
        position = step.end() - 1
        if value is _MISSING:
            break
    else:
        return value
    columns = ", ".join(list(map(str, row))[:12])
    raise RowError(f"the template's column `{path}` is not in the row", f"its columns: {columns}")


_MISSING = object()


def _step(value: Any, key: str | int) -> Any:
    if isinstance(value, dict) and isinstance(key, str):
        return value.get(key, _MISSING)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return _MISSING


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
