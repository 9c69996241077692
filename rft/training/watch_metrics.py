"""What the watch against reward hacking measures at each step and evaluation; the formulas stand in
ARCHITECTURE.md."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rft.errors import GraderError
from rft.graders import GraderDocument
from rft.graders.canaries import CANARY_KINDS, CanaryKind, reference_answer
from rft.graders.fault import GradingFault
from rft.graders.formula import parse_formula
from rft.graders.multi import Multi
from rft.graders.template import is_of_answer
from rft.runs.failures import last_lines
from rft.training.evaluation import CanaryGrade, Evaluation, mean
from rft.training.hacking import OnSameRows
from rft.training.metrics import errors_by_part
from rft.training.trainer import StepRecord
from rft.types import Grade, Group


def rollout_watch_metrics(record: StepRecord) -> dict[str, Any]:
    """Of all rollouts of a step, those of replaced groups too."""
    groups = [*record.groups, *record.replaced]
    return {
        "rollout/reward_length_correlation": correlation_within_groups(groups),
        "rollout/repeated_fraction": repeated_fraction(groups),
    }


def evaluation_watch_metrics(
    evaluation: Evaluation, train_reward_mean: float | None
) -> dict[str, Any]:
    """Of an evaluation, and of the training steps that led to it."""
    return {
        **canary_metrics(evaluation.canaries),
        "watch/train_valid_gap": train_valid_gap(train_reward_mean, evaluation),
    }


def canary_metrics(canaries: Sequence[CanaryGrade]) -> dict[str, float | None]:
    """Mean reward of each kind of canary over those graded without error; None where there is none."""
    return {f"canary/{kind}_reward_mean": canary_reward(canaries, kind) for kind in CANARY_KINDS}


def canary_reward(canaries: Iterable[CanaryGrade], kind: CanaryKind) -> float | None:
    """Mean reward of one kind of canary; None when none was graded without error."""
    return mean_or_none([reward for _, reward in canary_rewards(canaries, kind)])


def canary_rewards(canaries: Iterable[CanaryGrade], kind: CanaryKind) -> list[tuple[int, float]]:
    """Row and reward of each canary of a kind that was graded without error.

    What a failing grader pays, the minimum as a rule, does not say what it thinks of the answer.
    """
    return [
        (canary.row, canary.grade.reward)
        for canary in canaries
        if canary.kind == kind and canary.grade.reward is not None and not canary.grade.errors
    ]


def canary_errors(canaries: Sequence[CanaryGrade]) -> dict[CanaryKind, str]:
    """The first error over each kind of canary that has one: its flag and the last line of its details.

    That a canary is not what the job asks for, such as a tool call, is none: it is not meant to be.
    """
    found: dict[CanaryKind, str] = {}
    for kind in CANARY_KINDS:
        grades = [canary.grade for canary in canaries if canary.kind == kind]
        entries = [entry for grade in grades for entry in grade.errors.items() if _is_fault(grade)]
        for flag, details in entries[:1]:
            found[kind] = f"{flag}: {last_lines(details, 1) or 'no details'}"
    return found


def _is_fault(grade: Grade) -> bool:
    raised = [entry for errors in errors_by_part(grade).values() for entry in errors.items()]
    return not all(is_of_answer(flag, details) for flag, details in raised)


def on_same_rows(evaluation: Evaluation, kind: CanaryKind) -> OnSameRows | None:
    """What a canary and the policy earn on the rows where both were graded; None where there is none.

    What can be earned differs from row to row, so means over different rows cannot be compared.
    """
    policy_rewards = {
        group.ordinal: rewards
        for group in evaluation.groups
        if (rewards := rewards_and_lengths([group])[0])
    }
    pairs = [
        (reward, mean(policy_rewards[row]))
        for row, reward in canary_rewards(evaluation.canaries, kind)
        if row in policy_rewards
    ]
    if not pairs:
        return None
    return OnSameRows(mean([canary for canary, _ in pairs]), mean([policy for _, policy in pairs]))


def train_valid_gap(train_reward_mean: float | None, evaluation: Evaluation) -> float | None:
    """Training reward minus the mean reward of the graded validation samples."""
    valid = evaluation.graded_reward_mean
    if train_reward_mean is None or not math.isfinite(valid):
        return None
    return train_reward_mean - valid


def correlation_within_groups(groups: Sequence[Group]) -> float | None:
    """Pearson's correlation of reward and completion tokens, each taken from its group's mean.

    Advantages compare the completions of one prompt, so only this part of the correlation is trained
    on: that harder prompts have longer answers does not count.
    """
    rewards: list[float] = []
    lengths: list[float] = []
    for group in groups:
        group_rewards, group_lengths = rewards_and_lengths([group])
        rewards += centred(group_rewards)
        lengths += centred(group_lengths)
    return pearson(rewards, lengths)


def rewards_and_lengths(groups: Sequence[Group]) -> tuple[list[float], list[float]]:
    """Reward and number of tokens of each graded rollout."""
    pairs = [
        (rollout.grade.reward, float(len(rollout.completion.token_ids)))
        for group in groups
        for rollout in group.graded
    ]
    return [reward for reward, _ in pairs if reward is not None], [length for _, length in pairs]


def centred(values: Sequence[float]) -> list[float]:
    """The values from their mean; exactly 0 where all are equal."""
    if not values or min(values) == max(values):
        return [0.0] * len(values)
    centre = math.fsum(values) / len(values)
    return [value - centre for value in values]


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation coefficient; None when one side does not vary."""
    dx, dy = centred(xs), centred(ys)
    spread = math.sqrt(math.fsum(x * x for x in dx) * math.fsum(y * y for y in dy))
    if spread == 0 or not math.isfinite(spread):
        return None
    return math.fsum(x * y for x, y in zip(dx, dy, strict=True)) / spread


def repeated_fraction(groups: Sequence[Group]) -> float:
    """Share of the completions whose exact text also answers another prompt."""
    rows = {group.prompt.example.row for group in groups}
    texts = [
        (group.prompt.example.row, rollout.completion.output_text)
        for group in groups
        for rollout in group.rollouts
    ]
    return _shared_fraction(texts) if len(rows) > 1 else 0.0


def shared_answers(document: GraderDocument, groups: Sequence[Group]) -> float:
    """Share of the prompts whose reference answer is also another prompt's; 0 where none is known."""
    examples = {group.prompt.example.row: group.prompt.example for group in groups}
    answers = [
        (row, answer)
        for row, example in examples.items()
        if (answer := reference_answer(document, example.item)) is not None
    ]
    return _shared_fraction(answers)


def contributions(
    document: GraderDocument, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, float]:
    """By how much each part of a multi moved its result: f(after) − f(after, the part as before).

    Exact where the formula is linear. Empty for other graders, and where a part or a result is missing.
    """
    if not isinstance(document, Multi):
        return {}
    try:
        formula = parse_formula(document.calculate_output, document.graders, "calculate_output")
        names = sorted(formula.names)
        if not set(names) <= before.keys() & after.keys():
            return {}
        now = formula.value(after)
        return {name: now - formula.value({**after, name: before[name]}) for name in names}
    except (GraderError, GradingFault):
        return {}


def mean_or_none(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _shared_fraction(texts: Sequence[tuple[int, str]]) -> float:
    """Share of the (row, text) pairs whose text occurs with another row too."""
    num_rows = Counter(text for _, text in set(texts))
    return mean([float(num_rows[text] > 1) for _, text in texts]) if texts else 0.0
