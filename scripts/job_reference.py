"""Writes docs/job.md, the reference of the job document, from its JSON schema: `python -m scripts.job_reference`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rft.job.schema import json_schema

PAGE = Path(__file__).parents[1] / "docs" / "job.md"

INTRODUCTION = """# The job document, key by key

Written by `python -m scripts.job_reference` from the schema that `rft schema` prints. A key without a default has to be
given. Where `auto` may stand, the run keeps what was used in `job.resolved.yaml`. On the command line a key is its
whole path: `rft train job.yaml engine.training.learning_rate=1e-4`.
"""

Schema = Mapping[str, Any]


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    lines = [INTRODUCTION]
    for path, schema in sections((), json_schema()):
        title = f"`{'.'.join(path)}`" if path else "At the top"
        lines += [f"## {title}", ""]
        if path:
            lines += [schema["description"], ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        lines += [row(key, value) for key, value in schema["properties"].items()]
        lines.append("")
    return "\n".join(lines)


def sections(path: tuple[str, ...], schema: Schema) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """A mapping of the document and those in it; graders and forms of answers have pages of their own."""
    yield path, schema
    for key, value in schema["properties"].items():
        inner = resolved(value)
        if "properties" in inner:
            yield from sections((*path, key), inner)


def resolved(schema: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Schema = json_schema()["$defs"][reference.rpartition("/")[2]]
    return found


def row(key: str, schema: Schema) -> str:
    is_section = "properties" in resolved(schema)
    told = {} if is_section else schema.get("default")
    default = f"`{json.dumps(told)}`" if "default" in schema else ""
    meaning = schema.get("description") or resolved(schema).get("description", "")
    cells = (f"`{key}`", default, values(schema), " ".join(meaning.split()))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def values(schema: Schema) -> str:
    """What may stand there, in few words."""
    if "oneOf" in schema:
        return "[a grader](graders.md)"
    if schema.get("$ref", "").endswith("/ResponseFormat"):
        return "[a form](structured-outputs.md)"
    if "anyOf" in schema:
        return ", ".join(dict.fromkeys(values(branch) for branch in schema["anyOf"]))
    schema = resolved(schema)
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum") or [schema["const"]])
    if "properties" in schema:
        return "below"
    kind = schema.get("type", "anything")
    if kind in ("integer", "number"):
        return interval(schema, "whole number" if kind == "integer" else "number")
    if kind == "array":
        item = schema.get("items") or next(iter(schema.get("prefixItems", [])), None)
        if item and "properties" in resolved(item):
            return (
                f"list of mappings: {', '.join(f'`{key}`' for key in resolved(item)['properties'])}"
            )
        return f"list of: {values(item)}" if item else "list"
    names = {"string": "text", "object": "mapping", "boolean": "`true`, `false`", "null": "`null`"}
    return names.get(kind, kind)


def interval(schema: Schema, kind: str) -> str:
    bounds = (
        ("≥", "minimum"), (">", "exclusiveMinimum"), ("≤", "maximum"), ("<", "exclusiveMaximum"),
    )  # fmt: skip
    told = [f"{sign} {schema[key]}" for sign, key in bounds if key in schema]
    return " ".join([kind, ", ".join(told)]).strip()


if __name__ == "__main__":
    main()
