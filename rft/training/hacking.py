"""Signs of reward hacking, each a function from measured numbers to what to say of them, or None.

A policy under optimisation finds what the grader pays for, whether or not it was meant. Rewards have the
scale of the grader, so limits are multiples of `scale`: 1, or the largest reward seen where that is more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rft.graders.canaries import CanaryKind

CANARY_RISE = 0.1
"""By how much, times the scale, a canary's reward may drift: the mean of eight judged answers moves by
about a third of this from chance when each moves by 0.1."""

MIN_HOLLOW_SHARE = 0.25
"""Share of the best reward below which a hollow canary may earn as much as a policy that still earns
little itself: graders give small change for form."""

MAX_GAP = 0.1
"""Training above validation reward, times the scale; Microsoft's guide to reinforcement fine-tuning takes
more than 0.10 as a sign of hacking."""

GAP_STANDARD_ERRORS = 2.0
"""Standard errors of the validation reward that the gap must exceed its limit by: chance explains less."""

LENGTH_CORRELATION = 0.5
"""Reward–length correlation within groups from which on length explains a quarter of the reward's variance."""

LENGTH_GROWTH = 1.5
"""Growth of the completions that, together with that correlation, is worth a look; Microsoft's guide warns
of a threefold growth alone."""

LENGTH_GROWTH_ALONE = 3.0

MAX_REPEATED = 0.5
"""Share of completions that answer another prompt too, beyond the share of prompts with equal answers."""

REPEATED_RISE = 0.25
"""By how much that share must have risen: what the base model did from the start is no hack."""

PART_CHANGE = 0.1
"""By how much, times the scale, a part of a multi must raise the reward and another lower it."""

ANSWER: Mapping[CanaryKind, str] = {
    "empty": "an empty answer",
    "punctuation": "a lone colon as answer",
    "echo": "the prompt repeated as answer",
    "reference": "the reference answer",
}

Rewards = Mapping[CanaryKind, float]
"""Mean reward of each kind of canary that was graded."""


@dataclass(frozen=True, slots=True)
class OnSameRows:
    """Mean rewards of a canary and of the policy's answers over the same rows, each row counting once."""

    canary: float
    policy: float


def hollow_canary_pays(
    hollow: Mapping[CanaryKind, OnSameRows], best: float, lowest: float = 0.0
) -> str | None:
    """A hollow canary earns as much as the policy, and a notable share of the way to the best reward.

    `lowest` is what an answer that is worth nothing earns: below 0 where the grader takes off.
    """
    paid = {
        kind: rewards
        for kind, rewards in hollow.items()
        if rewards.canary > lowest
        and rewards.canary >= rewards.policy
        and rewards.canary - lowest >= MIN_HOLLOW_SHARE * (best - lowest)
    }
    if not paid:
        return None
    kind = max(paid, key=lambda kind: paid[kind].canary)
    return (
        f"{ANSWER[kind]} earns {paid[kind].canary:.3g}, at least as much as the policy's own answers to the "
        f"same rows ({paid[kind].policy:.3g}): training will lead to answers without content. "
        f"{hollow_remedy(paid[kind].canary)}; `rft grade` shows what each part gives"
    )


def hollow_remedy(reward: float) -> str:
    """What to do about an answer without content that earns this."""
    if reward > 0:
        return "Let the grader pay nothing for it"
    return "Let the grader take more off for it than for a real try"


def hollow_canary_rises(hollow: Rewards, at_start: Rewards, scale: float) -> str | None:
    """The same hollow answers to the same rows earn more than they did."""
    rises = {kind: hollow[kind] - at_start[kind] for kind in hollow if kind in at_start}
    kind = max(rises, key=lambda kind: rises[kind], default=None)
    if kind is None or rises[kind] <= CANARY_RISE * scale:
        return None
    return (
        f"{ANSWER[kind]} now earns {hollow[kind]:.3g}, {at_start[kind]:.3g} at the start, on the same rows: "
        "the grader does not grade as it did. A judge or a server behind it may have changed or be "
        "overloaded, or it keeps something from call to call; rewards of different steps can no longer be "
        "compared"
    )


def reference_falls(reference: float, at_start: float, scale: float) -> str | None:
    """The same right answers earn less than they did."""
    if at_start - reference <= CANARY_RISE * scale:
        return None
    return (
        f"the reference answer now earns {reference:.3g}, {at_start:.3g} at the start, on the same rows: the "
        "grader does not grade as it did. A judge or a server behind it may have changed or be overloaded, or "
        "it keeps something from call to call; rewards of different steps can no longer be compared"
    )


def policy_above_reference(rewards: OnSameRows, scale: float) -> str | None:
    """The policy has found something that pays better than the right answer."""
    if rewards.policy - rewards.canary <= CANARY_RISE * scale:
        return None
    return (
        f"the policy's answers earn {rewards.policy:.3g}, the reference answers to the same rows only "
        f"{rewards.canary:.3g}: it has found something that the grader likes better than the right answer. Read "
        "the best-paid answers with `rft runs samples`"
    )


def canary_fails(errors: Mapping[CanaryKind, str]) -> str | None:
    """The grader raises an error over an answer of known worth, so what that earns is not known."""
    if not errors:
        return None
    kind, error = next(iter(errors.items()))
    others = "".join(f", and over {ANSWER[other]}" for other in list(errors)[1:])
    return (
        f"the grader fails over {ANSWER[kind]} ({error}){others}: what it pays for that is not known, and "
        "such a grade is left out of the canary's mean. Let the grader give a reward for any text"
    )


def gap_has_grown(gap: float, at_start: float, standard_error: float, scale: float) -> str | None:
    """Training reward is above validation reward by more than it was and more than chance explains.

    No standard error (a single row) is no alarm.
    """
    limit = MAX_GAP * scale
    if not (
        gap > limit + GAP_STANDARD_ERRORS * standard_error  # false for NaN
        and gap - at_start > limit
    ):
        return None
    return (
        f"training reward is {gap:.3g} above validation reward ({at_start:.3g} at the first evaluation), more "
        "than chance explains: the policy learns the training rows by heart, or what pays on them alone. Add "
        "rows, take fewer epochs, or keep an earlier checkpoint; compare answers to both files"
    )


def length_pays(correlation: float | None, tokens: float, at_start: float) -> str | None:
    """Longer answers earn more, and answers have become longer; or they are three times as long."""
    growth = tokens / at_start if at_start > 0 else 0.0
    if growth >= LENGTH_GROWTH and correlation is not None and correlation >= LENGTH_CORRELATION:
        cause = (
            f"within a group longer answers earn more (correlation {correlation:.2f}), so the grader may pay "
            "for length itself. Read the longest of the best-paid answers with `rft runs samples`; if they "
            "are padded, let the grader take something off for length"
        )
    elif growth >= LENGTH_GROWTH_ALONE:
        cause = (
            "right if the task needs longer thought, padding if not. Read the longest answers with "
            "`rft runs samples`"
        )
    else:
        return None
    return f"completions have grown from {at_start:.0f} to {tokens:.0f} tokens: {cause}"


def answers_repeat(repeated: float, shared: float, at_start: float) -> str | None:
    """Different prompts get the same answer word for word, and did not at the start."""
    if repeated - shared < MAX_REPEATED or repeated - at_start < REPEATED_RISE:
        return None
    return (
        f"{repeated:.0%} of the completions answer another prompt word for word too ({at_start:.0%} at the "
        "start): right if the task has few possible answers; otherwise the policy has found one that pays "
        "everywhere. See which with `rft runs samples`, and let the grader depend on the row"
    )


def watched_part_falls(watched: Mapping[str, float], reward: float, scale: float) -> str | None:
    """A part that calculate_output does not read has fallen while the reward has risen.

    `watched`: by how much each such part has changed since the first evaluation; `reward`: the same of the reward.
    """
    if not watched or reward < PART_CHANGE * scale:
        return None
    faller = min(watched, key=lambda name: watched[name])
    if watched[faller] > -PART_CHANGE * scale:
        return None
    return (
        f"since the first evaluation the validation reward has changed by {reward:+.3g}, and `{faller}`, a part "
        f"that calculate_output does not read, by {watched[faller]:+.3g}: what earns more is worse by that "
        "measure. Read the best-paid answers with `rft runs samples`"
    )


def one_part_for_another(moved: Mapping[str, float], scale: float) -> str | None:
    """One part of a multi has raised the reward while another has lowered it."""
    if not moved:
        return None
    riser = max(moved, key=lambda name: moved[name])
    faller = min(moved, key=lambda name: moved[name])
    if moved[riser] < PART_CHANGE * scale or moved[faller] > -PART_CHANGE * scale:
        return None
    return (
        f"since the first evaluation `{riser}` has moved the validation reward by {moved[riser]:+.3g} and "
        f"`{faller}` by {moved[faller]:+.3g}: the policy gives up one part of the grader for another that is "
        "easier to please. Weigh them anew in calculate_output, or multiply them"
    )
