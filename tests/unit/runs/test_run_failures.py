"""What went wrong in grading, as the files of a run tell it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rft.errors import RunError
from rft.runs.failures import Place, cause_of, failing_samples, grading_errors, last_lines
from rft.runs.layout import RunFolder
from rft.runs.reader import Run
from rft.runs.writer import RunWriter

TRACEBACK = """\
Traceback (most recent call last):
  File "grader.py", line {line}, in grade
    return 1 / int(text)
               ~~~~^~~~~
{message}
"""
RUNTIME, SERVER = "python_grader_runtime_error", "python_grader_server_error"

Errors = Mapping[str, Mapping[str, str]]


def traceback(message: str, line: int = 4) -> str:
    return TRACEBACK.format(line=line, message=message)


def rows(*errors: Errors) -> list[dict[str, Any]]:
    return [
        {
            "row": number // 2,
            "sample": number % 2,
            "prompt": "p",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "completion": f"answer {number}",
            "output_text": f"answer {number}",
            "finish_reason": "stop",
            "num_tokens": 3,
            "reward": 0.0,
            "sub_rewards": {},
            "errors": raised,
            "item": {"key": number},
        }
        for number, raised in enumerate(errors)
    ]


def zero(divisor: str) -> Errors:
    return {"code": {RUNTIME: traceback(f"ValueError: invalid literal: '{divisor}'")}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with RunWriter(tmp_path / "a-1", [("both", "multi")]) as writer:
        writer.evaluation(0, rows({}, {}))
        writer.samples(1, rows({}, zero("a"), zero("b"), {}))
        down = {"code": {SERVER: "no process"}, "both": {"other_error": "1 / 0"}}
        writer.samples(2, rows(zero("c"), zero("d"), down, {}))
        writer.evaluation(2, rows(zero("e"), {}))
        writer.samples(3, rows({}, {}, {}, {}))
    return Run(RunFolder(tmp_path / "a-1"))


def test_counts_by_grader_and_kind(run: Run) -> None:
    found = grading_errors(run)
    assert found.num_completions == {"train": 12, "valid": 4}
    assert found.counts() == {
        ("code", RUNTIME): {"train": 4, "valid": 1},
        ("code", SERVER): {"train": 1, "valid": 0},
        ("both", "other_error"): {"train": 1, "valid": 0},
    }


def test_like_failures_are_one_with_the_places_of_all(run: Run) -> None:
    first, *others = grading_errors(run).causes
    assert first.places == (
        Place(1, "train", 0, 1),
        Place(1, "train", 1, 0),
        Place(2, "train", 0, 0),
        Place(2, "train", 0, 1),
        Place(2, "valid", 0, 0),
    )
    assert [failure.place for failure in first.examples] == list(first.places[:3])
    example = first.examples[0]
    assert (example.grader, example.kind) == ("code", RUNTIME)
    assert example.details == zero("a")["code"][RUNTIME]
    assert example.completion["output_text"] == "answer 1"
    assert example.completion["item"] == {"key": 1}
    assert [(cause.grader, cause.kind, len(cause.places)) for cause in others] == [
        ("code", SERVER, 1),
        ("both", "other_error", 1),
    ]


def test_one_step_and_one_kind(run: Run) -> None:
    found = grading_errors(run, step=2)
    assert found.num_completions == {"train": 4, "valid": 2}
    assert found.counts()["code", RUNTIME] == {"train": 2, "valid": 1}
    (cause,) = grading_errors(run, kind="other_error").causes
    assert (cause.grader, cause.places) == ("both", (Place(2, "train", 1, 0),))
    assert grading_errors(run, step=3).causes == ()
    assert grading_errors(run, kind="no_such_error").causes == ()


def test_every_failing_sample_by_itself(run: Run) -> None:
    found = failing_samples(run)
    assert [sample.place for sample in found] == [
        Place(1, "train", 0, 1),
        Place(1, "train", 1, 0),
        Place(2, "train", 0, 0),
        Place(2, "train", 0, 1),
        Place(2, "train", 1, 0),
        Place(2, "valid", 0, 0),
    ]
    assert [(failure.grader, failure.details) for failure in found[4].failures] == [
        ("code", "no process"),
        ("both", "1 / 0"),
    ]
    assert found[4].completion["output_text"] == "answer 2"
    assert failing_samples(run, kind="other_error") == found[4:5]
    assert failing_samples(run, step=2) == found[2:]
    assert failing_samples(run, step=3) == []


def test_a_step_of_which_nothing_is_kept(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 7 .* take one of the steps 0, 1, 2, 3"):
        grading_errors(run, step=7)
    with RunWriter(tmp_path / "b-1", []):
        empty = Run(RunFolder(tmp_path / "b-1"))
    assert grading_errors(empty).num_completions == {"train": 0, "valid": 0}
    with pytest.raises(RunError, match="it has none yet"):
        grading_errors(empty, step=1)


def test_a_damaged_file_is_named(run: Run) -> None:
    run.folder.samples_file(2).write_bytes(b"PAR1 torn")
    with pytest.raises(RunError, match=r"the file cannot be read: .*step_2"):
        grading_errors(run)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (traceback("ValueError: bad 'x'"), traceback("ValueError: of two lines\nin its message")),
        (traceback("KeyError: 'a'"), traceback("KeyError: 'b'") + "output:\nprinted\n"),
        ("grade returned 'a' (str); it must return a finite number",
         "grade returned 'bcd' (str); it must return a finite number"),
        ("calculate_output '1 / x' with x = 0: float division by zero",
         "calculate_output '1 / x' with x = -0.5: math domain error"),
    ],
)  # fmt: skip
def test_one_cause_whatever_the_values(one: str, other: str) -> None:
    assert cause_of(one) == cause_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (traceback("ValueError: bad"), traceback("KeyError: bad")),
        (traceback("ValueError: bad"), traceback("ValueError: bad", line=5)),
        ("timeout after 2 s", "memory limit 64 MB"),
        ("grade returned 'a' (str)", "grade returned None (NoneType)"),
    ],
)
def test_different_causes(one: str, other: str) -> None:
    assert cause_of(one) != cause_of(other)


def test_the_last_lines_are_the_place_and_the_exception() -> None:
    details = traceback("ZeroDivisionError: division by zero") + "output:\nlook\nhere\n"
    assert last_lines(details, 3) == (
        '  File "grader.py", line 4, in grade\n'
        "    return 1 / int(text)\n"
        "ZeroDivisionError: division by zero"
    )
    assert last_lines("timeout after 2 s", 3) == "timeout after 2 s"
    assert last_lines("", 3) == ""
