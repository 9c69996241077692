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
    grader_warnings,
    open_grader,
    output_json_problems,
    output_json_warnings,
    output_tools_warnings,
    passes,
    problems_of,
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
COSINE = CLOSE | {"evaluation_metric": "cosine"}
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
    assert (settings.sandbox, settings.on_exception) == ("kernel", "minimum")
    assert settings.pass_threshold_shapes_reward is False


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


@pytest.mark.parametrize(("num_rows", "last"), [(3, None), (4, "1"), (50, "47")])
def test_rows_past_the_third_are_counted_for_each_variable(num_rows, last):
    document = documents.validate_python(CLOSE | {"reference": "{{ item.b }}"})
    items = ((f"train.jsonl:{row}", {}) for row in range(1, num_rows + 1))
    problems = template_problems(document, items, "method.grader")
    assert [problem.where for problem in problems[:6]] == [
        f"train.jsonl:{row}" for row in (1, 1, 2, 2, 3, 3)
    ]
    assert [str(problem) for problem in problems[6:]] == [
        f"{{{{ item.{name} }}}} is missing from {last} more rows (method.grader.{field})"
        for name, field in (("answer", "input"), ("b", "reference"))
        if last is not None
    ]


def test_template_problems_of_graders_without_templates():
    assert template_problems(documents.validate_python(PYTHON), [("x:1", {})]) == []


def test_template_problems_leave_malformed_templates_to_problems_of():
    document = documents.validate_python(CLOSE | {"input": "{{ x }}", "reference": "{{ item.y }}"})
    (problem,) = template_problems(document, [("train.jsonl:1", {})])
    assert problem.what == "{{ item.y }} of grader.reference: item has no 'y'"
    (problem,) = problems_of(document)
    assert problem.what == "`{{ x }}` is not a template expression"
    with pytest.raises(GraderError, match="not a template expression"):
        open_grader(document)


def test_output_json_needs_a_response_format():
    raw = MULTI | {"graders": {"a": EXACT | {"input": "{{ sample.output_json.x[0] }}"}, "b": CLOSE}}
    document = documents.validate_python(raw)
    assert problems_of(document) == []
    assert output_json_problems(document, "method.grader", has_json=True) == []
    (problem,) = output_json_problems(document, "method.grader", has_json=False)
    assert str(problem) == (
        "`{{ sample.output_json.x[0] }}`: completions have output_json only with a "
        "response_format that asks for JSON (method.grader.graders.a.input) → "
        "set one, or read sample.output_text"
    )


def test_a_source_that_reads_output_json_needs_a_response_format():
    source = "def grade(sample, item):\n    return float(sample['output_json'] == item['answer'])"
    parts = {"a": EXACT, "b": {"type": "python", "name": "code", "source": source}}
    document = documents.validate_python(MULTI | {"graders": parts})
    assert output_json_warnings(document, has_json=True) == []
    (warning,) = output_json_warnings(document, has_json=False)
    assert warning.startswith(
        "code: source line 2: a sample has output_json only with a response_format"
    )
    assert grader_warnings(document) == []


def test_tool_calls_need_rows_with_tools():
    document = documents.validate_python(
        EXACT | {"input": "{{ sample.output_tools[0].function.name }}"}
    )
    assert output_tools_warnings(document, has_tools=True) == []
    assert output_tools_warnings(document, has_tools=False) == [
        "{{ sample.output_tools[0].function.name }} of grader.input reads tool calls, but no row has "
        "`tools`: there are none"
    ]
    document = documents.validate_python(EXACT | {"reference": "{{ item.output_tools }}"})
    assert output_tools_warnings(document, has_tools=False) == []


def test_problems_of_the_settings_are_told_where_settings_are_given():
    document = documents.validate_python(
        MULTI | {"graders": {"a": COSINE}} | {"calculate_output": "a"}
    )
    told = [problem for problem in problems_of(document) if "similarity_model" in problem.remedy]
    assert told == []
    (problem,) = [
        problem
        for problem in problems_of(document, "grader", GradingSettings())
        if "similarity_model" in problem.remedy
    ]
    assert str(problem) == (
        "cosine needs a model that turns texts into embeddings "
        "(grader.graders.a.evaluation_metric) → "
        "set engine.grading.similarity_model to a folder or hub id of one"
    )


def test_warnings_of_a_grader():
    runs_text = {"type": "python", "source": "def grade(sample, item):\n    return eval(item['a'])"}
    raw = {"graders": {"a": EXACT, "p": runs_text}, "calculate_output": "a + p"}
    document = documents.validate_python(MULTI | raw)
    items = [{"answer": "x", "tags": [None]}, {"answer": None, "tags": [None]}, {"tags": 1}]
    assert grader_warnings(documents.validate_python(EXACT)) == []
    assert grader_warnings(document, items) == [
        "p: source line 2: eval(…) runs text inside grade: code that the model wrote can return any "
        "reward it likes there; run it with rft_sandbox.run_code",
        "{{ item.answer }} of grader.graders.a.reference is null in 1 of 3 rows, "
        "where it is rendered as `null`",
        "{{ item.tags[0] }} of grader.graders.a.reference is null in 2 of 3 rows, "
        "where it is rendered as `null`",
    ]


@pytest.mark.parametrize(
    ("shapes", "output", "expected"),
    [
        (False, "abcd", {"alike": True, "code": False}),
        (False, "zzzz", {"alike": False, "code": False}),
        (True, "abcd", {"alike": True, "code": False}),
        (False, None, {"alike": False, "code": False}),
    ],
)
def test_passes(shapes, output, expected):
    alike = CLOSE | {"name": "alike", "input": "{{ sample.output_text }}", "reference": "abcy"}
    alike |= {"evaluation_metric": "fuzzy_match", "pass_threshold": 0.75}
    code = PYTHON | {"name": "code", "pass_threshold": 2}
    raw = {"graders": {"a": alike, "c": code, "e": EXACT}, "calculate_output": "a"}
    document = documents.validate_python(MULTI | raw)
    settings = GradingSettings(pass_threshold_shapes_reward=shapes)
    with open_grader(document, settings) as grader:
        sample = {} if output is None else {"output_text": output}
        grade = grader.grade(sample, {"answer": "", "tags": [""]})
    assert passes(document, grade, settings) == expected


@pytest.mark.parametrize(
    ("threshold", "returned", "reward", "passed"), [(2, 3, 1.0, True), (-1, -2, 0.0, False)]
)
def test_a_reward_that_was_shaped_still_says_whether_it_passed(threshold, returned, reward, passed):
    source = f"def grade(sample, item): return {returned}"
    document = documents.validate_python(
        {"type": "python", "source": source, "pass_threshold": threshold}
    )
    settings = GradingSettings(pass_threshold_shapes_reward=True)
    with open_grader(document, settings) as grader:
        grade = grader.grade({}, {})
    assert grade.reward == reward
    assert passes(document, grade, settings) == {"python_grader": passed}


def test_what_gave_no_reward_neither_passes_nor_fails():
    document = documents.validate_python(CLOSE | {"pass_threshold": 0.5})
    with open_grader(document) as grader:
        grade = grader.grade({}, {})
    assert grade.reward is None
    assert passes(document, grade, GradingSettings()) == {}


@pytest.mark.parametrize("threshold", [True, "0.5", float("nan"), float("inf"), []])
def test_a_threshold_is_a_finite_number(threshold):
    for raw in (CLOSE, PYTHON):
        assert documents.validate_python(raw | {"pass_threshold": 1}).pass_threshold == 1.0
        with pytest.raises(ValidationError):
            documents.validate_python(raw | {"pass_threshold": threshold})


def test_graders_start_without_torch():
    script = (
        "import sys, rft.graders; print([m for m in sys.modules if m in ('torch','transformers')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
