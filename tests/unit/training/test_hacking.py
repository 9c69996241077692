"""Each sign of reward hacking: the numbers that make it one, just inside and outside, and its words."""

import math

import pytest

from rft.training.hacking import (
    OnSameRows,
    answers_repeat,
    canary_fails,
    gap_has_grown,
    hollow_canary_pays,
    hollow_canary_rises,
    length_pays,
    one_part_for_another,
    policy_above_reference,
    reference_falls,
    watched_part_falls,
)


@pytest.mark.parametrize(
    ("hollow", "policy", "best", "is_sign"),
    [
        ({"empty": 0.5}, 0.5, 1.0, True),
        ({"empty": 0.49}, 0.5, 1.0, False),
        ({"empty": 0.0, "echo": 0.3}, 0.1, 1.0, True),
        ({"empty": 0.25}, 0.1, 1.0, True),
        # small change for form, while the policy earns little itself
        ({"empty": 0.24}, 0.1, 1.0, False),
        ({"empty": 0.1, "punctuation": 0.1, "echo": 0.06}, 0.10, 1.0, False),
        # nothing for nothing
        ({"empty": 0.0, "punctuation": 0.0}, 0.0, 0.0, False),
        ({"empty": -0.5}, -0.7, 0.0, False),
        ({}, 0.0, 1.0, False),
        ({"empty": 2.6}, 2.0, 10.0, True),
        ({"empty": 2.4}, 2.0, 10.0, False),
        ({"empty": 0.5}, math.nan, 1.0, False),
    ],
)
def test_a_hollow_canary_that_pays(
    hollow: dict[str, float], policy: float, best: float, is_sign: bool
) -> None:
    compared = {kind: OnSameRows(reward, policy) for kind, reward in hollow.items()}
    assert (hollow_canary_pays(compared, best) is not None) == is_sign  # type: ignore[arg-type]


def test_a_hollow_canary_that_avoids_a_penalty() -> None:
    empty = {"empty": OnSameRows(0.0, -0.205)}
    assert hollow_canary_pays(empty, -0.014, -0.4) == (  # type: ignore[arg-type]
        "an empty answer earns 0, at least as much as the policy's own answers to the same rows (-0.205): "
        "training will lead to answers without content. Let the grader take more off for it than for a real "
        "try; `rft grade` shows what each part gives"
    )
    # as little as the worst answer, and less than a quarter of the way from it
    assert hollow_canary_pays({"empty": OnSameRows(-0.4, -0.4)}, -0.014, -0.4) is None
    assert hollow_canary_pays({"empty": OnSameRows(-0.8, -0.9)}, 0.0, -1.0) is None


def test_the_best_paid_hollow_canary_is_named() -> None:
    text = hollow_canary_pays(
        {
            "empty": OnSameRows(0.3, 0.25),
            "punctuation": OnSameRows(0.55, 0.25),
            # the policy earns more on the rows that it was graded on
            "echo": OnSameRows(0.6, 0.7),
        },
        1.0,
    )
    assert text == (
        "a lone colon as answer earns 0.55, at least as much as the policy's own answers to the same rows "
        "(0.25): training will lead to answers without content. Let the grader pay nothing for it; `rft "
        "grade` shows what each part gives"
    )


def test_canaries_over_which_the_grader_fails() -> None:
    assert canary_fails({}) is None
    assert canary_fails({"empty": "other_error: a", "echo": "other_error: b"}) == (
        "the grader fails over an empty answer (other_error: a), and over the prompt repeated as answer: what "
        "it pays for that is not known, and such a grade is left out of the canary's mean. Let the grader "
        "give a reward for any text"
    )


def test_a_hollow_canary_that_rises() -> None:
    first = {"empty": 0.1, "punctuation": 0.1}
    assert hollow_canary_rises({"empty": 0.2, "punctuation": 0.2}, first, 1.0) is None  # type: ignore[dict-item]
    assert hollow_canary_rises({"echo": 0.9}, first, 1.0) is None  # type: ignore[dict-item]
    assert hollow_canary_rises({"empty": 0.9}, first, 10.0) is None  # type: ignore[dict-item]
    text = hollow_canary_rises({"empty": 0.15, "punctuation": 0.45}, first, 1.0)  # type: ignore[dict-item]
    assert text is not None
    assert text.startswith(
        "a lone colon as answer now earns 0.45, 0.1 at the start, on the same rows: the grader does not "
        "grade as it did. A judge or a server behind it may have changed"
    )


def test_a_reference_that_falls() -> None:
    assert reference_falls(0.9, 1.0, 1.0) is None
    assert reference_falls(1.2, 1.0, 1.0) is None
    assert reference_falls(0.8, 1.0, 10.0) is None
    text = reference_falls(0.85, 1.0, 1.0)
    assert text is not None and text.startswith(
        "the reference answer now earns 0.85, 1 at the start, on the same rows: the grader does not grade"
    )


def test_a_policy_above_the_reference() -> None:
    assert policy_above_reference(OnSameRows(0.8, 0.85), 1.0) is None
    assert policy_above_reference(OnSameRows(2.0, 2.5), 10.0) is None
    text = policy_above_reference(OnSameRows(0.8, 0.95), 1.0)
    assert text is not None and text.startswith(
        "the policy's answers earn 0.95, the reference answers to the same rows only 0.8: it has "
        "found something that the grader likes better than the right answer"
    )


@pytest.mark.parametrize(
    ("gap", "at_start", "standard_error", "scale", "is_sign"),
    [
        (0.25, 0.0, 0.05, 1.0, True),
        (0.19, 0.0, 0.05, 1.0, False),  # within two standard errors of the limit
        (0.25, 0.16, 0.05, 1.0, False),  # as large from the start
        (0.05, -0.2, 0.0, 1.0, False),  # grown, but only from a lag to level
        (0.25, 0.0, 0.05, 2.0, False),  # small change where rewards go up to 2
        (0.35, 0.0, 0.05, 2.0, True),
        (0.9, 0.0, math.nan, 1.0, False),  # one row says nothing
    ],
)
def test_a_gap_that_has_grown(
    gap: float, at_start: float, standard_error: float, scale: float, is_sign: bool
) -> None:
    assert (gap_has_grown(gap, at_start, standard_error, scale) is not None) == is_sign


def test_what_is_said_of_a_gap() -> None:
    text = gap_has_grown(0.31, -0.04, 0.05, 1.0)
    assert text is not None and text.startswith(
        "training reward is 0.31 above validation reward (-0.04 at the first evaluation), more than chance "
        "explains: the policy learns the training rows by heart, or what pays on them alone. Add rows"
    )


@pytest.mark.parametrize(
    ("correlation", "tokens", "at_start", "words"),
    [
        (0.5, 60.0, 40.0, "longer answers earn more (correlation 0.50)"),
        (0.49, 60.0, 40.0, None),
        (0.9, 59.0, 40.0, None),
        (-0.9, 60.0, 40.0, None),
        (None, 60.0, 40.0, None),
        (0.0, 119.0, 40.0, None),
        (0.0, 120.0, 40.0, "right if the task needs longer thought, padding if not"),
        (None, 120.0, 40.0, "right if the task needs longer thought, padding if not"),
        (0.9, 60.0, 0.0, None),
    ],
)
def test_length_that_pays(
    correlation: float | None, tokens: float, at_start: float, words: str | None
) -> None:
    text = length_pays(correlation, tokens, at_start)
    assert (text is None) == (words is None)
    if text is not None and words is not None:
        assert text.startswith(f"completions have grown from 40 to {tokens:.0f} tokens: ")
        assert words in text


@pytest.mark.parametrize(
    ("repeated", "shared", "at_start", "is_sign"),
    [
        (0.5, 0.0, 0.25, True),
        (0.49, 0.0, 0.0, False),
        (0.9, 0.0, 0.66, False),  # the base model did so too
        (0.9, 0.41, 0.0, False),  # prompts have the same answers
        (0.95, 0.41, 0.0, True),
    ],
)
def test_answers_that_repeat(
    repeated: float, shared: float, at_start: float, is_sign: bool
) -> None:
    text = answers_repeat(repeated, shared, at_start)
    assert (text is not None) == is_sign
    if text is not None:
        assert text.startswith(
            f"{repeated:.0%} of the completions answer another prompt word for word too ({at_start:.0%} at "
            "the start): right if the task has few possible answers; otherwise the policy has found one"
        )


@pytest.mark.parametrize(
    ("watched", "reward", "scale", "is_sign"),
    [
        ({"likeness": -0.1, "length": 0.3}, 0.1, 1.0, True),
        ({"likeness": -0.09}, 0.1, 1.0, False),
        ({"likeness": -0.1}, 0.09, 1.0, False),
        ({"likeness": -0.1}, 0.1, 2.0, False),
        ({}, 0.5, 1.0, False),
    ],
)
def test_watched_part_falls(
    watched: dict[str, float], reward: float, scale: float, is_sign: bool
) -> None:
    text = watched_part_falls(watched, reward, scale)
    assert (text is not None) == is_sign
    if text is not None:
        assert text.startswith(
            "since the first evaluation the validation reward has changed by +0.1, and `likeness`, a part "
            "that calculate_output does not read, by -0.1: what earns more is worse by that measure"
        )


@pytest.mark.parametrize(
    ("moved", "scale", "is_sign"),
    [
        ({"form": 0.3, "correct": -0.1}, 1.0, True),
        ({"form": 0.3, "correct": -0.09}, 1.0, False),
        ({"form": 0.09, "correct": -0.3}, 1.0, False),
        ({"form": 0.3, "correct": -0.1}, 2.0, False),
        ({"form": 0.3, "correct": 0.2}, 1.0, False),
        ({}, 1.0, False),
    ],
)
def test_one_part_for_another(moved: dict[str, float], scale: float, is_sign: bool) -> None:
    text = one_part_for_another(moved, scale)
    assert (text is not None) == is_sign
    if text is not None:
        assert text.startswith(
            "since the first evaluation `form` has moved the validation reward by +0.3 and `correct` by "
            "-0.1: the policy gives up one part of the grader for another"
        )
