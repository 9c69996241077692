"""The product's graders, row by row: what its documents say, with the values that follow from it.

Where the product leaves something open, our reading stands in docs/graders.md. Graders of type
endpoint have tests of their own.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from rouge_score.rouge_scorer import RougeScorer

from rft.cli.grade import product_reply, sample_of
from rft.graders import (
    Endpoint,
    GraderDocument,
    GradingSettings,
    Multi,
    Python,
    StringCheck,
    TextSimilarity,
    grader_parts,
    open_grader,
    passes,
    problems_of,
)
from rft.graders.fault import Flag
from rft.types import Grade

Document = Mapping[str, Any]
documents: TypeAdapter[GraderDocument] = TypeAdapter(GraderDocument)

FUZZY = ("fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair")
CAT = ("the cat sat on the mat", "the cat lay on a mat today")
ITEM: Document = {
    "messages": [{"role": "user", "content": "Capital of France?", "name": None}],
    "answer": "Paris",
    "answers": ["Paris", "paris"],
    "deep": {"list": [{"n": 3}], "two words": True},
    "pi": 3.5,
    "none": None,
}


def grade(raw: Document, text: str, item: Document = ITEM, **settings: Any) -> Grade:
    """One call, as the product's grader run makes it."""
    document = documents.validate_python(raw)
    with open_grader(document, GradingSettings(**settings)) as grader:
        return grader.grade(sample_of(text), item)


def reply(raw: Document, text: str, item: Document = ITEM) -> dict[str, Any]:
    """The product's answer to a grader run."""
    document, settings = documents.validate_python(raw), GradingSettings()
    with open_grader(document, settings) as grader:
        graded = grader.grade(sample_of(text), item)
    return product_reply(graded, passes(document, graded, settings))


def string_check(operation: str, **fields: Any) -> dict[str, Any]:
    raw = {"type": "string_check", "name": "check", "operation": operation}
    return {**raw, "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}", **fields}


def text_similarity(metric: str, **fields: Any) -> dict[str, Any]:
    raw = {"type": "text_similarity", "name": "alike", "evaluation_metric": metric}
    return {**raw, "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}", **fields}


def python(body: str, **fields: Any) -> dict[str, Any]:
    source = f"def grade(sample, item):\n    {body}"
    return {"type": "python", "source": source, **fields}


def multi(calculate_output: str, **parts: Document) -> dict[str, Any]:
    return {"type": "multi", "graders": parts, "calculate_output": calculate_output}


# 2.1 Templates


@pytest.mark.parametrize(
    ("template", "text", "rendered"),
    [
        ("{{ item.answer }}", "", "Paris"),
        ("{{item.answer}}", "", "Paris"),
        ("{{   item.answer   }}", "", "Paris"),
        ("<{{ item.answer }}>{{ item.answer }}", "", "<Paris>Paris"),
        ("{{ item.messages[0].content }}", "", "Capital of France?"),
        ("{{ item.messages[0].name }}", "", "null"),
        (
            "{{ item.messages }}",
            "",
            '[{"role": "user", "content": "Capital of France?", "name": null}]',
        ),
        ("{{ item.deep.list[0].n }}", "", "3"),
        ('{{ item.deep["two words"] }}', "", "true"),
        ("{{ item.pi }}", "", "3.5"),
        ("{{ item.none }}", "", "null"),
        ("{{ item.answers }}", "", '["Paris", "paris"]'),
        ("{{ sample.output_text }}", "Rome", "Rome"),
        ("{{ sample.output_text }}", "{{ item.answer }}", "{{ item.answer }}"),
        ("{{ sample.choices[0].message.content }}", "Rome", "Rome"),
        ("{{ sample.choices[0].message.role }}", "Rome", "assistant"),
        ("{{ sample.choices[0].index }}", "Rome", "0"),
        ("{{ sample.choices[0].finish_reason }}", "Rome", "stop"),
        ("{{ sample.output_tools }}", "Rome", "[]"),
        ("{{ sample.output_json.city }}", '{"city": "Rome"}', "Rome"),
        ("{{ sample.output_json.list[1] }}", '{"list": [1, [2]]}', "[2]"),
        ("{{ sample.output_json }}", '{"b":1,"a":"ü"}', '{"b": 1, "a": "ü"}'),
        ("{{ sample.output_json }}", "7", "7"),
        ("Paris", "anything", "Paris"),
        ("", "anything", ""),
    ],
)
def test_a_template_renders(template: str, text: str, rendered: str) -> None:
    item = {**ITEM, "it": rendered}
    result = grade(string_check("eq", input=template, reference="{{ item.it }}"), text, item)
    assert (result.reward, result.errors) == (1.0, {})


@pytest.mark.parametrize(
    ("template", "text", "reward"),
    [
        ("{{ sample.output_json }}", "no JSON", 0.0),
        ("{{ sample.output_json }}", "NaN", 0.0),
        ("{{ sample.output_json.city }}", "{}", 0.0),
        ("{{ sample.output_tools[0].function.name }}", "x", 0.0),
        ("{{ sample.choices[1] }}", "x", 0.0),
        ("{{ item.nothing }}", "x", None),
        ("{{ item.answers[2] }}", "x", None),
        ("{{ item.answer.x }}", "x", None),
        ("{{ item.none.x }}", "x", None),
    ],
)
def test_a_missing_variable_is_an_error_and_never_an_empty_text(
    template: str, text: str, reward: float | None
) -> None:
    for operation in ("eq", "ne"):
        result = grade(string_check(operation, reference=template), text)
        assert result.reward == reward
        assert list(result.errors) == ["invalid_variable_error"]


@pytest.mark.parametrize(
    "template",
    ["{{ other.x }}", "{{ item }}", "{{ sample.output_txt }}", "{{ item.x", "{{ item.x|upper }}"],
)
def test_other_namespaces_and_languages_are_refused(template: str) -> None:
    for field in ("input", "reference"):
        document = documents.validate_python(string_check("eq", **{field: template}))
        (problem,) = problems_of(document)
        assert problem.where == f"grader.{field}"


# 2.2 string_check


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [
        ("eq", "Paris", 1.0),
        ("eq", "paris", 0.0),
        ("eq", " Paris", 0.0),
        ("eq", "Paris\n", 0.0),
        ("eq", "", 0.0),
        ("ne", "Paris", 0.0),
        ("ne", "paris", 1.0),
        ("neq", "Paris", 0.0),
        ("neq", "paris", 1.0),
        ("like", "It is Paris.", 1.0),
        ("like", "It is paris.", 0.0),
        ("like", "Par", 0.0),
        ("ilike", "It is PARIS.", 1.0),
        ("ilike", "Par", 0.0),
    ],
)
def test_string_check(operation: str, text: str, reward: float) -> None:
    result = grade(string_check(operation), text)
    assert (result.name, result.type, result.reward) == ("check", "string_check", reward)


# 2.3 text_similarity


@pytest.mark.parametrize(
    ("metric", "pair", "reward"),
    [
        ("fuzzy_match", FUZZY, 0.7555555555555555),
        ("fuzzy_match", CAT, 0.7083333333333333),
        ("bleu", CAT, 0.16341219),
        ("gleu", CAT, 0.22727272727272727),
        ("meteor", CAT, 0.28985507),
        ("rouge_1", CAT, 0.6153846153846153),
        ("rouge_2", CAT, 0.18181818181818182),
        ("rouge_3", CAT, 0.0),
        ("rouge_4", CAT, 0.0),
        ("rouge_5", CAT, 0.0),
        ("rouge_l", CAT, 0.6153846153846153),
        ("rouge_1", FUZZY, 0.4),
        ("rouge_2", FUZZY, 0.25),
        ("rouge_l", FUZZY, 0.4),
    ],
)
def test_text_similarity(metric: str, pair: tuple[str, str], reward: float) -> None:
    text, reference = pair
    result = grade(text_similarity(metric), text, {"answer": reference})
    assert (result.name, result.type, result.errors) == ("alike", "text_similarity", {})
    assert result.reward == pytest.approx(reward, abs=1e-8)


@pytest.mark.parametrize(
    "metric",
    [
        "fuzzy_match",
        "bleu",
        "gleu",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ],
)
def test_equal_texts_are_as_alike_as_can_be_and_unlike_ones_are_not(metric: str) -> None:
    assert grade(text_similarity(metric), "a b c d e", {"answer": "a b c d e"}).reward == 1.0
    assert grade(text_similarity(metric), "a b c d e", {"answer": "1 2 3 4 5"}).reward == (
        pytest.approx(0.444444, abs=1e-6) if metric == "fuzzy_match" else 0.0
    )
    empty = grade(text_similarity(metric), "", {"answer": ""}).reward
    assert empty == (1.0 if metric == "fuzzy_match" else 0.0)


@pytest.mark.parametrize("pair", [CAT, FUZZY, ("The CAT!", "the cat"), ("a b", ""), ("é 1", "1 é")])
def test_rouge_is_that_of_the_rouge_score_package(pair: tuple[str, str]) -> None:
    text, reference = pair
    names = {f"rouge_{n}": f"rouge{n}" for n in range(1, 6)} | {"rouge_l": "rougeL"}
    expected = RougeScorer(list(names.values())).score(reference, text)
    for metric, theirs in names.items():
        reward = grade(text_similarity(metric), text, {"answer": reference}).reward
        assert reward == expected[theirs].fmeasure


# 2.6 python


@pytest.mark.parametrize(
    ("body", "reward"),
    [
        ("return 0.25", 0.25),
        ("return float(sample['output_text'] == item['answer'])", 1.0),
        ("return sample['choices'][0]['message']['content'] == 'Paris'", 1.0),
        ("return len(sample['output_tools'])", 0.0),
        ("return 'output_json' in sample", 0.0),
        ("return item['messages'][0]['name'] is None", 1.0),
        ("return item['deep']['list'][0]['n']", 3.0),
        ("return -2", -2.0),
        (
            "from rapidfuzz import fuzz, utils\n    return fuzz.WRatio('fuzzy wuzzy was a bear', "
            "'fuzzy wuzzy had no hair', processor=utils.default_process) / 100",
            0.7555555555555555,
        ),
    ],
)
def test_python(body: str, reward: float) -> None:
    result = grade(python(body, image_tag="2025-05-08"), "Paris")
    assert (result.name, result.type, result.errors) == ("python_grader", "python", {})
    assert result.reward == pytest.approx(reward, abs=1e-9)


def test_python_has_output_json_when_the_text_is_json() -> None:
    assert grade(python("return sample['output_json']['n']"), '{"n": 0.5}').reward == 0.5


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError('x')",
        "return None",
        "return 'x'",
        "return float('nan')",
        "return 10 ** 400",
    ],
)
def test_a_python_grade_that_is_invalid_is_0(body: str) -> None:
    result = grade(python(body), "Paris")
    assert (result.reward, list(result.errors)) == (0.0, ["python_grader_runtime_error"])
    assert grade(python(body), "Paris", on_exception="exclude").reward is None


def test_the_source_has_at_most_256_kb_and_a_grade_of_sample_and_item() -> None:
    for source in (
        "#" * 256_001,
        "x = 1",
        "def grade(sample): return 1",
        "def grade(sample, item:",
    ):
        assert (
            len(problems_of(documents.validate_python({"type": "python", "source": source}))) == 1
        )


# 2.7 multi

HALF = text_similarity("fuzzy_match", name="half", input="abcd", reference="abxy")
ONE = string_check("like", name="one", input="Paris", reference="")


@pytest.mark.parametrize(
    ("formula", "reward"),
    [
        ("0.5 * half + 0.5 * one", 0.75),
        ("half - one - 1", -1.5),
        ("one / half / 4", 0.5),
        ("3 * half ^ 2", 0.75),
        ("2 ^ 3 ^ 2", 512.0),
        ("-half ^ 2", -0.25),
        ("(-half) ^ 2", 0.25),
        ("half ^ -1", 2.0),
        ("(half + one) * 2", 3.0),
        ("min(half, one, 2)", 0.5),
        ("max(half, one)", 1.0),
        ("abs(half - one)", 0.5),
        ("floor(half) + ceil(half)", 1.0),
        ("exp(one)", 2.718281828459045),
        ("sqrt(half * half)", 0.5),
        ("log(one)", 0.0),
        ("one / (half + 1e-9)", 1.999999996),
        ("10 * half", 5.0),
        ("one", 1.0),
    ],
)
def test_multi(formula: str, reward: float) -> None:
    result = grade(multi(formula, half=HALF, one=ONE), "")
    assert (result.name, result.type, result.errors) == ("multi", "multi", {})
    assert result.reward == pytest.approx(reward, abs=1e-12)
    assert result.sub_rewards == {"half": 0.5, "one": 1.0}


@pytest.mark.parametrize(
    ("formula", "column"),
    [
        ("half +", 7),
        ("half ** 2", 6),
        ("half > 1", 6),
        ("one if half else 0", 5),
        ("abs(half, one)", 1),
        ("round(half)", 1),
        ("other", 1),
        ("half; one", 5),
        ("", 1),
    ],
)
def test_a_bad_formula_is_told_with_its_column(formula: str, column: int) -> None:
    document = documents.validate_python(multi(formula, half=HALF, one=ONE))
    (problem,) = problems_of(document)
    assert f" at column {column}" in problem.what
    assert problem.where == "grader.calculate_output"


@pytest.mark.parametrize(
    "formula", ["1 / (one - 1)", "sqrt(-one)", "log(0)", "exp(1000)", "-one ^ 0.5 * 1e308 * 10"]
)
def test_a_formula_without_a_value_is_an_error_of_the_sample(formula: str) -> None:
    result = grade(multi(formula, half=HALF, one=ONE), "")
    assert (result.reward, list(result.errors)) == (0.0, ["other_error"])
    assert result.sub_rewards == {"half": 0.5, "one": 1.0}


def test_parts_take_their_key_for_a_name_and_no_multi_stands_in_another() -> None:
    document = documents.validate_python(multi("p", p=python("return 1"), half=HALF))
    assert grader_parts(document) == [
        ("multi", "multi"),
        ("p", "python"),
        ("half", "text_similarity"),
    ]
    with pytest.raises(ValidationError, match="a multi grader cannot stand inside another"):
        documents.validate_python(multi("m", m=multi("one", one=ONE)))


# Documents


CHECK, ALIKE, CODE = string_check("eq"), text_similarity("bleu"), python("return 1")
BOTH = multi("half + one", half=HALF, one=ONE)


@pytest.mark.parametrize(
    ("raw", "change"),
    [
        (CHECK, {}),
        (ALIKE, {}),
        (ALIKE, {"pass_threshold": 0.5}),
        (ALIKE, {"pass_threshold": None}),
        (ALIKE, {"evaluation_metric": "cosine"}),
        (CODE, {}),
        (CODE, {"name": "n", "image_tag": "alpha", "pass_threshold": 1}),
        (CODE, {"image_tag": None}),
        (BOTH, {}),
        (BOTH, {"name": "n"}),
    ],
)
def test_a_legal_document_stays_what_it_is(raw: Document, change: Document) -> None:
    document = documents.validate_python({**raw, **change})
    written = documents.dump_python(document)
    assert {key: written[key] for key in change} == change
    assert documents.validate_python(written) == document
    assert written["name"]


@pytest.mark.parametrize(
    ("raw", "required"),
    [
        (CHECK, ["name", "input", "reference", "operation"]),
        (ALIKE, ["name", "input", "reference", "evaluation_metric"]),
        (CODE, ["source"]),
        (BOTH, ["graders", "calculate_output"]),
    ],
)
def test_what_is_required_is_required_and_nothing_else_is_known(
    raw: Document, required: list[str]
) -> None:
    for missing in [*required, "type"]:
        with pytest.raises(ValidationError):
            documents.validate_python({key: raw[key] for key in raw if key != missing})
    for unknown in ("invalid_grade", "range", "Name"):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            documents.validate_python({**raw, unknown: 0})


@pytest.mark.parametrize(
    ("raw", "change"),
    [
        (CHECK, {"operation": "equals"}),
        (CHECK, {"operation": "EQ"}),
        (CHECK, {"pass_threshold": 0.5}),
        (CHECK, {"reference": 3}),
        (CHECK, {"name": ""}),
        (ALIKE, {"evaluation_metric": "rouge_6"}),
        (ALIKE, {"evaluation_metric": "rouge"}),
        (ALIKE, {"pass_threshold": "0.5"}),
        (CODE, {"source": ["def grade(sample, item): return 1"]}),
        (BOTH, {"graders": [HALF, ONE]}),
        (BOTH, {"graders": {}}),
        (BOTH, {"calculate_output": 1}),
        (BOTH, {"type": "score"}),
    ],
)
def test_other_values_are_refused(raw: Document, change: Document) -> None:
    with pytest.raises(ValidationError):
        documents.validate_python({**raw, **change})


@pytest.mark.parametrize(
    ("threshold", "shapes", "reward", "passed"),
    [
        (0.5, False, 0.5, {"half": True}),
        (0.6, False, 0.5, {"half": False}),
        (0.5, True, 1.0, {"half": True}),
        (0.6, True, 0.0, {"half": False}),
        (None, True, 0.5, {}),
    ],
)
def test_pass_threshold_is_reported_and_shapes_the_reward_only_when_asked(
    threshold: float | None, shapes: bool, reward: float, passed: dict[str, bool]
) -> None:
    raw = {**HALF, "pass_threshold": threshold}
    settings = GradingSettings(pass_threshold_shapes_reward=shapes)
    result = grade(raw, "", pass_threshold_shapes_reward=shapes)
    assert result.reward == reward
    assert passes(documents.validate_python(raw), result, settings) == passed


DOCS = (Path(__file__).parents[2] / "docs" / "graders.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [Endpoint, Multi, Python, StringCheck, TextSimilarity])
def test_the_documentation_has_every_field_and_choice(part: type[BaseModel]) -> None:
    kind = get_args(part.model_fields["type"].annotation)[0]
    section = DOCS.split(f"\n### {kind}\n")[1].split("\n##")[0]
    fields = part.model_fields.items()
    choices = {str(choice) for _, field in fields for choice in get_args(field.annotation)}
    words = {name for name, _ in fields} | {
        word for word in choices if re.fullmatch("[a-z_]+", word)
    }
    assert sorted(word for word in words - {"type", kind} if f"`{word}`" not in section) == []


def test_the_documentation_has_every_flag() -> None:
    table = DOCS.split("\n## Errors\n")[1].split("\n##")[0]
    assert [flag for flag in get_args(Flag) if f"`{flag}`" not in table] == []


# 2.9 The reply of a run

NO_ERRORS = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "sample_parse_error_details": None,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "invalid_variable_error_details": None,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_server_error_details": None,
    "model_grader_refusal_error": False,
    "model_grader_refusal_error_details": None,
    "model_grader_parse_error": False,
    "model_grader_parse_error_details": None,
    "model_grader_exceeded_max_tokens_error": False,
    "endpoint_grader_internal_error": False,
    "endpoint_grader_internal_error_details": None,
    "endpoint_grader_server_error": False,
    "endpoint_grader_server_error_details": None,
    "endpoint_grader_safety_check_error": False,
}


def test_a_reply_has_the_products_fields() -> None:
    answer = reply(multi("half + one", half={**HALF, "pass_threshold": 0.4}, one=ONE), "")
    latency = answer["metadata"].pop("execution_time")
    assert latency > 0
    assert answer == {
        "reward": 1.5,
        "metadata": {
            "name": "multi",
            "type": "multi",
            "errors": NO_ERRORS,
            "scores": {"half": 0.5, "one": 1.0},
            "passed": {"half": True},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "sub_rewards": {"half": 0.5, "one": 1.0},
        "model_grader_token_usage_per_model": {},
    }


@pytest.mark.parametrize(
    ("raw", "reward", "flag", "details"),
    [
        (
            string_check("eq", reference="{{ item.b }}"),
            None,
            "invalid_variable_error",
            "{{ item.b }}: item has no 'b'",
        ),
        (
            string_check("eq", input="{{ sample.output_json.b }}"),
            0.0,
            "invalid_variable_error",
            "{{ sample.output_json.b }}: this sample has no 'output_json'",
        ),
        (
            python("raise KeyError('b')"),
            0.0,
            "python_grader_runtime_error",
            "Traceback (most recent call last):\n"
            '  File "grader.py", line 2, in grade\n'
            "    raise KeyError('b')\n"
            "KeyError: 'b'",
        ),
        (
            multi("1 / (one - 1)", one=ONE),
            0.0,
            "other_error",
            "calculate_output '1 / (one - 1)' with one = 1: float division by zero",
        ),
    ],
)
def test_a_reply_raises_the_products_flags(
    raw: Document, reward: float | None, flag: str, details: str
) -> None:
    answer = reply(raw, "Paris")
    assert answer["reward"] == reward
    errors = answer["metadata"]["errors"]
    assert errors.pop(f"{flag}_details").rstrip() == details
    assert errors.pop(flag) is True
    assert errors == {name: none for name, none in NO_ERRORS.items() if flag not in name}
