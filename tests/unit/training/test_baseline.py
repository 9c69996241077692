"""What `rft validate --samples` measures: literal groups, and the tiny model through the real function."""

import json
from pathlib import Path
from typing import Any

import pytest
from made import make_completion, make_evaluation, make_grade, make_group, make_job

from rft.cli.baseline import baseline_lines
from rft.job import load_job
from rft.training.baseline import (
    NUM_PROMPTS,
    baseline_document,
    signal_probability,
)
from rft.training.evaluation import CanaryGrade
from rft.training.probes import validate
from rft.types import Completion, Grade, Group
from tests.jobs import write_job
from tests.tiny import save_tiny_model


def groups_of(*rewards: tuple[float | Grade | None, ...]) -> list[Group]:
    return [make_group(*row, ordinal=ordinal) for ordinal, row in enumerate(rewards)]


def document(groups: list[Group], *overrides: str, **canaries: Grade) -> dict[str, Any]:
    graded = [CanaryGrade(0, kind, grade) for kind, grade in canaries.items()]  # type: ignore[arg-type]
    return baseline_document(make_job(*overrides), groups, graded, 10.0, 2.5)


def test_the_rewards_and_their_spread() -> None:
    found = document(groups_of((1.0, 0.0), (0.5, 0.5), (None, 1.0)))
    # within groups, ddof 1: √0.5 and 0; the last has one graded rollout
    assert found["reward"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.37416573867739417),
        "within_group_std": pytest.approx(0.7071067811865476 / 2),
        "min": 0.0,
        "max": 1.0,
    }
    assert (found["num_prompts"], found["samples_per_prompt"]) == (3, 2)
    assert found["ungraded_fraction"] == pytest.approx(1 / 6)
    assert found["pass_at"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3)}
    assert found["parts"] == {} and found["errors"] == {}


def test_groups_without_a_signal_are_told_apart() -> None:
    rewards = (
        (0.0, 0.0),
        (1.0, 1.0),
        (0.5, 0.5),
        (-1.0, -1.0),
        (1.0, 0.0),
        (None, 1.0),
        (2.0, 2.0),
    )
    groups = document(groups_of(*rewards), "engine.evaluation.pass_threshold=0.9")["groups"]
    assert groups == {
        "with_signal_fraction": pytest.approx(1 / 7),
        "all_zero_fraction": pytest.approx(2 / 7),
        "all_passing_fraction": pytest.approx(2 / 7),
        "all_equal_between_fraction": pytest.approx(1 / 7),
        "skipped_fraction": pytest.approx(1 / 7),
        "with_signal_per_step": pytest.approx(2 * 1 / 7),
        "batch_size": 2,
        "group_size": 2,
    }


def test_penalties_are_not_called_0() -> None:
    found = document(groups_of((-1.0, -1.0), (-1.0, -1.0)), empty=make_grade(-1.0))
    texts = {finding["about"]: finding["text"] for finding in found["findings"]}
    assert "every answer earned the same, -1. " in texts["no_signal"]
    assert any("all at 0 or below 100%" in line for line in baseline_lines(found, 100))


@pytest.mark.parametrize(
    ("rewards", "group_size", "expected"),
    [
        # pairs of four samples with one success: 3 of 6 hold it
        ((1.0, 0.0, 0.0, 0.0), 2, 0.5),
        ((1.0, 0.0, 0.0, 0.0), 4, 1.0),
        ((1.0, 0.0, 0.0, 0.0), 3, 0.75),
        ((1.0, 0.5, 0.0, 0.0), 2, 5 / 6),
        ((1.0, 1.0), 2, 0.0),
        # more than were sampled: eight draws are hardly ever all 0 or all 1
        ((1.0, 0.0), 8, 1 - 2 * 0.5**8),
        ((0.0, 0.0), 8, 0.0),
        ((None, 1.0, 0.0), 2, 1.0),
        ((None, 1.0), 2, 0.0),
    ],
)
def test_the_probability_of_a_signal(
    rewards: tuple[float | None, ...], group_size: int, expected: float
) -> None:
    assert signal_probability(make_group(*rewards), group_size) == pytest.approx(expected)


def test_parts_errors_and_canaries() -> None:
    failed = make_grade(0.0, {"other_error": "a: x"}, a=make_grade(None, {"other_error": "x"}))
    good = make_grade(1.0, a=make_grade(0.5), b=make_grade(1.0))
    canary = make_grade(0.25, a=make_grade(0.75), b=make_grade(None))
    found = document(groups_of((good, failed)), empty=canary, echo=make_grade(None))
    assert found["parts"]["a"]["mean"] == 0.5 and found["parts"]["b"]["max"] == 1.0
    assert found["errors"] == {"a": {"other_error": {"count": 1, "rate": 0.5}}}
    nothing = {"num_rows": 0, "num_graded": 0, "reward_mean": None, "parts": {}, "errors": {}}
    assert found["canaries"] == {
        "empty": {
            "num_rows": 1,
            "num_graded": 1,
            "reward_mean": 0.25,
            "parts": {"a": 0.75, "b": None},
            "errors": {},
        },
        "punctuation": nothing,
        "echo": nothing | {"num_rows": 1},
        "reference": nothing,
    }


def test_a_canary_over_which_the_grader_fails_has_no_reward() -> None:
    found = document(
        groups_of((1.0, 0.0)), reference=make_grade(0.0, {"other_error": "KeyError: x"})
    )
    assert found["canaries"]["reference"] == {
        "num_rows": 1,
        "num_graded": 0,
        "reward_mean": None,
        "parts": {},
        "errors": {"exact": {"other_error": {"count": 1, "rate": 1.0}}},
    }
    texts = {finding["about"]: finding["text"] for finding in found["findings"]}
    assert texts["canary_fails"].startswith(
        "The grader fails over the reference answer (other_error: KeyError: x)"
    )
    assert "reference_fails" not in texts and "no_reference" not in texts
    shown = baseline_lines(found, 100)
    assert "the reference answer: other_error of exact on 1 of 1 rows" in shown


def test_length_cut_off_and_repetition() -> None:
    def completions(*answers: tuple[int, str]) -> list[Completion]:
        return [make_completion((5,) * n, text=text, finish_reason="length") for n, text in answers]

    groups = [
        make_group(0.0, 1.0, ordinal=0, completions=completions((1, "a"), (3, "b"))),
        make_group(0.5, 1.0, ordinal=1, completions=completions((7, "a"), (9, "c"))),
    ]
    found = document(groups)
    assert found["completions"] == {
        "tokens_mean": 5.0,
        "truncated_fraction": 1.0,
        "distinct_fraction": 1.0,
        "repeated_fraction": 0.5,
    }
    # within: (−½, ½, −¼, ¼) with (−1, 1, −1, 1): 1.5 / √(0.625 · 4)
    assert found["reward_length_correlation"] == {
        "overall": pytest.approx(0.5720775535473553),
        "within_groups": pytest.approx(1.5 / 2.5**0.5),
    }
    assert (found["verdict"], found["findings"][0]["about"]) == (
        "learnable with changes",
        "truncated",
    )


def test_the_seconds_of_calls_that_were_made() -> None:
    graded = [Grade("g", "python", 1.0, latency=n / 100) for n in range(21)]
    grading = document([make_group(*graded)])["grading"]
    assert grading == {
        "num_calls": 20,
        "seconds_median": pytest.approx(0.105),
        "seconds_p95": pytest.approx(0.19),
        "waited_fraction": 0.25,
    }


def test_what_nothing_was_graded_of_is_null() -> None:
    ungraded = make_grade(None, {"other_error": "no judge"})
    found = document(groups_of((ungraded, ungraded)))
    assert found["reward"] == dict.fromkeys(("mean", "std", "within_group_std", "min", "max"))
    assert found["grading"]["seconds_median"] is None
    assert found["verdict"] == "not learnable"
    assert found["findings"][0]["about"] == "failing_grades"
    json.dumps(found, allow_nan=False)


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    return write_job(folder, save_tiny_model(folder / "model"))


def test_the_tiny_model_is_measured(job_file: Path) -> None:
    found = validate(load_job(job_file), samples=3, estimate=False)["samples"]
    assert (found["num_prompts"], found["samples_per_prompt"]) == (NUM_PROMPTS, 3) == (24, 3)
    # random letters: some are vowels
    assert 0 < found["reward"]["mean"] < 0.5
    assert found["groups"]["with_signal_fraction"] > 0.9
    assert found["completions"]["truncated_fraction"] > 0.9
    canaries = found["canaries"]
    assert canaries["empty"] == {
        "num_rows": 24,
        "num_graded": 24,
        "reward_mean": 0.0,
        "parts": {},
        "errors": {},
    }
    # the rows are 0, 1, 2, 4, 5, 6, 8 … of 32, each "train 0" and so on: two vowels in 7 or 8 letters
    num_short = sum(row * 32 // 24 < 10 for row in range(24))
    echo = (num_short * 2 / 7 + (24 - num_short) * 2 / 8) / 24
    assert canaries["echo"]["reward_mean"] == pytest.approx(echo)
    assert canaries["reference"]["reward_mean"] is None
    assert found["verdict"] == "learnable with changes"
    assert found["grading"]["num_calls"] > 60 and found["grading"]["seconds_median"] > 0
    again = validate(load_job(job_file), samples=3, estimate=False)["samples"]
    assert again["reward"] == found["reward"]


def test_pass_at_k_is_that_of_an_evaluation() -> None:
    rows = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))
    found = document(groups_of(*rows))["pass_at"]
    expected = make_evaluation(*rows).pass_at(1.0)
    assert found == {str(k): value for k, value in expected.items()}
    assert found == {"1": 0.125, "2": 0.25, "4": 0.5}
