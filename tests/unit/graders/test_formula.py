import pytest

from rft.errors import GraderError
from rft.graders.fault import GradingFault
from rft.graders.formula import parse_formula

KEYS = {"a": 0.5, "b": 2.0, "c": -3.0, "größe_1": 4.0}


def value(text):
    return parse_formula(text, KEYS, "grader.calculate_output").value(KEYS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", 0.5),
        ("0.5 * a + 0.5 * b", 1.25),
        ("1 - 2 - 3", -4.0),
        ("8 / 4 / 2", 1.0),
        ("2 + 3 * 4", 14.0),
        ("(2 + 3) * 4", 20.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("(-2) ^ 2", 4.0),
        ("2 ^ -2", 0.25),
        ("2 ^ -2 ^ 2", 0.0625),
        ("--2", 2.0),
        ("2 * -3", -6.0),
        ("2 - -3", 5.0),
        ("1e-9", 1e-9),
        ("1.E+2 + .5", 100.5),
        ("a / (b + 1e-9)", 0.5 / (2.0 + 1e-9)),
        ("min(a, b, c)", -3.0),
        ("max(a, b, c)", 2.0),
        ("min(a)", 0.5),
        ("abs(c)", 3.0),
        ("floor(a)", 0.0),
        ("ceil(a)", 1.0),
        ("floor(-a)", -1.0),
        ("exp(0)", 1.0),
        ("sqrt(b * b)", 2.0),
        ("log(1)", 0.0),
        ("größe_1 / 2", 2.0),
        ("\n a\t+\n1 ", 1.5),
        ("max(0, min(1, a + b))", 1.0),
    ],
)
def test_value(text, expected):
    result = value(text)
    assert isinstance(result, float)
    assert result == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "unexpected end at column 1 of ''"),
        ("a +", "unexpected end at column 4 of 'a +'"),
        ("a b", "unexpected 'b' at column 3 of 'a b'"),
        ("2a", "unexpected 'a' at column 2 of '2a'"),
        ("(a", "unexpected end, ')' is missing at column 3 of '(a'"),
        ("a)", "unexpected ')' at column 2 of 'a)'"),
        ("+a", "unexpected '+' at column 1 of '+a'"),
        ("a ** 2", "unexpected '**' at column 3 of 'a ** 2'"),
        ("a % 2", "unexpected '%' at column 3 of 'a % 2'"),
        ("a.real", "unexpected '.' at column 2 of 'a.real'"),
        ("a if b else c", "unexpected 'if' at column 3 of 'a if b else c'"),
        ("'x'", 'unexpected "\'" at column 1 of "\'x\'"'),
        ("a > 1", "unexpected '>' at column 3 of 'a > 1'"),
        ("min()", "unexpected ')' at column 5 of 'min()'"),
        ("sqrt(a, b)", "sqrt takes one value, not 2, at column 1 of 'sqrt(a, b)'"),
        ("eval(a)", "unknown function 'eval' at column 1 of 'eval(a)'"),
        ("a(1)", "unknown function 'a' at column 1 of 'a(1)'"),
        ("1e999", "1e999 is too large a number at column 1 of '1e999'"),
        ("a + min", "'min' at column 5 is not one of the graders"),
        ("1" * 2001, "the formula has 2001 characters"),
    ],
)
def test_syntax_error(text, what):
    with pytest.raises(GraderError) as caught:
        value(text)
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == (what, "grader.calculate_output")
    assert problem.remedy


def test_all_unknown_names_are_told_with_the_nearest_key():
    with pytest.raises(GraderError) as caught:
        parse_formula("exact + stile", {"exact_match": 0, "style": 0}, "f")
    assert [str(problem) for problem in caught.value.problems] == [
        "'exact' at column 1 is not one of the graders (f) → the keys are exact_match, style, "
        "did you mean 'exact_match'?",
        "'stile' at column 9 is not one of the graders (f) → the keys are exact_match, style, "
        "did you mean 'style'?",
    ]


def test_depth_is_bounded_and_length_is_not_depth():
    assert value("(" * 49 + "a" + ")" * 49) == 0.5
    with pytest.raises(GraderError, match="nested more than 50 deep at column 51"):
        value("(" * 50 + "a" + ")" * 50)
    assert value("+".join(["a"] * 1000)) == 500.0
    assert value("^".join(["1"] * 1000)) == 1.0
    assert value("-" * 1998 + "a") == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "a / (b - 2)",
        "0 ^ -1",
        "c ^ 0.5",
        "sqrt(c)",
        "log(0)",
        "log(c)",
        "exp(1000)",
        "10 ^ 400",
        "1e308 * 10",
        "1e308 + 1e308",
        "1e308 * 10 - 1e308 * 10",
        "min(1, 1e308 * 10)",
        "min(1, 1e308 + 1e308)",
    ],
)
def test_a_value_that_does_not_exist_is_the_samples_fault(text):
    with pytest.raises(GradingFault) as caught:
        value(text)
    assert caught.value.flag == "other_error"
    assert caught.value.of_sample


def test_a_fault_tells_the_formula_and_the_values():
    with pytest.raises(GradingFault) as caught:
        value("a / (b - 2)")
    expected = "calculate_output 'a / (b - 2)' with a = 0.5, b = 2: float division by zero"
    assert caught.value.details == expected
