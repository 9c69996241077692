import pytest
from pydantic import ValidationError

from rft.graders import GradingSettings, StringCheck, open_grader, problems_of
from rft.types import Grade


def check(operation, text, reference, **settings):
    document = StringCheck(
        type="string_check",
        name="exact",
        input="{{ sample.output_text }}",
        reference="{{ item.answer }}",
        operation=operation,
    )
    with open_grader(document, GradingSettings(**settings)) as grader:
        sample = {} if text is None else {"output_text": text}
        return grader.grade(sample, {} if reference is None else {"answer": reference})


@pytest.mark.parametrize(
    ("operation", "text", "reference", "reward"),
    [
        ("eq", "Paris", "Paris", 1.0),
        ("eq", "paris", "Paris", 0.0),
        ("eq", "Paris ", "Paris", 0.0),
        ("eq", "", "", 1.0),
        ("eq", "3", 3, 1.0),
        ("eq", "3.0", 3, 0.0),
        ("ne", "Paris", "Paris", 0.0),
        ("ne", "Rome", "Paris", 1.0),
        ("neq", "Paris", "Paris", 0.0),
        ("neq", "Rome", "Paris", 1.0),
        ("like", "It is Paris.", "Paris", 1.0),
        ("like", "It is PARIS.", "Paris", 0.0),
        ("like", "Par", "Paris", 0.0),
        ("like", "anything", "", 1.0),
        ("ilike", "It is PARIS.", "Paris", 1.0),
        ("ilike", "STRASSE", "straße", 1.0),
        ("ilike", "Rome", "Paris", 0.0),
    ],
)
def test_reward(operation, text, reference, reward):
    grade = check(operation, text, reference)
    expected = Grade("exact", "string_check", reward, latency=grade.latency)
    assert grade == expected
    assert grade.latency > 0


@pytest.mark.parametrize(
    ("text", "reference", "on_exception", "reward"),
    [
        (None, "Paris", "minimum", 0.0),
        (None, "Paris", "exclude", None),
        ("Paris", None, "minimum", None),
        ("Paris", None, "exclude", None),
    ],
)
def test_missing_variable(text, reference, on_exception, reward):
    grade = check("ne", text, reference, on_exception=on_exception)
    assert grade.reward == reward
    assert list(grade.errors) == ["invalid_variable_error"]


LEGAL = {"type": "string_check", "name": "n", "input": "", "reference": "", "operation": "eq"}


@pytest.mark.parametrize(
    "change",
    [{"name": ""}, {"name": None}, {"operation": "equals"}, {"pass_threshold": 1.0}, {"input": 3}],
)
def test_illegal_documents(change):
    StringCheck.model_validate(LEGAL)
    with pytest.raises(ValidationError):
        StringCheck.model_validate(LEGAL | change)


@pytest.mark.parametrize("field", ["name", "input", "reference", "operation"])
def test_required_fields(field):
    with pytest.raises(ValidationError, match=field):
        StringCheck.model_validate({key: LEGAL[key] for key in LEGAL if key != field})


def test_problems_of_both_templates():
    document = StringCheck.model_validate(LEGAL | {"input": "{{ x }}", "reference": "{{ y"})
    places = [problem.where for problem in problems_of(document, "method.reinforcement.grader")]
    assert places == ["method.reinforcement.grader.input", "method.reinforcement.grader.reference"]
