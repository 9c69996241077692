"""The job document's JSON schema, and what it says about any place in a document."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from rft.job.document import Job
from rft.job.places import KeyPath

Schema = dict[str, Any]


@cache
def json_schema() -> Schema:
    """The JSON schema (2020-12) of a job document, for editors; not to be written to."""
    schema = Job.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "rft job"}


def follow(schema: Schema, location: Sequence[str | int], document: Any) -> tuple[KeyPath, Schema]:
    """The key path and the schema at a pydantic error's location; union labels are no keys."""
    root, value = schema, document
    path: KeyPath = ()
    for part in location:
        schema = _without_reference(schema, root)
        if "discriminator" in schema:
            schema = _without_reference({"$ref": schema["discriminator"]["mapping"][part]}, root)
            continue
        branch = matching_branch(schema, value, root)
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            value = value[part]
            schema = _items(branch, part)
        elif isinstance(value, dict) and (part in value or part in branch.get("properties", {})):
            value = value.get(part)
            others = branch.get("additionalProperties")
            of_others = others if isinstance(others, dict) else {}
            schema = branch.get("properties", {}).get(part, of_others)
        else:
            continue
        path = (*path, part)
    meaning = {key: schema[key] for key in ("description",) if key in schema}
    return path, {**matching_branch(schema, value, root, keep_unions=True), **meaning}


def matching_branch(
    schema: Schema, value: Any, root: Schema, *, keep_unions: bool = False
) -> Schema:
    """The branch of a union that a mapping or list is meant for, references resolved."""
    schema = _without_reference(schema, root)
    branches = schema.get("anyOf", [])
    kind = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else None
    if not branches or (keep_unions and kind is None):
        return schema
    resolved = [_without_reference(branch, root) for branch in branches]
    fitting = [branch for branch in resolved if branch.get("type") == kind or "oneOf" in branch]
    return fitting[0] if len(fitting) == 1 else schema


def legal_keys(schema: Schema) -> list[str]:
    """The keys a mapping may have."""
    return list(schema.get("properties", {}))


def legal_texts(schema: Schema) -> list[str]:
    """The fixed texts a value may be."""
    texts = [schema["const"]] if "const" in schema else list(schema.get("enum", []))
    for branch in schema.get("anyOf", []):
        texts += legal_texts(branch)
    return [text for text in texts if isinstance(text, str)]


def accepts(schema: Schema, kind: str) -> bool:
    """Whether a JSON type, such as `boolean`, is legal here."""
    if "const" in schema or "enum" in schema:
        return False
    return schema.get("type") == kind or any(accepts(b, kind) for b in schema.get("anyOf", []))


def wanted(schema: Schema, root: Schema) -> str:
    """What may be written here, in words."""
    schema = _without_reference(schema, root)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(wanted(branch, root) for branch in schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ("one of " if len(schema["enum"]) > 2 else "") + _alternatives(schema["enum"])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "boolean":
            return "true or false"
        case "string":
            return "text" + _text_limits(schema)
        case "null":
            return "null"
        case "array":
            return _list(schema, root)
        case "object":
            return "a mapping" + _size(schema, "Properties")
    return "a mapping with a `type`" if "oneOf" in schema else "a value"


def key_paths(schema: Schema, root: Schema, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every key outside graders that the schema knows."""
    schema = _without_reference(schema, root)
    for branch in schema.get("anyOf", [schema]):
        for key, inner in _without_reference(branch, root).get("properties", {}).items():
            yield (*path, key)
            yield from key_paths(inner, root, (*path, key))


def _without_reference(schema: Schema, root: Schema) -> Schema:
    """The schema a `$ref` stands for; what stands beside the `$ref` is only description."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return schema


def _items(schema: Schema, index: int) -> Schema:
    prefix = schema.get("prefixItems", [])
    item = prefix[index] if index < len(prefix) else schema.get("items", {})
    return item if isinstance(item, dict) else {}


def _alternatives(texts: Sequence[Any]) -> str:
    return " or ".join([", ".join(map(str, texts[:-1])), str(texts[-1])]).removeprefix(" or ")


def _range(schema: Schema) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:.12g} to {schema['maximum']:.12g}"
    low = [f"of at least {schema['minimum']:.12g}"] if "minimum" in schema else []
    low += [f"above {schema['exclusiveMinimum']:.12g}"] if "exclusiveMinimum" in schema else []
    high = [f"of at most {schema['maximum']:.12g}"] if "maximum" in schema else []
    high += [f"below {schema['exclusiveMaximum']:.12g}"] if "exclusiveMaximum" in schema else []
    return (" " + " and ".join(low + high)) if low or high else ""


def _text_limits(schema: Schema) -> str:
    if "examples" in schema:
        return f" such as {_alternatives(schema['examples'])}"
    if "pattern" in schema:
        return f" that matches {schema['pattern'].strip('^$')}"
    if schema.get("minLength") == 1 and "maxLength" not in schema:
        return " that is not empty"
    return f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""


def _list(schema: Schema, root: Schema) -> str:
    if "prefixItems" in schema:
        entries = schema["prefixItems"]
        return f"a list of {len(entries)}, each entry {wanted(entries[0], root)}"
    return f"a list{_size(schema, 'Items')}, each entry {wanted(schema.get('items', {}), root)}"


def _size(schema: Schema, kind: str) -> str:
    parts = [f"at least {schema[f'min{kind}']}"] if f"min{kind}" in schema else []
    parts += [f"at most {schema[f'max{kind}']}"] if f"max{kind}" in schema else []
    return f" with {' and '.join(parts)}" if parts else ""
