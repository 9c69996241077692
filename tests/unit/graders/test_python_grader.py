import pytest
from pydantic import ValidationError

from rft.errors import GraderError
from rft.graders import GradingSettings, Python, open_grader, problems_of

SAMPLE = {
    "output_text": "Paris",
    "output_tools": [],
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris"},
            "finish_reason": "stop",
        }
    ],
}
ITEM = {"answer": "Paris", "n": 7, "deep": {"list": [1.5, None, "\ud83d é 你"]}}
RUNTIME, SERVER = "python_grader_runtime_error", "python_grader_server_error"


def grader(source, **settings):
    document = Python(type="python", source=source)
    assert problems_of(document) == []
    return open_grader(document, GradingSettings(**settings))


def grade(source, sample=SAMPLE, item=ITEM, **settings):
    with grader(source, **settings) as opened:
        return opened.grade(sample, item)


@pytest.mark.parametrize(
    ("body", "reward"),
    [
        ("1.0", 1.0),
        ("0.1", 0.1),
        ("-3", -3.0),
        ("True", 1.0),
        ("False", 0.0),
        ("float(sample['output_text'] == item['answer'])", 1.0),
        ("item['n'] + item['deep']['list'][0]", 8.5),
        ("len(item['deep']['list'][2])", 5.0),
        ("sample['choices'][0]['message']['content'] == 'Paris'", 1.0),
        ("sorted(sample) == ['choices', 'output_text', 'output_tools']", 1.0),
        ("__import__('fractions').Fraction(1, 4)", 0.25),
        ("__import__('numpy').float32(0.5)", 0.5),
    ],
)
def test_reward(body, reward):
    result = grade(f"def grade(sample, item):\n    return {body}")
    assert result.errors == {}
    assert result.reward == reward
    assert (result.name, result.type) == ("python_grader", "python")
    assert result.latency > 0


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ("return None", "grade returned None (NoneType); it must return a finite number"),
        ("return '1.0'", "grade returned '1.0' (str); it must return a finite number"),
        ("return float('nan')", "grade returned nan (float); it must return a finite number"),
        ("return float('inf')", "grade returned inf (float); it must return a finite number"),
        ("return [1.0]", "grade returned [1.0] (list); it must return a finite number"),
        ("return 1j", "grade returned 1j (complex); it must return a finite number"),
        ("return 10 ** 400", "OverflowError: int too large to convert to float"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("return grade(sample, item)", "RecursionError: maximum recursion depth exceeded"),
        ("input()", "EOFError"),
        (
            "import os; os._exit(0)",
            "grade ended its process with exit code 0 before it returned",
        ),
        (
            "import os; os.abort()",
            "grade ended its process by signal 6 (Aborted) before it returned",
        ),
    ],
)
def test_fault_of_the_sample(body, details):
    source = f"def grade(sample, item):\n    {body}"
    for on_exception, reward in (("minimum", 0.0), ("exclude", None)):
        result = grade(source, on_exception=on_exception)
        assert result.reward == reward
        assert list(result.errors) == [RUNTIME]
        assert details in result.errors[RUNTIME]


def test_traceback_has_the_lines_of_the_source():
    source = "\n".join(
        [
            "def ratio(a, b):",
            "    return a / b",
            "",
            "def grade(sample, item):",
            "    return ratio(1, 0)",
        ]
    )
    assert grade(source).errors[RUNTIME].splitlines() == [
        "Traceback (most recent call last):",
        '  File "grader.py", line 5, in grade',
        "    return ratio(1, 0)",
        "           ^^^^^^^^^^^",
        '  File "grader.py", line 2, in ratio',
        "    return a / b",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


def test_details_are_capped_and_end_with_the_output():
    source = (
        "def grade(sample, item):\n    print('seen', item['n'])\n    raise ValueError('x' * 10**6)"
    )
    details = grade(source).errors[RUNTIME]
    assert details.endswith("x\n\noutput:\nseen 7")
    assert len(details) < 4200


@pytest.mark.parametrize(
    ("top_level", "details"),
    [
        (
            "__import__('no_such_package')",
            "ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "import os; os._exit(3)",
            "the source ended its process before any sample (exit code 3)",
        ),
        (
            "while True: pass",
            "timeout after 0.5 s while the source ran, before any sample",
        ),
    ],
)
def test_a_source_that_fails_by_itself_is_no_fault_of_the_samples(top_level, details):
    source = f"{top_level}\ndef grade(sample, item):\n    return 1.0"
    with grader(source, timeout_seconds=0.5) as opened:
        first, second = opened.grade(SAMPLE, ITEM), opened.grade(SAMPLE, ITEM)
    assert first.reward is None
    assert details in first.errors[RUNTIME]
    assert second.errors == first.errors
    assert second.latency < 0.2, "a source that failed is not run again"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("", "the source defines no function grade at its top level"),
        (
            "def grade(sample, item):\n  return (",
            "line 2, column 10: '(' was never closed: 'return ('",
        ),
        (
            "import no_such_package\ndef grade(sample, item): return 1",
            "line 1: the package no_such_package is not installed",
        ),
    ],
)
def test_problems_of_the_source(source, what):
    document = Python(type="python", source=source)
    (problem,) = problems_of(document, "method.reinforcement.grader")
    assert problem.what.startswith(what)
    assert problem.where == "method.reinforcement.grader.source"
    assert problem.remedy
    with pytest.raises(GraderError):
        open_grader(document)


@pytest.mark.parametrize(
    "source",
    [
        "grade = lambda sample, item: 1",
        "def grade(*arguments): return 1",
        "def grade(sample, item, strict=False): return 1",
        "def grade(sample, item=None, /, *, strict=False): return 1",
        "if True:\n  def grade(sample, item): return 1",
        "class Grade:\n  def __call__(self, sample, item): return 1\ngrade = Grade()",
        "# " + "é" * 100_000 + "\ndef grade(sample, item): return '\\d'and 1",
    ],
)
def test_sources_without_problems(source):
    assert grade(source).reward == 1.0


def test_document():
    document = Python.model_validate(
        {"type": "python", "source": "", "image_tag": "2025-05-08", "pass_threshold": 0.5}
    )
    assert document.name == "python_grader"
    for change in ({"name": ""}, {"nam": "x"}, {"pass_threshold": float("nan")}):
        with pytest.raises(ValidationError):
            Python.model_validate({"type": "python", "source": ""} | change)


@pytest.mark.parametrize(
    ("shapes", "reward"),
    [(False, 0.5), (True, 0.0)],
)
def test_pass_threshold(shapes, reward):
    document = Python(
        type="python", source="def grade(sample, item): return 0.5", pass_threshold=0.6
    )
    settings = GradingSettings(pass_threshold_shapes_reward=shapes)
    with open_grader(document, settings) as opened:
        assert opened.grade(SAMPLE, ITEM).reward == reward


def test_an_item_that_is_no_json_is_graded_as_text():
    from datetime import date

    source = "def grade(sample, item): return item['day'] == '2026-01-31'"
    assert grade(source, item={"day": date(2026, 1, 31)}).reward == 1.0


def test_a_reward_too_large_for_sums_is_a_fault():
    with grader("def grade(sample, item): return item['reward']") as opened:
        assert opened.grade(SAMPLE, {"reward": -1e9}).reward == -1e9
        grade = opened.grade(SAMPLE, {"reward": 1e200})
    assert grade.reward == 0
    assert grade.errors == {"other_error": "the reward 1e+200 lies beyond ±1e+09"}


def test_temporary_files_go_into_the_samples_folder():
    source = """
import tempfile
tempfile.gettempdir()
def grade(sample, item):
    with tempfile.NamedTemporaryFile("w") as file:
        return float(file.name.startswith(__import__("os").getcwd()))
"""
    with grader(source) as opened:
        assert opened.grade(SAMPLE, {}).reward == 1.0
