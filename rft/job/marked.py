"""YAML or JSON text → plain values, with the line and column of every key and value.

Scalars follow YAML 1.2: `1e-5` is a number, only true and false are booleans, `no`, `010`, `1_000`,
`12:30` and dates are text. Anchors, aliases and merge keys work. Size, depth and alias expansion are
bounded.
"""

import json
import re
from typing import Any

import yaml

from rft.job.places import Marked, Place, place_after
from rft.job.scalars import RESOLVERS, TAG
from rft.job.values import MAX_DEPTH, MAX_VALUES, Builder, Unreadable

MAX_CHARACTERS = 2_000_000
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|(?!^)\ufeff"
)
_ODD_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def read_marked(text: str, source: str) -> Marked:
    """The one YAML document (or JSON value) in a text; its faults are returned, never raised."""
    try:
        return Builder(source).build(_compose(_as_yaml(text, source), source))
    except Unreadable as error:
        return Marked(None, {}, {}, (error.fault,))


_BY_FIRST_CHARACTER = {None: RESOLVERS}


class _Loader(yaml.SafeLoader):
    """A SafeLoader with YAML 1.2 scalars that counts depth and values while it composes."""

    yaml_implicit_resolvers = _BY_FIRST_CHARACTER
    depth = 0
    num_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.num_values += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=mark)
        if self.num_values > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES} values", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _as_yaml(text: str, source: str) -> str:
    """The text, made readable as YAML when it is JSON: tabs, and characters YAML wants escaped."""
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"the document has {len(text)} characters", f"at most {MAX_CHARACTERS}")
    if text.lstrip().startswith("{") and _is_json(text):
        text = text.replace("\t", " ")
        return _ODD_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if found := _UNPRINTABLE.search(text):
        place = place_after(text[: found.start()], source)
        what = f"the character U+{ord(found[0]):04X} cannot stand in YAML"
        raise Unreadable(what, 'save the file as UTF-8, or write "\\x…" in double quotes', place)
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _compose(text: str, source: str) -> yaml.Node:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _unreadable(error, text, source) from error
    except (ValueError, OverflowError) as error:  # an escape such as "\\U99999999"
        place = Place(False, loader.line + 1, loader.column + 1, source)
        what = "not valid YAML: this escape stands for no character"
        raise Unreadable(what, "mend the escape", place) from error
    finally:
        loader.dispose()
    if node is None or (node.tag == f"{TAG}null" and not node.value):
        start = Place(False, 1, 1, source)
        raise Unreadable("the document is empty", "write a job into it", start)
    return node


def _unreadable(error: yaml.MarkedYAMLError, text: str, source: str) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "not YAML"
    if mark is None:
        return Unreadable(f"not valid YAML: {problem}", "check quotes and indentation")
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    place = Place(False, mark.line + 1, mark.column + 1, source)
    if error.context == "expected a single document in the stream":
        return Unreadable("a second document starts here", "one job per file: remove `---`", place)
    if "'\\t'" in problem:
        remedy = "indent with spaces, not with tabs"
    elif problem.startswith(("nested deeper", "more than")):
        remedy = "no job document needs that"
    elif "undefined alias" in problem:
        remedy = "put quotes around text that begins with `*`, or define the anchor above"
    elif "{{" in line:
        remedy = 'put quotes around a template: "{{ … }}"'
    elif "cannot start any token" in problem or "mapping values" in problem:
        remedy = "put quotes around text with special characters, such as `: `, `@`, `%` or `#`"
    else:
        remedy = "check the quotes, brackets and indentation here and just above"
    return Unreadable(f"not valid YAML: {problem}", remedy, place)
