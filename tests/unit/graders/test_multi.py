import pytest
from pydantic import ValidationError

from rft.errors import GraderError
from rft.graders import GradingSettings, Multi, grader_parts, open_grader, problems_of
from rft.graders.grader import Grader
from rft.graders.multi import own_errors
from rft.graders.string_check import StringCheck

EXACT = {
    "type": "string_check",
    "name": "exact match",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
LENGTH = {
    "type": "python",
    "source": "def grade(sample, item): return 10 // len(sample['output_text'])",
}


def multi(calculate_output, **graders):
    return Multi.model_validate(
        {"type": "multi", "graders": graders, "calculate_output": calculate_output}
    )


def grade(document, text="abcd", item=None, **settings):
    with open_grader(document, GradingSettings(**settings)) as grader:
        item = {"answer": "abcy"} if item is None else item
        return grader.grade({"output_text": text}, item)


@pytest.mark.parametrize(
    ("formula", "reward"),
    [
        ("exact", 0.0),
        ("0.5 * exact + 0.5 * close", 0.375),
        ("10 * close - 2 * length", 3.5),
        ("-length", -2.0),
        ("max(exact, close) ^ 2", 0.5625),
        ("0.25", 0.25),
    ],
)
def test_reward_is_the_formula_unclipped(formula, reward):
    result = grade(multi(formula, exact=EXACT, close=CLOSE, length=LENGTH))
    assert (result.name, result.type, result.reward) == ("multi", "multi", reward)
    assert result.sub_rewards == {"exact": 0.0, "close": 0.75, "length": 2.0}
    assert [sub.name for sub in result.sub_grades.values()] == [
        "exact match",
        "close",
        "length",
    ]
    assert result.errors == {}
    assert result.latency >= sum(sub.latency for sub in result.sub_grades.values())


def test_an_ungraded_part_leaves_the_whole_ungraded():
    result = grade(multi("exact + length", exact=EXACT, length=LENGTH), item={})
    assert result.reward is None
    assert result.sub_rewards == {"exact": None, "length": 2.0}
    assert result.errors == {
        "invalid_variable_error": "exact: {{ item.answer }}: item has no 'answer'"
    }


def test_an_ungraded_part_that_the_formula_does_not_read_changes_nothing():
    result = grade(multi("length", exact=EXACT, length=LENGTH), item={})
    assert result.reward == 2.0
    assert result.sub_rewards == {"exact": None, "length": 2.0}
    assert list(result.errors) == ["invalid_variable_error"]


@pytest.mark.parametrize(("on_exception", "reward"), [("minimum", 1.0), ("exclude", None)])
def test_a_part_at_its_minimum_enters_the_formula(on_exception, reward):
    document = multi("length + 1", length=LENGTH)
    result = grade(document, text="", on_exception=on_exception)
    assert result.reward == reward
    assert "ZeroDivisionError" in result.errors["python_grader_runtime_error"]
    assert result.errors["python_grader_runtime_error"].startswith("length: Traceback")


@pytest.mark.parametrize(("on_exception", "reward"), [("minimum", 0.0), ("exclude", None)])
def test_a_formula_that_fails_on_a_sample(on_exception, reward):
    result = grade(multi("1 / exact", exact=EXACT), on_exception=on_exception)
    assert result.reward == reward
    assert result.sub_rewards == {"exact": 0.0}
    assert result.errors == {
        "other_error": "calculate_output '1 / exact' with exact = 0: float division by zero"
    }


def test_flags_of_several_parts_stand_together():
    twice = {"a": EXACT, "b": CLOSE}
    assert grade(multi("a + b", **twice), item={}).errors == {
        "invalid_variable_error": "a: {{ item.answer }}: item has no 'answer'; "
        "b: {{ item.answer }}: item has no 'answer'"
    }


def test_its_own_errors_are_told_from_those_of_its_parts():
    document = multi("1 / exact + close", exact=EXACT, close=CLOSE)
    result = grade(document, text="x" * 100_001)
    assert result.errors["other_error"].startswith("close: close.input has 100001 characters")
    assert own_errors(result) == {
        "other_error": "calculate_output '1 / exact + close' with close = 0, exact = 0: "
        "float division by zero"
    }
    assert own_errors(grade(multi("close", close=CLOSE), text="x" * 100_001)) == {}
    assert own_errors(grade(multi("1 / exact", exact=EXACT))).keys() == {"other_error"}
    part = result.sub_grades["close"]
    assert own_errors(part) == part.errors


class Held(StringCheck):
    """A string_check that logs its closing; with the name `broken` it fails after that."""

    log: list[str]
    opens: bool = True

    def open(self, settings):
        if not self.opens:
            raise GraderError("cannot open")
        return HeldGrader(self)


class HeldGrader(Grader):
    def __init__(self, document):
        self._document = document

    def close(self):
        self._document.log.append(self._document.name)
        if self._document.name == "broken":
            raise OSError("cannot close")


def held(log, name, opens=True):
    # constructed, as validation copies the list
    return Held.model_construct(**EXACT | {"name": name}, log=log, opens=opens)


def test_a_part_that_does_not_open_closes_those_before_it():
    log = []
    parts = {"a": held(log, "a"), "b": held(log, "b"), "c": held(log, "c", opens=False)}
    document = Multi.model_construct(name="m", graders=parts, calculate_output="a + b + c")
    with pytest.raises(GraderError, match="cannot open"):
        document.open(GradingSettings())
    assert sorted(log) == ["a", "b"]


@pytest.mark.parametrize("broken", ["a", "c"])
def test_a_part_that_does_not_close_leaves_no_other_open(broken):
    log = []
    parts = {key: held(log, "broken" if key == broken else key) for key in ("a", "b", "c")}
    document = Multi.model_construct(name="m", graders=parts, calculate_output="a + b + c")
    grader = document.open(GradingSettings())
    assert log == []
    with pytest.raises(OSError, match="cannot close"):
        grader.close()
    assert len(log) == 3 and {"b", "broken"} < set(log)


def test_all_problems_at_once():
    document = multi(
        "exact + clos",
        exact=EXACT | {"input": "{{ x }}"},
        close=CLOSE,
        **{"a-b": LENGTH | {"source": "def f(): pass"}, "max": LENGTH | {"name": "close"}},
    )
    assert [(problem.where, problem.what) for problem in problems_of(document, "g")] == [
        ("g.graders", "'a-b' cannot be a name in calculate_output"),
        ("g.graders", "'max' cannot be a name in calculate_output"),
        ("g.graders.max.name", "the name 'close' is taken by g.graders.close"),
        ("g.graders.exact.input", "`{{ x }}` is not a template expression"),
        ("g.graders.a-b.source", "the source defines no function grade at its top level"),
        ("g.calculate_output", "'clos' at column 9 is not one of the graders"),
    ]
    with pytest.raises(GraderError):
        open_grader(document)


def test_the_multis_own_name_is_taken_too():
    document = multi("a", a=EXACT | {"name": "multi"})
    (problem,) = problems_of(document)
    assert str(problem) == (
        "the name 'multi' is taken by grader (grader.graders.a.name) "
        "→ give each grader its own name"
    )


def test_parts_in_document_order():
    assert grader_parts(multi("a", c=CLOSE, a=EXACT, b=LENGTH)) == [
        ("multi", "multi"),
        ("close", "text_similarity"),
        ("exact match", "string_check"),
        ("b", "python"),
    ]


def test_a_part_without_a_name_takes_its_key():
    document = multi("first + second", first=LENGTH, second=LENGTH | {"name": "own"})
    assert grader_parts(document)[1:] == [("first", "python"), ("own", "python")]
    assert problems_of(document) == []
    assert Multi.model_validate_json(document.model_dump_json()) == document
    with pytest.raises(ValidationError, match=r"graders\.a\.string_check\.name"):
        multi("a", a={key: value for key, value in EXACT.items() if key != "name"})


def test_no_multi_inside_a_multi():
    inner = {"type": "multi", "graders": {"x": EXACT}, "calculate_output": "x"}
    with pytest.raises(ValidationError, match="inner: a multi grader cannot stand inside another"):
        multi("inner", inner=inner)


@pytest.mark.parametrize("graders", [{}, [EXACT], {"a": {}}, {"a": EXACT | {"x": 1}}, None])
def test_illegal_graders(graders):
    with pytest.raises(ValidationError):
        Multi.model_validate({"type": "multi", "graders": graders, "calculate_output": "1"})
