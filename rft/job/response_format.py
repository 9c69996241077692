"""`response_format`: the form of every completion."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from rft.job.places import KeyPath, Marked, Place
from rft.job.section import Section

WHITESPACE = " ?"
"""What may stand between two tokens of JSON, as a regex: at most one blank, as `json.dumps` writes it. Where
more is allowed, small models write blanks up to the token limit."""

RESPONSE_FORMAT: KeyPath = ("method", "reinforcement", "response_format")

FLAT_KEYS = ("name", "schema", "strict", "description")
"""What the flat shape of a json_schema format has beside its `type`."""


class SchemaSettings(Section):
    """A JSON schema by a name."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    """The schema's name."""
    schema_: Annotated[Mapping[str, Any], Field(alias="schema")]
    """A JSON schema (draft 2020-12)."""
    strict: bool | None = True
    """Accepted for the product's sake: the schema is always enforced."""
    description: str | None = None
    """A note."""


class ResponseFormat(Section):
    """The form of a completion."""

    type: Literal["text", "json_object", "json_schema"]
    """text: no constraint; json_object: any JSON object; json_schema: JSON that a schema allows."""
    json_schema: SchemaSettings | None = None
    """The schema, for the type json_schema; its keys may also stand beside `type`."""

    @property
    def schema_text(self) -> str | None:
        """The schema that completions keep to, as JSON; None where they are free."""
        if self.type == "json_object":
            return json.dumps({"type": "object"})
        return json.dumps(self.json_schema.schema_) if self.json_schema else None


def nested_format(marked: Marked, path: KeyPath) -> Marked:
    """The document with the flat shape of the format at `path` turned into the nested one, places too."""
    value: Any = marked.value
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    is_flat = isinstance(value, Mapping) and "schema" in value and "json_schema" not in value
    if not is_flat:
        return marked
    inner = {key: value[key] for key in FLAT_KEYS if key in value}
    outer = {key: value[key] for key in value if key not in inner}
    document = _replaced(marked.value, path, {**outer, "json_schema": inner})
    keys, values = (_moved(places, path, inner) for places in (marked.keys, marked.values))
    return replace(marked, value=document, keys=keys, values=values)


def _replaced(document: Any, path: KeyPath, value: Any) -> Any:
    if not path:
        return value
    return {**document, path[0]: _replaced(document[path[0]], path[1:], value)}


def _moved(
    places: Mapping[KeyPath, Place], path: KeyPath, inner: Mapping[str, Any]
) -> dict[KeyPath, Place]:
    """The places with those of the inner keys one level deeper."""
    depth = len(path)

    def new(old: KeyPath) -> KeyPath:
        is_inner = old[:depth] == path and len(old) > depth and old[depth] in inner
        return (*path, "json_schema", *old[depth:]) if is_inner else old

    return {new(old): place for old, place in places.items()}
