"""The numbers of the watch against reward hacking, in literal cases."""

import math
from dataclasses import replace
from typing import Any

import pytest
from made import make_completion, make_evaluation, make_grade, make_group, make_prompt
from pydantic import TypeAdapter

from rft.graders import GraderDocument
from rft.training.evaluation import CanaryGrade
from rft.training.trainer import StepRecord
from rft.training.watch_metrics import (
    canary_errors,
    canary_metrics,
    contributions,
    correlation_within_groups,
    evaluation_watch_metrics,
    pearson,
    repeated_fraction,
    rollout_watch_metrics,
    shared_answers,
    train_valid_gap,
)
from rft.types import Group


def group_of_lengths(ordinal: int, **lengths_by_reward: int) -> Group:
    """A group with a completion of that many tokens per reward, `r5` being 0.5 and `none` ungraded."""
    rewards = [
        None if name == "none" else int(name[1:]) / 10 ** len(name[2:])
        for name in lengths_by_reward
    ]
    completions = [make_completion((5,) * length) for length in lengths_by_reward.values()]
    return make_group(*rewards, ordinal=ordinal, completions=completions)


def group_of_texts(row: int, *texts: str, **item: Any) -> Group:
    completions = [make_completion(text=text) for text in texts]
    prompt = make_prompt(row, **item)
    return make_group(*[0.0] * len(texts), ordinal=row, completions=completions, prompt=prompt)


@pytest.mark.parametrize(
    ("xs", "ys", "expected"),
    [
        ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], 0.0),
        # mean 2 and 3: deviations (−1, 0, 1) and (−2, 1, 1): 3 / √(2 · 6)
        ([1.0, 2.0, 3.0], [1.0, 4.0, 4.0], 3 / math.sqrt(12)),
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], None),
        ([1.0, 2.0, 3.0], [7.0, 7.0, 7.0], None),
        ([1.0], [1.0], None),
        ([], [], None),
    ],
)
def test_pearson(xs: list[float], ys: list[float], expected: float | None) -> None:
    found = pearson(xs, ys)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-15))


def test_length_counts_against_its_own_group() -> None:
    # within each group longer is worse, although the group of long answers earns more
    short = group_of_lengths(0, r0=4, r1=2)
    long = group_of_lengths(1, r5=40, r6=38)
    assert correlation_within_groups([short, long]) == pytest.approx(-1.0)
    # deviations of reward (−0.5, 0.5, −0.05, 0.05) and length (1, −1, 4, −4): −1.4 / √(0.505 · 34)
    tilted = [group_of_lengths(0, r0=4, r10=2), group_of_lengths(1, r0=10, r01=2)]
    assert correlation_within_groups(tilted) == pytest.approx(-1.4 / math.sqrt(17.17))


def test_a_correlation_that_does_not_exist_is_none() -> None:
    assert correlation_within_groups([make_group(0.1, 0.1, 0.1)]) is None
    assert correlation_within_groups([group_of_lengths(0, r0=3, r1=3)]) is None
    assert correlation_within_groups([group_of_lengths(0, none=3, r1=5)]) is None
    # equal rewards of 0.1 have a mean that is not 0.1 in floating point
    dull = make_group(0.1, 0.1, 0.1, completions=[make_completion((5,) * n) for n in (1, 2, 3)])
    assert correlation_within_groups([dull]) is None


def test_ungraded_rollouts_have_no_part_in_the_correlation() -> None:
    assert correlation_within_groups([group_of_lengths(0, r0=1, r1=2, none=50)]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([["a", "b"], ["a", "c"]], 0.5),
        ([["a", "a"], ["b", "b"]], 0.0),
        ([["a", "a"], ["a", "b"]], 0.75),
        ([["a"], ["A"]], 0.0),
        ([[""], [""]], 1.0),
        ([["a", "a"]], 0.0),
    ],
)
def test_the_share_of_texts_that_answer_another_prompt(
    groups: list[list[str]], expected: float
) -> None:
    made = [group_of_texts(row, *texts) for row, texts in enumerate(groups)]
    assert repeated_fraction(made) == expected


def test_the_same_row_drawn_twice_is_no_other_prompt() -> None:
    assert repeated_fraction([group_of_texts(0, "a"), group_of_texts(0, "a")]) == 0.0


def test_the_share_of_prompts_with_the_same_answer() -> None:
    grader = TypeAdapter[Any](GraderDocument).validate_python(
        {"type": "python", "name": "p", "source": "def grade(sample, item): return 1.0"}
    )
    labels = [group_of_texts(row, "x", label=label) for row, label in enumerate("aab")]
    assert shared_answers(grader, labels) == pytest.approx(2 / 3)
    assert shared_answers(grader, [labels[0], labels[0], labels[2]]) == 0.0
    assert shared_answers(grader, [group_of_texts(0, "x"), group_of_texts(1, "x")]) == 0.0


def test_a_step_s_metrics_speak_of_replaced_groups_too() -> None:
    kept = group_of_lengths(0, r0=4, r1=2)
    replaced = (group_of_texts(1, "same"), group_of_texts(2, "same"))
    record = StepRecord(1, (kept,), ((0.0, 0.0),), replaced, (), {})
    assert rollout_watch_metrics(record) == {
        "rollout/reward_length_correlation": pytest.approx(-1.0),
        "rollout/repeated_fraction": 0.5,
    }


CANARIES = [
    CanaryGrade(0, "empty", make_grade(0.0)),
    CanaryGrade(1, "empty", make_grade(0.5)),
    CanaryGrade(0, "echo", make_grade(0.2)),
    CanaryGrade(1, "echo", make_grade(None, {"other_error": "judge"})),
    CanaryGrade(2, "echo", make_grade(0.0, {"other_error": "raised"})),
    CanaryGrade(0, "punctuation", make_grade(0.0, {"other_error": ""})),
    CanaryGrade(0, "reference", make_grade(None, {"other_error": "judge"})),
]


def test_a_canary_s_first_error_in_a_line() -> None:
    assert canary_errors(CANARIES) == {
        "punctuation": "other_error: no details",
        "echo": "other_error: judge",
        "reference": "other_error: judge",
    }


def test_that_a_canary_is_no_call_and_no_json_is_no_error_to_tell() -> None:
    unread = make_grade(0.0, {"sample_parse_error": "output_json: not valid JSON"})
    missing = {"invalid_variable_error": "{{ sample.output_tools[0] }}: …"}
    whole = make_grade(0.0, {"invalid_variable_error": "p: {{ sample.output_tools[0] }}: …"})
    whole = replace(whole, sub_grades={"p": make_grade(0.0, missing)})
    of_row = make_grade(None, {"invalid_variable_error": "{{ item.x }}: …"})
    grades = {"empty": unread, "punctuation": whole, "echo": of_row}
    canaries = [CanaryGrade(0, kind, grade) for kind, grade in grades.items()]  # type: ignore[arg-type]
    assert canary_errors(canaries) == {"echo": "invalid_variable_error: {{ item.x }}: …"}
    assert canary_metrics(canaries)["canary/empty_reward_mean"] is None


def test_an_ungraded_or_failing_canary_is_null_never_zero() -> None:
    assert canary_metrics(CANARIES) == {
        "canary/empty_reward_mean": 0.25,
        "canary/punctuation_reward_mean": None,
        "canary/echo_reward_mean": 0.2,
        "canary/reference_reward_mean": None,
    }


def test_the_gap_is_training_minus_graded_validation() -> None:
    evaluation = make_evaluation([1.0, None], [0.5, 0.0])
    assert train_valid_gap(0.75, evaluation) == 0.25
    assert train_valid_gap(None, evaluation) is None
    assert train_valid_gap(0.75, make_evaluation([None])) is None
    metrics = evaluation_watch_metrics(evaluation, 0.75)
    assert list(metrics) == [*canary_metrics([]), "watch/train_valid_gap"]
    assert metrics["watch/train_valid_gap"] == 0.25


def multi(formula: str) -> Any:
    part = {
        "type": "string_check",
        "operation": "eq",
        "input": "{{ sample.output_text }}",
        "reference": "x",
    }
    graders = {key: part | {"name": key} for key in ("a", "b", "c")}
    raw = {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}
    return TypeAdapter[Any](GraderDocument).validate_python(raw)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        # weights times changes: a rises by 0.5, b falls by 0.4; c is only watched
        ("0.4 * a + 0.5 * b", {"a": 0.2, "b": -0.2}),
        ("0.4 * a + 0.1 * (1 - b)", {"a": 0.2, "b": 0.04}),
        # a b: now 0.75 · 0.2; with a as before 0.25 · 0.2, with b as before 0.75 · 0.6
        ("a * b", {"a": 0.1, "b": -0.3}),
        ("log(b - 0.2)", {}),
        ("a +", {}),
    ],
)
def test_what_each_part_contributed(formula: str, expected: dict[str, float]) -> None:
    before, after = {"a": 0.25, "b": 0.6, "c": 0.0}, {"a": 0.75, "b": 0.2, "c": 1.0}
    assert contributions(multi(formula), before, after) == pytest.approx(expected)


def test_a_part_without_a_reward_leaves_nothing_to_say() -> None:
    assert contributions(multi("a + b"), {"a": 0.0}, {"a": 1.0, "b": 0.0}) == {}
