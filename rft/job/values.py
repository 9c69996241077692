"""Composed YAML nodes → plain values, with the place of every key and value."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rft.job.places import Fault, KeyPath, Marked, Place
from rft.job.scalars import BOOL, INTEGER, NULL, NUMBER, TAG

MAX_DEPTH = 40
MAX_VALUES = 20_000
"""Values in a document, aliases expanded."""
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class Unreadable(Exception):
    """A document that cannot be read any further."""

    def __init__(self, what: str, remedy: str, place: Place | None = None):
        super().__init__(what)
        self.fault = Fault((), what, remedy, place)


@dataclass
class Builder:
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
        if self.num_values > MAX_VALUES or len(self.open_nodes) > MAX_DEPTH:
            what = f"the aliases expand to more than {MAX_VALUES} values or {MAX_DEPTH} levels"
            place = self.keys.get(path[:1], self.place(node))
            raise Unreadable(what, "write the values out", place)
        self.values[path] = self.place(node)
        if any(node is open_node for open_node in self.open_nodes):
            self.fault(path, node, "an alias stands inside its own anchor", "write the values out")
            return None
        self.open_nodes.append(node)
        try:
            if isinstance(node, yaml.ScalarNode):
                return self.scalar(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
                return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
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
            if key_node.tag == f"{TAG}merge":
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
            builder = Builder(self.source, num_values=self.num_values)
            builder.open_nodes = self.open_nodes
            brought = builder.value(merged, ()) or {}
            added = {key: value for key, value in brought.items() if key not in own}
            own.update(added)
            self.keys.update(_under(path, added, builder.keys))
            self.values.update(_under(path, added, builder.values))
            self.num_values = builder.num_values
            self.faults += [
                Fault((*path, *f.path), f.what, f.remedy, f.place) for f in builder.faults
            ]

    def key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            remedy = 'a template needs quotes: "{{ … }}"'
            self.fault(path, node, "a mapping or list stands where a key is wanted", remedy)
            return None
        if node.tag != f"{TAG}str":
            self.fault(
                path, node, f"the key {node.value or 'null'} is not text", "put it in quotes"
            )
            return None
        return self.text(node, path)

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(TAG), node.value
        if kind == "str":
            return self.text(node, path)
        if kind == "null" and NULL.fullmatch(text):
            return None
        if kind == "bool" and BOOL.fullmatch(text):
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


def _under(
    path: KeyPath, keys: Mapping[str, Any], places: Mapping[KeyPath, Place]
) -> dict[KeyPath, Place]:
    """The places of some keys of a mapping that is merged into the one at a path."""
    return {(*path, *p): place for p, place in places.items() if p and p[0] in keys}


def _shown_tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG, "!!")
