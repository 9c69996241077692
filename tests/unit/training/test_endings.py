"""When a job ends or pauses before its last step, and what it then says."""

import pytest
from made import make_completion, make_grade, make_group, make_job, make_prompt

from rft.training.endings import early_end, grading_failure
from rft.training.states import Progress
from rft.types import Grade, Group

TRACEBACK = """\
Traceback (most recent call last):
  File "grader.py", line 12, in grade
    return score(sample["output_text"])
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "grader.py", line 4, in score
    return 1 / int(text)
               ~~~~^~~~~
ValueError: invalid literal for int() with base 10: '{text}'
output:
about to divide
"""


def failed(text: str, kind: str = "python_grader_runtime_error") -> Grade:
    return make_grade(0.0, {kind: text})


def group_of(*grades: Grade | float, row: int = 0) -> Group:
    texts = [f"answer {number}" for number in range(len(grades))]
    completions = [make_completion((5, number), text=text) for number, text in enumerate(texts)]
    return make_group(*grades, completions=completions, prompt=make_prompt(row))


@pytest.mark.parametrize(
    ("num_failed", "limit", "pauses"),
    [(2, 0.5, False), (3, 0.5, True), (0, 0.0, False), (1, 0.0, True), (4, 1.0, False)],
)
def test_a_job_pauses_above_the_rate_and_not_at_it(
    num_failed: int, limit: float, pauses: bool
) -> None:
    grades = [failed("x")] * num_failed + [1.0] * (4 - num_failed)
    job = make_job(f"engine.grading.error_pause_rate={limit}")
    assert bool(grading_failure(job, [group_of(*grades)], "training")) is pauses


def test_nothing_graded_is_no_failure() -> None:
    assert grading_failure(make_job(), (), "training") == []


def test_the_reason_and_an_offender_with_the_end_of_its_traceback() -> None:
    group = group_of(1.0, failed(TRACEBACK.format(text="x")), make_grade(None), row=7)
    reason, *offenders = grading_failure(make_job(), [group], "validation")
    assert reason == (
        "2 of 3 validation grades failed, more than engine.grading.error_pause_rate = 0.5 allows: "
        "1 with python_grader_runtime_error in exact"
    )
    assert offenders == [
        "validation row 7 sample 1: 'answer 1'\n"
        "  exact: python_grader_runtime_error\n"
        '      File "grader.py", line 4, in score\n'
        "        return 1 / int(text)\n"
        "    ValueError: invalid literal for int() with base 10: 'x'",
        "validation row 7 sample 2: 'answer 2'",
    ]


def test_the_three_offenders_differ_in_their_causes_as_far_as_they_can() -> None:
    same = [failed(TRACEBACK.format(text=text)) for text in ("a", "b", "c")]
    other = [failed("timeout after 2 s"), failed("connection lost", "python_grader_server_error")]
    _, *offenders = grading_failure(make_job(), [group_of(*same, *other)], "training")
    assert [text.partition(":")[0] for text in offenders] == [
        f"training row 0 sample {sample}" for sample in (0, 3, 4)
    ]
    _, *offenders = grading_failure(make_job(), [group_of(*same, other[0])], "training")
    assert [text.partition(":")[0] for text in offenders] == [
        f"training row 0 sample {sample}" for sample in (0, 3, 1)
    ]


def test_every_failing_part_of_an_offender_is_told() -> None:
    parts = {
        "code": make_grade(None, {"python_grader_server_error": "no process"}),
        "form": make_grade(0.0, {"other_error": "too long"}),
    }
    _, offender = grading_failure(make_job(), [group_of(make_grade(None, **parts))], "training")
    assert offender.splitlines()[1:] == [
        "  code: python_grader_server_error",
        "    no process",
        "  form: other_error",
        "    too long",
    ]


def progress(best: float | None, since_best: int) -> Progress:
    return Progress(12, 96, "digest", 0.1, 0.3, best, since_best, {})


@pytest.mark.parametrize(
    ("settings", "best", "since_best", "said"),
    [
        ((), 1.0, 9, None),
        (("stop_at=0.5",), None, 0, None),
        (("stop_at=0.5",), 0.49, 0, None),
        (
            ("stop_at=0.5",),
            0.5,
            3,
            "Ended at step 12: valid_reward_mean 0.500 reached stop_at 0.5",
        ),
        (("patience=3",), 0.4, 2, None),
        (
            ("patience=3",),
            0.4,
            3,
            "Ended at step 12: no new best in 3 evaluations (patience)",
        ),
    ],
)
def test_early_ends(
    settings: tuple[str, ...], best: float | None, since_best: int, said: str | None
) -> None:
    job = make_job(*(f"engine.evaluation.{setting}" for setting in settings))
    assert early_end(job, progress(best, since_best)) == said
