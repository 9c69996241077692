"""JSON schemas of many kinds, for tests of structured output."""

from typing import Any

Schema = dict[str, Any]


def an_object(**properties: Any) -> Schema:
    """All of them required, none besides."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "maxLength": 30}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": an_object(
            value={"type": "integer", "minimum": 0, "maximum": 9},
            children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        )
    },
}

SCHEMAS: dict[str, Schema] = {
    "flat": an_object(compliant={"enum": ["yes", "no", "needs review"]}, explanation=TEXT),
    "nested": an_object(person=an_object(name=TEXT, home=an_object(city=TEXT, zip=TEXT))),
    "enum of kinds": {"enum": ["a", 1, None, True, "ü", [1, 2], {"k": "v"}]},
    "arrays": an_object(
        tags={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3},
        pair={
            "type": "array",
            "prefixItems": [TEXT, {"type": "integer"}],
            "items": False,
            "minItems": 2,
        },
    ),
    "optional": {
        "type": "object",
        "properties": {"a": TEXT, "b": {"type": ["integer", "null"]}, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "numbers": an_object(
        share={"type": "number", "minimum": 0, "maximum": 1},
        count={"type": "integer", "exclusiveMinimum": -5, "maximum": 1000},
        step={"type": "number", "multipleOf": 0.5, "minimum": -3, "maximum": 3},
    ),
    "any number": an_object(x={"type": "number"}, n={"type": "integer"}),
    "unicode": an_object(
        größe={"enum": ["klein", "groß", "赤", "🙂"]}, 名前={"type": "string", "maxLength": 12}
    ),
    "recursion": TREE,
    "patterns": an_object(
        date={"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
        code={"type": "string", "pattern": "[A-Z]{2}[0-9]+", "maxLength": 12},
    ),
    "formats": an_object(
        day={"type": "string", "format": "date"},
        mail={"type": "string", "format": "email", "maxLength": 30},
        id={"type": "string", "format": "uuid"},
    ),
    "any of": {
        "anyOf": [
            an_object(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
            an_object(kind={"const": "note"}, text=TEXT),
        ]
    },
    "a map": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99},
        "maxProperties": 4,
    },
    "key patterns": {
        "type": "object",
        "patternProperties": {"^x[a-z]{1,5}$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": TEXT}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ],
    },
    "references": {
        "type": "object",
        "properties": {
            "from": {"$ref": "#/definitions/place"},
            "to": {"$ref": "#/definitions/place"},
        },
        "required": ["from", "to"],
        "additionalProperties": False,
        "definitions": {"place": an_object(x={"type": "integer"}, y={"type": "integer"})},
    },
    "no object": {
        "type": "array",
        "items": {"type": ["string", "null"], "maxLength": 8},
        "maxItems": 4,
    },
    "any object": {"type": "object"},
}
"""By what is hard about them."""
