"""YAML or JSON text → plain values, with the line and column of every key and value.

Scalars follow YAML 1.2: `1e-5` is a number, only true and false are booleans, `no`, `010`, `1_000`,
`12:30` and dates are text. Anchors, aliases and merge keys work. Size, depth and alias expansion are
bounded.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rft.job.places import Fault, KeyPath, Marked, Place

MAX_CHARACTERS = 2_000_000
MAX_DEPTH = 40
MAX_VALUES = 20_000
"""Values in a document, aliases expanded."""

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|", re.ASCII)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE", re.ASCII)
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|(?!^)\ufeff"
)
_ODD_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def read_marked(text: str, source: str) -> Marked:
    """The one YAML document (or JSON value) in a text; its faults are returned, never raised."""
    try:
        return _Builder(source).build(_compose(_as_yaml(text, source), source))
    except _Unreadable as error:
        return Marked(None, {}, {}, (error.fault,))


class _Unreadable(Exception):
    def __init__(self, what: str, remedy: str, place: Place | None = None):
        super().__init__(what)
        self.fault = Fault((), what, remedy, place)


RESOLVERS = [
    (f"{_TAG}null", re.compile(f"(?:{_NULL.pattern})$")),
    (f"{_TAG}bool", re.compile(f"(?:{_BOOL.pattern})$")),
    (f"{_TAG}int", re.compile(f"(?:{INTEGER.pattern})$")),
    (f"{_TAG}float", re.compile(f"(?:{NUMBER.pattern}|{_NOT_FINITE.pattern})$")),
    (f"{_TAG}merge", re.compile("<<$")),
]
"""Tag and pattern of the plain scalars that are not text."""
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
        raise _Unreadable(f"the document has {len(text)} characters", f"at most {MAX_CHARACTERS}")
    if text.lstrip().startswith("{") and _is_json(text):
        text = text.replace("\t", " ")
        return _ODD_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if found := _UNPRINTABLE.search(text):
        start = text.rfind("\n", 0, found.start()) + 1
        place = Place(False, text.count("\n", 0, start) + 1, found.start() - start + 1, source)
        what = f"the character U+{ord(found[0]):04X} cannot stand in YAML"
        raise _Unreadable(what, 'save the file as UTF-8, or write "\\x…" in double quotes', place)
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
        raise _Unreadable(what, "mend the escape", place) from error
    finally:
        loader.dispose()
    if node is None or (node.tag == f"{_TAG}null" and not node.value):
        raise _Unreadable(
            "the document is empty", "write a job into it", Place(False, 1, 1, source)
        )
    return node


def _unreadable(error: yaml.MarkedYAMLError, text: str, source: str) -> _Unreadable:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "not YAML"
    if mark is None:
        return _Unreadable(f"not valid YAML: {problem}", "check quotes and indentation")
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    place = Place(False, mark.line + 1, mark.column + 1, source)
    if error.context == "expected a single document in the stream":
        return _Unreadable("a second document starts here", "one job per file: remove `---`", place)
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
    return _Unreadable(f"not valid YAML: {problem}", remedy, place)


@dataclass
class _Builder:
    """Turns composed nodes into values, noting places and faults on the way."""

    source: str
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    num_values: int = 0
    open_nodes: list[yaml.Node] = field(default_factory=list)

    def build(self, node: yaml.Node) -> Marked:
        value = self.value(node, ())
        return Marked(value, self.keys, self.values, tuple(self.faults))

    def place(self, node: yaml.Node) -> Place:
        return Place(False, node.start_mark.line + 1, node.start_mark.column + 1, self.source)

    def fault(self, path: KeyPath, node: yaml.Node, what: str, remedy: str) -> None:
        self.faults.append(Fault(path, what, remedy, self.place(node)))

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(path) > MAX_DEPTH:
            what = f"the aliases expand to more than {MAX_VALUES} values or {MAX_DEPTH} levels"
            place = self.keys.get(path[:1], self.place(node))
            raise _Unreadable(what, "write the values out", place)
        self.values[path] = self.place(node)
        if any(node is open_node for open_node in self.open_nodes):
            self.fault(path, node, "an alias stands inside its own anchor", "write the values out")
            return None
        self.open_nodes.append(node)
        try:
            if isinstance(node, yaml.ScalarNode):
                return self.scalar(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return self.mapping(node, path)
        finally:
            self.open_nodes.pop()
        self.fault(path, node, f"the tag {_shown_tag(node)} is not allowed", "remove the tag")
        return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """A mapping's own keys, over those of its merge keys."""
        own: dict[str, Any] = {}
        first: dict[str, Place] = {}
        merges: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merges.append(value_node)
                continue
            key = self.key(key_node, path)
            if key is None:
                continue
            if key in first:
                what = f"`{key}` stands twice, first at line {first[key].line}"
                what += f", column {first[key].column}"
                self.fault((*path, key), key_node, what, "keep one of them")
                continue
            self.keys[*path, key] = first[key] = self.place(key_node)
            own[key] = self.value(value_node, (*path, key))
        for merge in merges:
            self.merge(merge, path, own)
        return own

    def merge(self, node: yaml.Node, path: KeyPath, own: dict[str, Any]) -> None:
        """Adds what a merge key brings and `own` lacks; earlier mappings win."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for merged in sources:
            if not isinstance(merged, yaml.MappingNode):
                self.fault(
                    path, merged, "`<<` merges something that is no mapping", "merge an alias"
                )
                continue
            builder = _Builder(self.source, num_values=self.num_values)
            builder.open_nodes = self.open_nodes
            for key, value in (builder.value(merged, ()) or {}).items():
                if key not in own:
                    own[key] = value
                    self.keys.update(_under(path, key, builder.keys))
                    self.values.update(_under(path, key, builder.values))
            self.num_values = builder.num_values
            self.faults += [
                Fault((*path, *f.path), f.what, f.remedy, f.place) for f in builder.faults
            ]

    def key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            remedy = 'a template needs quotes: "{{ … }}"'
            self.fault(path, node, "a mapping or list stands where a key is wanted", remedy)
            return None
        if node.tag != f"{_TAG}str":
            self.fault(
                path, node, f"the key {node.value or 'null'} is not text", "put it in quotes"
            )
            return None
        return self.text(node, path)

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "str":
            return self.text(node, path)
        if kind == "null" and _NULL.fullmatch(text):
            return None
        if kind == "bool" and _BOOL.fullmatch(text):
            return text.lower() == "true"
        if kind == "int" and INTEGER.fullmatch(text):
            return self.integer(node, path)
        if kind == "float" and NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        if kind == "float":
            self.fault(path, node, f"{text} is not a finite number", "write a finite number")
        else:
            self.fault(
                path, node, f"the tag {_shown_tag(node)} does not fit here", "remove the tag"
            )
        return None

    def integer(self, node: yaml.ScalarNode, path: KeyPath) -> int | None:
        if len(node.value) <= 20 and abs(int(node.value)) < 2**63:
            return int(node.value)
        what = f"the number {node.value[:24]}… does not fit in 64 bits"
        self.fault(path, node, what, "write a smaller number")
        return None

    def text(self, node: yaml.ScalarNode, path: KeyPath) -> str | None:
        """The text with the surrogate pairs of JSON escapes joined to one character each."""
        joined = _SURROGATE_PAIR.sub(_join_surrogates, node.value)
        if any("\ud800" <= character <= "\udfff" for character in joined):
            self.fault(
                path, node, "the text holds half a surrogate pair", "remove the \\ud… escape"
            )
            return None
        return joined


def _join_surrogates(found: re.Match[str]) -> str:
    return found[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _under(path: KeyPath, key: str, places: Mapping[KeyPath, Place]) -> dict[KeyPath, Place]:
    return {(*path, *p): place for p, place in places.items() if p[:1] == (key,)}


def _shown_tag(node: yaml.Node) -> str:
    return str(node.tag).replace(_TAG, "!!")
