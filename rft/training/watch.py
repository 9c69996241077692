"""Warnings that save a day: what the numbers of a run say in plain words, with the likely cause."""

from collections.abc import Mapping
from typing import Any

from rft.graders import GraderDocument
from rft.runs.failures import last_lines
from rft.training.conditions import Conditions
from rft.training.evaluation import Evaluation
from rft.training.hacking_watch import HackingWatch
from rft.training.metrics import all_errors
from rft.training.trainer import StepRecord
from rft.types import MAX_UNGRADED_FRACTION

PATIENCE = 3
"""Steps in a row before a condition is worth a warning."""

EXACT_GAP = 1e-3
"""Mean |sampler − trainer logprob| in nats above which an exact sampler is wrong."""

INEXACT_GAP = 0.1
"""The same for a sampler that rounds differently (bfloat16, 4-bit)."""

ERROR = "error: "
"""Begins the names of the counters of grading errors."""

NOTABLE_ERROR_FRACTION = 0.1
"""Share of grades with an error of one kind that is worth a warning."""


MAX_UNREADABLE_FRACTION = 0.5
"""Share of completions that no grader could read as it should above which it is worth a warning: the first
answers of a policy often cannot be."""


class Watch:
    """Counts conditions over steps; each warning is given when its count reaches the limit."""

    def __init__(
        self,
        sampler_is_exact: bool,
        grader: GraderDocument,
        counters: Mapping[str, float] | None = None,
    ):
        self._gap_limit = EXACT_GAP if sampler_is_exact else INEXACT_GAP
        self._conditions = Conditions(counters)
        self._hacking = HackingWatch(grader, self._conditions)

    @property
    def counters(self) -> dict[str, float]:
        """All that it remembers."""
        return self._conditions.numbers

    def measure(self, record: StepRecord | None, evaluation: Evaluation | None) -> dict[str, Any]:
        """The watch's own metrics of a step and of the evaluation after it."""
        return self._hacking.measure(record, evaluation)

    def step(self, record: StepRecord, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings that this step gives rise to."""
        after = self._conditions.after
        candidates = [
            after(PATIENCE, "zero signal", _no_signal(record, metrics)),
            after(PATIENCE, "truncated", _all_truncated(record, metrics)),
            after(PATIENCE, "not moving", _not_moving(metrics)),
            after(1, "gap", _gap(metrics, self._gap_limit)),
            after(1, "gradient", _not_finite(metrics)),
            *self._grading_errors(record),
            *self._hacking.step(record, metrics),
        ]
        return [text for text in candidates if text]

    def evaluation(self, evaluation: Evaluation, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings that an evaluation gives rise to."""
        candidates = [_unranked(evaluation), *self._hacking.evaluation(evaluation, metrics)]
        return [text for text in candidates if text]

    def _grading_errors(self, record: StepRecord) -> list[str | None]:
        texts = _grading_errors(record)
        seen = {name.removeprefix(ERROR) for name in self.counters if name.startswith(ERROR)}
        return [
            self._conditions.after(1, ERROR + kind, texts.get(kind))
            for kind in sorted({*texts, *seen})
        ]


def _unranked(evaluation: Evaluation) -> str | None:
    if evaluation.ungraded_fraction <= MAX_UNGRADED_FRACTION:
        return None
    return (
        f"{evaluation.ungraded_fraction:.0%} of the validation samples could not be graded at step "
        f"{evaluation.step}, so this evaluation does not rank and keeps no checkpoint; look at the "
        "grader's errors"
    )


def _no_signal(record: StepRecord, metrics: Mapping[str, Any]) -> str | None:
    if any(group.has_signal for group in record.groups):
        return None
    reward = metrics["train_reward_mean"]
    text = (
        f"every group had equal rewards for {PATIENCE} steps (mean reward {reward:.3g}), so nothing "
        "is learnt. "
    )
    if metrics["rollout/distinct_fraction"] < 0.3:
        return text + (
            "The completions of a prompt are nearly all the same: raise engine.rollout.temperature"
        )
    return text + (
        "The model never does better or worse: give partial credit in the grader, take easier or "
        "harder prompts, or raise group_size"
    )


def _all_truncated(record: StepRecord, metrics: Mapping[str, Any]) -> str | None:
    if metrics["rollout/truncated_fraction"] < 1:
        return None
    return (
        f"no completion ended by itself for {PATIENCE} steps: all were cut at the token limit. Raise "
        "engine.rollout.max_completion_tokens, ask for shorter answers, or check that the chat "
        "template is this model's own (a wrong one never leads to an end token)"
    )


def _not_moving(metrics: Mapping[str, Any]) -> str | None:
    has_trained = metrics["optimizer/trained_tokens"] > 0
    if not has_trained or metrics["optimizer/update_norm"] > 0:
        return None
    return (
        f"the LoRA weights have not moved for {PATIENCE} steps although there was a signal: the "
        "learning rate or every gradient is zero"
    )


def _not_finite(metrics: Mapping[str, Any]) -> str | None:
    if not metrics["optimizer/skipped_updates"]:
        return None
    return (
        "the gradient was not finite, so the update was left out: the weights are as they were. Lower "
        "the learning rate, or use float32 or bfloat16"
    )


def _gap(metrics: Mapping[str, Any], limit: float) -> str | None:
    gap = metrics["rollout/logprob_gap"]
    if gap is None or gap <= limit:
        return None
    return (
        f"sampler and trainer disagree by {gap:.2g} nats per token on the same tokens (expected at "
        f"most {limit:g}): completions are drawn from another policy than the one that is trained. "
        "Use float32, or report it: with a float32 model this is a bug"
    )


def _grading_errors(record: StepRecord) -> dict[str, str]:
    """By kind of error, what to say about it."""
    groups = (*record.groups, *record.replaced)
    grades = [rollout.grade for group in groups for rollout in group.rollouts]
    details: dict[str, list[str]] = {}
    for grade in grades:
        for kind, detail in all_errors(grade).items():
            details.setdefault(kind, []).append(detail)
    texts: dict[str, str] = {}
    for kind, found in details.items():
        fraction, last_line = len(found) / len(grades), last_lines(found[0], 1) or "no details"
        if kind == "sample_parse_error":
            if fraction > MAX_UNREADABLE_FRACTION:
                texts[kind] = (
                    f"{len(found)} of {len(grades)} completions of step {record.step} could not be read as "
                    f"the job asks, for example: {last_line}. Some are normal at first; so many come from a "
                    "wrong response_format, tools that the model does not know how to call, or too small "
                    "an engine.rollout.max_completion_tokens"
                )
        elif fraction >= NOTABLE_ERROR_FRACTION:
            texts[kind] = (
                f"{len(found)} of {len(grades)} grades of step {record.step} failed with {kind}, "
                f"for example: {last_line}"
            )
    return texts
