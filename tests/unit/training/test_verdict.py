"""The verdict on a baseline, in literal cases: what is found, how grave it is, and in which words."""

from dataclasses import replace
from typing import Any

import pytest

from rft.training.verdict import TOO_HARD, Baseline, judge

HEALTHY = Baseline(
    num_groups=24,
    samples_per_prompt=8,
    group_size=8,
    batch_size=8,
    pass_threshold=1.0,
    error_pause_rate=0.5,
    reward_mean=0.4,
    reward_max=1.0,
    reward_min=0.0,
    signal=0.75,
    all_zero=0.15,
    all_zero_rewards=(0.0,),
    all_passing=0.1,
    all_equal_between=0.0,
    signal_groups_per_step=6.0,
    pass_at={1: 0.3, 2: 0.33, 4: 0.36, 8: 0.39},
    error_rates={},
    failed=0.0,
    length_correlation=0.1,
    truncated=0.05,
    distinct=0.9,
    canaries={"empty": 0.0, "punctuation": 0.0, "echo": 0.1, "reference": 1.0},
    canary_errors={},
    waited=0.1,
)
DEAD: dict[str, Any] = {"signal": 0.0, "signal_groups_per_step": 0.0}


def canaries(**rewards: float | None) -> dict[str, Any]:
    return {"canaries": {**HEALTHY.canaries, **rewards}}


@pytest.mark.parametrize(
    ("changes", "word", "about", "words"),
    [
        # nothing to learn from
        (
            DEAD | {"all_zero": 1.0, "reward_mean": 0.0},
            "not learnable",
            "no_signal",
            "In none of the 24 groups do rewards differ, so there is nothing to learn from: every "
            "answer earned 0. Take easier rows, give partial credit",
        ),
        (
            DEAD | {"all_zero": 0.0, "all_passing": 1.0, "reward_mean": 1.0},
            "not learnable",
            "no_signal",
            "every answer passed. Take harder rows",
        ),
        (
            DEAD | {"all_zero": 0.0, "all_equal_between": 1.0, "reward_mean": 0.25},
            "not learnable",
            "no_signal",
            "(mean reward 0.25): the grader gives all answers to a prompt the same",
        ),
        (
            DEAD | {"all_zero": 0.5, "all_passing": 0.5, "distinct": 0.125},
            "not learnable",
            "no_signal",
            "all answers to a prompt are the same. Raise engine.rollout.temperature",
        ),
        (
            {"failed": 0.51, "error_rates": {"python_grader_runtime_error": 0.51}},
            "not learnable",
            "failing_grades",
            "51% of the grades failed (python_grader_runtime_error in 51.0%): the job would pause",
        ),
        (
            DEAD | {"reward_mean": None, "failed": 1.0, "error_pause_rate": 1.0},
            "not learnable",
            "nothing_graded",
            "No completion got a reward (without a named error), so there is nothing to learn from, and "
            "the job would go on without effect (engine.grading.error_pause_rate is 1)",
        ),
        (
            DEAD | {"reward_mean": None, "failed": 1.0, "error_pause_rate": 0.99},
            "not learnable",
            "failing_grades",
            "100% of the grades failed (without a named error): the job would pause at its first step "
            "(engine.grading.error_pause_rate is 0.99)",
        ),
        (
            canaries(reference=None) | {"canary_errors": {"reference": "other_error: x"}},
            "learnable with changes",
            "canary_fails",
            "The grader fails over the reference answer (other_error: x)",
        ),
        (
            {"canary_errors": {"empty": "other_error: x"}},
            "ready",
            "canary_fails",
            "The grader fails over an empty answer (other_error: x)",
        ),
        # learnable, but
        (
            {"all_zero": 0.5},
            "learnable with changes",
            "too_hard",
            "In 50% of the groups every answer earned 0: too hard",
        ),
        (
            {"all_passing": 0.6},
            "learnable with changes",
            "too_easy",
            "In 60% of the groups every answer passed: too easy",
        ),
        (
            {"reward_mean": 0.9},
            "learnable with changes",
            "too_easy",
            "The mean reward 0.9 is near the best (1) before any training",
        ),
        (
            {"all_equal_between": 0.5},
            "learnable with changes",
            "too_coarse",
            "In 50% of the groups all answers earned the same, neither nothing nor a pass",
        ),
        (
            {"signal_groups_per_step": 1.94},
            "learnable with changes",
            "few_groups",
            "A step of 8 groups of 8 will have 1.9 with rewards that differ",
        ),
        (
            {"signal_groups_per_step": 0.49, "batch_size": 1},
            "learnable with changes",
            "few_groups",
            "A step of 1 groups of 8 will have 0.5 with rewards that differ",
        ),
        (
            {"truncated": 1.0},
            "learnable with changes",
            "truncated",
            "100% of the completions were cut off at the token limit: what they would have said is "
            "not graded. Raise engine.rollout.max_completion_tokens",
        ),
        (
            {"distinct": 0.29},
            "learnable with changes",
            "same_answers",
            "Only 29% of a prompt's completions are different",
        ),
        (
            {"failed": 0.1, "error_rates": {"other_error": 0.1, "sample_parse_error": 0.02}},
            "learnable with changes",
            "grading_errors",
            "Some grades have errors (other_error in 10.0%, sample_parse_error in 2.0%)",
        ),
        (
            canaries(punctuation=0.51),
            "learnable with changes",
            "hollow_pays",
            "A lone colon as answer earns 0.51 (the model's answers 0.4, the reference 1): training "
            "will find it. Let the grader pay nothing for it",
        ),
        (
            canaries(empty=0.41, reference=None),
            "learnable with changes",
            "hollow_pays",
            "An empty answer earns 0.41 (the model's answers 0.4): training will find it",
        ),
        (
            canaries(reference=0.85),
            "learnable with changes",
            "reference_fails",
            "The reference answer earns 0.85, an answer of the model 1: the grader does not want",
        ),
        (
            {"reward_max": 0.5, **canaries(reference=0.5)},
            "learnable with changes",
            "reference_fails",
            "The reference answer earns 0.5, below the pass_threshold 1: the grader does not want",
        ),
        (
            {"length_correlation": 0.5},
            "learnable with changes",
            "length_pays",
            "Among the answers to one prompt longer ones earn more (correlation 0.50)",
        ),
        # good to know
        (
            canaries(echo=0.41),
            "ready",
            "hollow_pays",
            "The prompt repeated as answer earns 0.41 (the model's answers 0.4, the reference 1): "
            "training may go there first",
        ),
        (
            {"failed": 0.01, "error_rates": {"other_error": 0.01}},
            "ready",
            "grading_errors",
            "Some grades have errors (other_error in 1.0%)",
        ),
        (
            {"pass_at": {1: 0.3, 2: 0.4, 4: 0.5, 8: 0.6}},
            "ready",
            "headroom",
            "One try passes 30% of the prompts, 8 tries 60%",
        ),
        (
            {"pass_at": {1: 0.0, 2: 0.0}},
            "ready",
            "nothing_passes",
            "No answer reached 1 (evaluation.pass_threshold): training has to climb by partial credit",
        ),
        ({"waited": 0.5}, "ready", "slow_grader", "50% of the sampling time went by waiting"),
        (canaries(reference=None), "ready", "no_reference", "No reference answer is known"),
    ],
)
def test_what_is_found(changes: dict[str, Any], word: str, about: str, words: str) -> None:
    verdict = judge(replace(HEALTHY, **changes))
    assert verdict.word == word
    (finding,) = [finding for finding in verdict.findings if finding.about == about]
    assert words in finding.text


def test_a_healthy_baseline_is_ready_without_a_word() -> None:
    verdict = judge(HEALTHY)
    assert (verdict.word, verdict.findings) == ("ready", ())


@pytest.mark.parametrize(
    "changes",
    [
        {"all_zero": 0.49},
        {"all_passing": 0.49},
        {"reward_mean": 0.89},
        {"all_equal_between": 0.49},
        {"signal_groups_per_step": 2.0},
        {"signal_groups_per_step": 0.5, "batch_size": 1},
        {"truncated": 0.49},
        {"distinct": 0.3},
        {"length_correlation": 0.49},
        {"length_correlation": -0.9},
        {"length_correlation": None},
        {"waited": 0.49},
        {"pass_at": {1: 0.3, 8: 0.399}},
        canaries(echo=0.4),
        canaries(reference=0.9),
        {"reward_mean": 0.0, **canaries(echo=0.0)},
        {"reward_mean": -1.0, **canaries(echo=-0.5)},
    ],
)
def test_just_inside_every_limit(changes: dict[str, Any]) -> None:
    assert judge(replace(HEALTHY, **changes)).findings == ()


def test_what_is_dead_is_not_called_hard_or_rare_as_well() -> None:
    dead = replace(HEALTHY, all_zero=1.0, reward_mean=0.0, pass_at={1: 0.0}, **DEAD)
    dead = replace(dead, **canaries(echo=0.0))
    assert [finding.about for finding in judge(dead).findings] == ["no_signal"]


def test_the_gravest_comes_first() -> None:
    baseline = replace(
        HEALTHY, all_passing=1.0, reward_mean=1.0, truncated=1.0, waited=1.0, **DEAD, all_zero=0.0
    )
    findings = judge(baseline).findings
    assert [finding.weight for finding in findings] == ["blocker", "change", "note"]
    assert [finding.about for finding in findings] == ["no_signal", "truncated", "slow_grader"]


def test_the_best_reward_is_the_reference_s_or_what_passes() -> None:
    assert replace(HEALTHY, **canaries(reference=2.0)).best_reward == 2.0
    assert replace(HEALTHY, **canaries(reference=None)).best_reward == 1.0


def test_without_a_reference_the_highest_reward_seen_is_near_the_best() -> None:
    changes = {"reward_mean": 2.25, "reward_max": 9.0, **canaries(reference=None)}
    baseline = replace(HEALTHY, **changes)
    assert baseline.best_reward == 9.0
    assert [finding.about for finding in judge(baseline).findings] == ["no_reference"]


PENALTIES: dict[str, Any] = {
    "reward_mean": -0.205,
    "reward_max": -0.02,
    "reward_min": -0.4,
    "all_passing": 0.0,
    "canaries": {"empty": -0.3, "punctuation": -0.3, "echo": -0.4, "reference": -0.02},
}


def test_penalties_are_judged_without_an_accusation() -> None:
    assert judge(replace(HEALTHY, **PENALTIES)).findings == ()
    same = PENALTIES | {"reward_mean": -0.5, "reward_max": -0.5, "reward_min": -0.5}
    same["canaries"] = {"reference": -0.5}
    assert judge(replace(HEALTHY, **same)).findings == ()
    same["canaries"] = {"reference": -0.7}
    (finding,) = judge(replace(HEALTHY, **same)).findings
    assert finding.text.startswith("The reference answer earns -0.7, an answer of the model -0.5:")


def test_an_empty_answer_that_avoids_the_penalty_is_found() -> None:
    # −len/100
    rewards = {"empty": 0.0, "punctuation": -0.01, "echo": -0.3, "reference": -0.014}
    changes = PENALTIES | {"canaries": rewards}
    (finding,) = judge(replace(HEALTHY, **changes)).findings
    assert (finding.weight, finding.about) == ("change", "hollow_pays")
    assert finding.text == (
        "An empty answer earns 0 (the model's answers -0.205, the reference -0.014): training will find it. "
        "Let the grader take more off for it than for a real try"
    )


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ((0.0,), "every answer earned 0"),
        ((-1.0,), "every answer earned the same, -1"),
        ((-1.0, 0.0), "all answers to a prompt earned the same, from -1 to 0"),
    ],
)
def test_only_0_is_called_0(rewards: tuple[float, ...], words: str) -> None:
    low: dict[str, Any] = {"all_zero": 1.0, "all_passing": 0.0, "all_zero_rewards": rewards}
    (finding,) = judge(replace(HEALTHY, **low, **DEAD, canaries={"reference": 1.0})).findings
    assert finding.text.endswith("nothing to learn from: " + words + ". " + TOO_HARD)
    (finding,) = judge(replace(HEALTHY, **low)).findings
    assert finding.text.startswith(f"In 100% of the groups {words}: too hard")


def test_rows_are_not_called_hard_where_all_grades_fail() -> None:
    failed = DEAD | {"reward_mean": 0.0, "reward_max": 0.0, "all_zero": 1.0, "failed": 1.0}
    found = judge(replace(HEALTHY, **failed, **canaries(echo=0.0))).findings
    assert [finding.about for finding in found] == ["failing_grades"]


@pytest.mark.parametrize(
    ("pause_rate", "about"), [(1.0, "nothing_graded"), (0.5, "failing_grades")]
)
def test_failed_grades_are_found_once(pause_rate: float, about: str) -> None:
    failed = DEAD | {"reward_mean": None, "failed": 1.0, "error_rates": {"other_error": 1.0}}
    verdict = judge(replace(HEALTHY, **failed, error_pause_rate=pause_rate))
    assert [finding.about for finding in verdict.findings] == [about]


def test_a_reference_that_fails_is_known_all_the_same() -> None:
    changes = canaries(reference=None) | {"canary_errors": {"reference": "other_error: x"}}
    found = [finding.about for finding in judge(replace(HEALTHY, **changes)).findings]
    assert "no_reference" not in found and "canary_fails" in found
