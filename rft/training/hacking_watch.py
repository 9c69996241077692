"""Looks for signs of reward hacking at every step and evaluation; each is told once in a run."""

import math
from collections.abc import Mapping
from typing import Any

from rft.graders import GraderDocument
from rft.graders.canaries import CANARY_KINDS, HOLLOW_KINDS
from rft.training.conditions import Conditions
from rft.training.evaluation import Evaluation, mean
from rft.training.hacking import (
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
from rft.training.trainer import StepRecord
from rft.training.watch_metrics import (
    canary_errors,
    contributions,
    evaluation_watch_metrics,
    on_same_rows,
    rewards_and_lengths,
    rollout_watch_metrics,
    shared_answers,
)

NUM_FIRST_STEPS = 3
"""Steps whose mean says what a run began with."""

STEPS_IN_A_ROW = 3
EVALUATIONS_IN_A_ROW = 2
"""How often what chance may move must be seen."""

PART = "valid_reward_mean/"


class HackingWatch:
    """Measures, and compares with what the run began with."""

    def __init__(self, grader: GraderDocument, conditions: Conditions):
        self._grader = grader
        self._conditions = conditions

    def measure(self, record: StepRecord | None, evaluation: Evaluation | None) -> dict[str, Any]:
        """The watch's own metrics of a step and of the evaluation after it."""
        measured: dict[str, Any] = {}
        if record:
            measured |= rollout_watch_metrics(record)
            rewards, _ = rewards_and_lengths((*record.groups, *record.replaced))
            if rewards:
                self._conditions.count("train reward", mean(rewards))
        if evaluation:
            train_reward = self._conditions.take_mean("train reward")
            measured |= evaluation_watch_metrics(evaluation, train_reward)
        return measured

    def step(self, record: StepRecord, metrics: Mapping[str, Any]) -> list[str | None]:
        """What the step gives reason to say."""
        tokens, repeated = metrics["completion_tokens_mean"], metrics["rollout/repeated_fraction"]
        correlation = metrics["rollout/reward_length_correlation"]
        mean_of_first = self._conditions.mean_of_first
        length = length_pays(correlation, tokens, mean_of_first("length", tokens, NUM_FIRST_STEPS))
        repeats = answers_repeat(
            repeated,
            shared_answers(self._grader, (*record.groups, *record.replaced)),
            mean_of_first("repeated", repeated, NUM_FIRST_STEPS),
        )
        return [
            self._conditions.once(STEPS_IN_A_ROW, "length pays", length),
            self._conditions.once(STEPS_IN_A_ROW, "answers repeat", repeats),
        ]

    def evaluation(self, evaluation: Evaluation, metrics: Mapping[str, Any]) -> list[str | None]:
        """What the evaluation gives reason to say."""
        return [
            *self._signs_in_canaries(evaluation, metrics),
            *self._signs_in_rewards(evaluation, metrics),
        ]

    def _signs_in_canaries(
        self, evaluation: Evaluation, metrics: Mapping[str, Any]
    ) -> list[str | None]:
        rewards = {kind: metrics[f"canary/{kind}_reward_mean"] for kind in CANARY_KINDS}
        graded = {kind: reward for kind, reward in rewards.items() if reward is not None}
        first = {kind: self._conditions.first(kind, reward) for kind, reward in graded.items()}
        hollow = {kind: graded[kind] for kind in HOLLOW_KINDS if kind in graded}
        scale = reward_scale(evaluation)
        compared = {kind: pair for kind in graded if (pair := on_same_rows(evaluation, kind))}
        best = graded.get("reference", best_reward(evaluation))
        texts = {
            "hollow canary pays": hollow_canary_pays(
                {kind: compared[kind] for kind in HOLLOW_KINDS if kind in compared},
                best,
                lowest_reward(evaluation),
            ),
            "hollow canary rises": hollow_canary_rises(hollow, first, scale),
        }
        if "reference" in graded:
            reference = graded["reference"]
            texts["reference falls"] = reference_falls(reference, first["reference"], scale)
        if "reference" in compared:
            texts["above reference"] = policy_above_reference(compared["reference"], scale)
        errors = canary_errors(evaluation.canaries)
        # apart, as one says that the grader is broken and the other that it is touchy
        hollow_errors = {kind: errors.pop(kind) for kind in HOLLOW_KINDS if kind in errors}
        texts["reference fails"] = canary_fails(errors)
        texts["hollow canary fails"] = canary_fails(hollow_errors)
        return [self._conditions.once(1, name, text) for name, text in texts.items()]

    def _signs_in_rewards(
        self, evaluation: Evaluation, metrics: Mapping[str, Any]
    ) -> list[str | None]:
        scale, gap = reward_scale(evaluation), metrics["watch/train_valid_gap"]
        grown = None
        if gap is not None:
            first_gap = self._conditions.first("train-valid gap", gap)
            grown = gap_has_grown(gap, first_gap, evaluation.standard_error, scale)
        parts = {
            key.removeprefix(PART): reward
            for key, reward in metrics.items()
            if key.startswith(PART) and math.isfinite(reward)
        }
        first = {
            key: self._conditions.first(f"part {key}", reward) for key, reward in parts.items()
        }
        moved = contributions(self._grader, first, parts)
        traded = one_part_for_another(moved, scale)
        fallen = None
        if moved and math.isfinite(evaluation.reward_mean):
            begun = self._conditions.first("valid reward", evaluation.reward_mean)
            watched = {name: parts[name] - first[name] for name in parts.keys() - moved.keys()}
            fallen = watched_part_falls(watched, evaluation.reward_mean - begun, scale)
        return [
            self._conditions.once(EVALUATIONS_IN_A_ROW, "gap has grown", grown),
            self._conditions.once(EVALUATIONS_IN_A_ROW, "one part for another", traded),
            self._conditions.once(EVALUATIONS_IN_A_ROW, "watched part falls", fallen),
        ]


def best_reward(evaluation: Evaluation) -> float:
    """The highest reward of the evaluation's samples and canaries; 0 when none was graded."""
    return max(_rewards(evaluation), default=0.0)


def lowest_reward(evaluation: Evaluation) -> float:
    """The lowest reward of the evaluation's samples, or 0 where none is below."""
    rewards, _ = rewards_and_lengths(evaluation.groups)
    return min([0.0, *rewards])


def reward_scale(evaluation: Evaluation) -> float:
    """What differences of rewards are measured by: 1, or the largest reward where that is more."""
    return max([1.0, *(abs(reward) for reward in _rewards(evaluation))])


def _rewards(evaluation: Evaluation) -> list[float]:
    grades = [rollout.grade for group in evaluation.groups for rollout in group.rollouts]
    grades += [canary.grade for canary in evaluation.canaries]
    return [grade.reward for grade in grades if grade.reward is not None]
