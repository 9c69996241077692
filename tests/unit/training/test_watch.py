"""Each warning comes once, at the right step, and again only after its condition has ended."""

from collections.abc import Mapping
from typing import Any

import pytest
from made import make_evaluation, make_grade, make_group, make_job

from rft.training.evaluation import Evaluation
from rft.training.trainer import StepRecord
from rft.training.watch import EXACT_GAP, INEXACT_GAP, Watch
from rft.types import Group

HEALTHY: dict[str, Any] = {
    "train_reward_mean": 0.5,
    "completion_tokens_mean": 20.0,
    "rollout/truncated_fraction": 0.2,
    "rollout/repeated_fraction": 0.0,
    "rollout/reward_length_correlation": 0.0,
    "rollout/distinct_fraction": 1.0,
    "rollout/logprob_gap": 1e-6,
    "optimizer/trained_tokens": 10,
    "optimizer/update_norm": 0.1,
    "optimizer/skipped_updates": 0,
}
LIVELY, DULL = make_group(1.0, 0.0), make_group(0.5, 0.5)

NOT_MOVING = {"optimizer/update_norm": 0.0}
TRUNCATED = {"rollout/truncated_fraction": 1.0}
GAP = {"rollout/logprob_gap": 0.01}


def new_watch(is_exact: bool = True, counters: Mapping[str, float] | None = None) -> Watch:
    return Watch(is_exact, make_job().grader, counters)


def warn(watch: Watch, group: Group = LIVELY, step: int = 1, **metrics: Any) -> list[str]:
    record = StepRecord(step, (group,), ((1.0, -1.0),), (), (), {})
    return watch.step(record, HEALTHY | metrics)


def pattern(watch: Watch, conditions: str, group: Group = LIVELY, **metrics: Any) -> str:
    """For each step, `x` with the condition and `.` without: `!` where there was one warning."""
    counts = [
        len(warn(watch, group, **metrics)) if condition == "x" else len(warn(watch))
        for condition in conditions
    ]
    return "".join(".!"[count] for count in counts)


@pytest.mark.parametrize(
    ("conditions", "warnings"),
    [
        ("xxx", "..!"),
        ("xxxxxxx", "..!...."),
        ("xx.xx.xx", "........"),
        ("xxxx.xxx", "..!....!"),
        (".xxx.x.xxx", "...!.....!"),
    ],
)
@pytest.mark.parametrize(
    ("group", "metrics"), [(DULL, {}), (LIVELY, TRUNCATED), (LIVELY, NOT_MOVING)]
)
def test_lasting_conditions(
    group: Group, metrics: dict[str, Any], conditions: str, warnings: str
) -> None:
    assert pattern(new_watch(), conditions, group, **metrics) == warnings


@pytest.mark.parametrize(
    ("conditions", "warnings"),
    [("x", "!"), ("xxx", "!.."), ("x.x", "!.!"), ("..xx.xx", "..!..!.")],
)
@pytest.mark.parametrize(
    ("group", "metrics"),
    [
        (LIVELY, GAP),
        (make_group(make_grade(None, {"other_error": "why"}), 1.0, 0.0), {}),
    ],
    ids=["gap", "grading error"],
)
def test_conditions_worth_a_word_at_once(
    group: Group, metrics: dict[str, Any], conditions: str, warnings: str
) -> None:
    assert pattern(new_watch(), conditions, group, **metrics) == warnings


def test_a_healthy_step_says_nothing() -> None:
    assert warn(new_watch()) == []


def test_counters_go_on_after_a_resume() -> None:
    first = new_watch()
    assert pattern(first, "xx", DULL) == ".."
    assert pattern(new_watch(True, first.counters), "xx", DULL) == "!."


def test_given_counters_are_not_written_to() -> None:
    given = {"zero signal": 2}
    pattern(new_watch(True, given), "x", DULL)
    assert given == {"zero signal": 2}


@pytest.mark.parametrize(
    ("is_exact", "gap", "num_warnings"),
    [
        (True, EXACT_GAP, 0),
        (True, EXACT_GAP * 1.01, 1),
        (False, EXACT_GAP * 1.01, 0),
        (False, INEXACT_GAP, 0),
        (False, INEXACT_GAP * 1.01, 1),
        (True, float("nan"), 1),
        (True, None, 0),
    ],
)
def test_the_gap_limit(is_exact: bool, gap: float | None, num_warnings: int) -> None:
    assert len(warn(new_watch(is_exact), **{"rollout/logprob_gap": gap})) == num_warnings


def test_weights_that_need_not_move_are_no_warning() -> None:
    idle = {"optimizer/update_norm": 0.0, "optimizer/trained_tokens": 0}
    assert pattern(new_watch(), "xxxx", **idle) == "...."


@pytest.mark.parametrize(
    ("distinct", "advice"), [(0.29, "raise engine.rollout.temperature"), (0.3, "partial credit")]
)
def test_what_to_do_about_a_missing_signal(distinct: float, advice: str) -> None:
    watch = new_watch(True, {"zero signal": 2})
    (text,) = warn(watch, DULL, **{"rollout/distinct_fraction": distinct})
    assert "equal rewards for 3 steps (mean reward 0.5)" in text and advice in text


@pytest.mark.parametrize(
    ("num_failed", "num_grades", "is_notable"), [(1, 10, True), (1, 11, False), (11, 11, True)]
)
def test_grading_errors_are_notable_from_a_tenth_on(
    num_failed: int, num_grades: int, is_notable: bool
) -> None:
    failed = make_grade(0.0, {"other_error": "Traceback\n  line 1\nValueError: no\n"})
    grades = [failed] * num_failed + [make_grade(1.0)] * (num_grades - num_failed)
    texts = warn(new_watch(), make_group(*grades), step=6)
    expected = [
        f"{num_failed} of {num_grades} grades of step 6 failed with other_error, for example: "
        "ValueError: no"
    ]
    assert [text for text in texts if "grades of step" in text] == (expected if is_notable else [])


def test_each_kind_of_grading_error_is_said() -> None:
    grades = [make_grade(None, {"other_error": ""}), make_grade(1.0, {"a_error": "x"})]
    texts = warn(new_watch(), make_group(*grades, 0.0))
    assert [text.split(" failed with ")[1] for text in texts] == [
        "a_error, for example: x",
        "other_error, for example: no details",
    ]


@pytest.mark.parametrize(
    ("num_unread", "num_grades", "is_said"), [(1, 2, False), (2, 3, True), (3, 3, True)]
)
def test_answers_that_cannot_be_read_are_told_when_they_are_most(
    num_unread: int, num_grades: int, is_said: bool
) -> None:
    unread = make_grade(0.0, {"sample_parse_error": "output_tools: tool call 1: it is cut off"})
    grades = [unread] * num_unread + [make_grade(1.0)] * (num_grades - num_unread)
    texts = [text for text in warn(new_watch(), make_group(*grades)) if "be read" in text]
    assert len(texts) == is_said
    if is_said:
        assert texts[0].startswith(
            f"{num_unread} of {num_grades} completions of step 1 could not be read as the job asks, "
            "for example: output_tools: tool call 1: it is cut off. Some are normal"
        )


def test_an_error_in_a_part_of_a_grader_is_seen() -> None:
    part = make_grade(None, {"other_error": "deep"})
    (text,) = warn(new_watch(), make_group(make_grade(1.0, part=part), 0.0))
    assert "deep" in text


def judged(evaluation: Evaluation) -> list[str]:
    watch = new_watch()
    return watch.evaluation(evaluation, watch.measure(None, evaluation))


@pytest.mark.parametrize(("num_ungraded", "is_said"), [(0, False), (1, False), (2, True)])
def test_an_evaluation_that_does_not_rank_is_said(num_ungraded: int, is_said: bool) -> None:
    row = [None] * num_ungraded + [1.0] * (20 - num_ungraded)
    texts = judged(make_evaluation(row, step=7))
    assert len(texts) == is_said
    if is_said:
        assert "10% of the validation samples could not be graded at step 7" in texts[0]
