"""What the rest of rft sees of the graders."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from rft.errors import GraderError
from rft.graders import (
    GraderDocument,
    GradingSettings,
    Multi,
    Python,
    StringCheck,
    TextSimilarity,
    grader_parts,
    not_yet,
    open_grader,
    template_problems,
)

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }} {{ item.tags[0] }}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{ item.answer }}",
    "reference": "",
    "evaluation_metric": "bleu",
}
PYTHON = {"type": "python", "source": "def grade(sample, item): return 1"}
MULTI = {"type": "multi", "graders": {"a": EXACT, "b": CLOSE}, "calculate_output": "a + b"}
documents = TypeAdapter(GraderDocument)


@pytest.mark.parametrize(
    ("raw", "kind", "parts"),
    [
        (EXACT, StringCheck, [("exact", "string_check")]),
        (CLOSE, TextSimilarity, [("close", "text_similarity")]),
        (PYTHON, Python, [("python_grader", "python")]),
        (
            MULTI,
            Multi,
            [("multi", "multi"), ("exact", "string_check"), ("close", "text_similarity")],
        ),
    ],
)
def test_documents(raw, kind, parts):
    document = documents.validate_python(raw)
    assert type(document) is kind
    assert grader_parts(document) == parts
    assert documents.validate_json(documents.dump_json(document)) == document
    with pytest.raises(ValidationError, match="frozen"):
        document.name = "other"
    with open_grader(document) as grader:
        assert (grader.name, grader.type) == parts[0]


def test_settings_default_to_the_products():
    settings = GradingSettings()
    assert (settings.timeout_seconds, settings.memory_mb) == (120, 2048)
    assert (settings.sandbox, settings.on_exception) == ("process", "minimum")
    assert settings.pass_threshold_shapes_reward is False


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (EXACT, None),
        (MULTI, None),
        ({"type": "score_model", "name": "judge"}, "a grader of type score_model"),
        ({"type": "label_model"}, "a grader of type label_model"),
        ({"type": "endpoint", "url": "http://x"}, "a grader of type endpoint"),
        (CLOSE | {"evaluation_metric": "cosine"}, "a text_similarity grader by cosine"),
        (
            MULTI | {"graders": {"a": EXACT, "judge": {"type": "score_model"}}},
            "a grader of type score_model (graders.judge)",
        ),
        ({"type": "multi", "graders": [1]}, None),
        ({"type": ["x"]}, None),
        ({"type": "other"}, None),
        (None, None),
        ("score_model", None),
    ],
)
def test_not_yet(raw, expected):
    assert not_yet(raw) == expected


def test_not_yet_of_a_document_inside_itself():
    raw = {"type": "multi", "graders": {}}
    raw["graders"]["again"] = raw
    assert not_yet(raw) is None


def test_template_problems_name_field_row_and_nearest_key():
    items = [
        ("train.jsonl:1", {"answer": "Paris", "tags": ["city"]}),
        ("train.jsonl:2", {"anwser": "Paris", "tags": []}),
    ]
    problems = template_problems(documents.validate_python(MULTI), items)
    assert [(problem.where, problem.what) for problem in problems] == [
        (
            "train.jsonl:2",
            "{{ item.answer }} of grader.graders.a.reference: "
            "item has no 'answer', did you mean 'anwser'?",
        ),
        (
            "train.jsonl:2",
            "{{ item.tags[0] }} of grader.graders.a.reference: "
            "item.tags is a list of 0, which has no 0",
        ),
        (
            "train.jsonl:2",
            "{{ item.answer }} of grader.graders.b.input: "
            "item has no 'answer', did you mean 'anwser'?",
        ),
    ]


@pytest.mark.parametrize(("num_rows", "last"), [(20, None), (21, "1 more variables"), (50, "30")])
def test_template_problems_are_counted_past_twenty(num_rows, last):
    document = documents.validate_python(CLOSE)
    items = ((f"train.jsonl:{row}", {}) for row in range(1, num_rows + 1))
    problems = template_problems(document, items, "method.grader")
    assert [problem.where for problem in problems[:20]] == [
        f"train.jsonl:{row}" for row in range(1, 21)
    ]
    assert len(problems) == (20 if last is None else 21)
    if last is not None:
        assert problems[-1].what.startswith(last)
        assert problems[-1].where == "method.grader"


def test_template_problems_of_graders_without_templates():
    assert template_problems(documents.validate_python(PYTHON), [("x:1", {})]) == []


def test_template_problems_need_readable_templates():
    document = documents.validate_python(CLOSE | {"input": "{{ x }}"})
    with pytest.raises(GraderError, match="not a template expression"):
        template_problems(document, [])


def test_graders_start_without_torch():
    script = (
        "import sys, rft.graders; print([m for m in sys.modules if m in ('torch','transformers')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
