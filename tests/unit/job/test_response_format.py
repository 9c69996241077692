"""response_format: both shapes, what can be enforced, and where faults are shown."""

import json
from pathlib import Path

import pytest

from rft.errors import JobError
from rft.graders.json_schema import schema_warnings, subschemas, unenforceable
from rft.job import dump_job, parse_job
from tests.schemas import SCHEMAS
from tests.unit.job.job_text import JOB, parse

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
KEY = "method.reinforcement.response_format"


def test_both_shapes_are_one_document() -> None:
    flat = {
        "type": "json_schema",
        "name": "s",
        "schema": SCHEMA,
        "strict": True,
        "description": "d",
    }
    inner = {key: value for key, value in flat.items() if key != "type"}
    nested = {"type": "json_schema", "json_schema": inner}
    jobs = [parse(JOB, f"{KEY}={json.dumps(shape)}") for shape in (flat, nested)]
    assert jobs[0] == jobs[1]
    assert jobs[0].model_dump()["method"]["reinforcement"]["response_format"] == nested
    assert json.loads(jobs[0].completion_schema or "") == SCHEMA


def test_a_job_with_a_schema_loads_again_as_the_same() -> None:
    job = parse(JOB, f"{KEY}={json.dumps({'type': 'json_schema', 'name': 's', 'schema': SCHEMA})}")
    assert parse_job(dump_job(job), name="again", folder=Path("/")) == job


@pytest.mark.parametrize(
    ("shape", "schema"),
    [("null", None), ("{type: text}", None), ("{type: json_object}", {"type": "object"})],
)
def test_formats_without_a_schema_of_their_own(shape: str, schema: object) -> None:
    found = parse(JOB, f"{KEY}={shape}").completion_schema
    assert (found and json.loads(found)) == schema


def test_a_fault_of_the_flat_shape_is_shown_where_it_was_written() -> None:
    text = JOB.replace(
        "    grader:",
        "    response_format:\n      type: json_schema\n      name: a b\n      schema: {type: object}\n    grader:",
        1,
    )
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "name: a b" in row)
    with pytest.raises(JobError) as raised:
        parse(text)
    (problem,) = raised.value.problems
    assert "json_schema.name is the text 'a b'" in problem.what
    assert f":{line}:13" in (problem.where or "")


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_common_can_be_enforced(name: str) -> None:
    assert unenforceable(SCHEMAS[name]) is None
    assert schema_warnings(SCHEMAS[name]) == []


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "^(?=a)"}, "look-around"),
        ({"type": "string", "format": "postcode"}, "Unknown format: postcode"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater"),
        ({"$ref": "http://example.com/schema"}, "example.com"),
        ({"if": {}, "then": {}}, "if"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"enum": []}, "empty"),
        ({"type": "strin"}, "strin"),
        ({"type": "object", "minProperties": 2}, "may come twice"),
        ({"properties": {"a": {"type": "object", "minProperties": 2}}}, "may come twice"),
        (
            {
                "type": "object",
                "minProperties": 2,
                "additionalProperties": False,
                "patternProperties": {"^[xy]$": {}},
            },
            "may come twice",
        ),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, "exclusiveMinimum 0"),
        (
            {"items": {"type": "number", "exclusiveMinimum": 3, "maximum": 3.01}},
            "exclusiveMinimum 3",
        ),
        ({"type": "number", "exclusiveMinimum": True}, "a number since draft 6"),
        ({"type": "integer", "multipleOf": 99991}, "too many digits"),
        ({"const": "a\u0001b"}, "control character"),
        ({"enum": ["a", "a\u000bb"]}, "control character"),
        ({"properties": {"\u001f": {}}}, "control character"),
        ({"type": "string", "pattern": "^a\\x01b$"}, "control character"),
        ({"$ref": "#"}, "admits no text at all"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(schema: dict, reason: str) -> None:
    assert reason in (unenforceable(schema) or "")


def test_a_keyword_that_restricts_nothing_is_told() -> None:
    schema = {"type": "object", "properties": {"maxLengt": {"type": "string", "maxLengt": 3}}}
    (warning,) = schema_warnings(schema)
    assert "'maxLengt' is unknown" in warning and "did you mean 'maxLength'?" in warning


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 5},
        {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 1},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 3},
        {"type": "number", "multipleOf": 0.25},
        {"type": "number", "multipleOf": 100000},
        {"enum": ["a\nb", "\t", "\x7f"]},
        {"type": "object", "minProperties": 1},
    ],
)
def test_what_is_kept_is_not_refused(schema: dict) -> None:
    assert unenforceable(schema) is None


def test_properties_are_no_keywords() -> None:
    schema = {"properties": {"odd": {"const": {"odder": 1}}}, "items": {"anyOf": [{"title": "x"}]}}
    assert len(list(subschemas(schema))) == 4
    assert schema_warnings(schema) == []
