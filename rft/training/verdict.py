"""What the untrained model's rewards say: whether reinforcement fine-tuning can learn from them, and what
to change if not. Pure: from measured numbers to sentences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rft.graders.canaries import HOLLOW_KINDS, CanaryKind
from rft.training import hacking
from rft.training.hacking import ANSWER, LENGTH_CORRELATION

MOST = 0.5
"""A share that stands for `most`."""

MIN_SIGNAL_GROUPS = 2.0
"""Groups with a signal that a step should have, as far as half of its groups: with fewer, more than one
step in eight (e⁻²) has none."""

NOTABLE_ERROR_RATE = 0.1
"""Errors of one kind from which on they are worth mending; the share a running job warns at."""

MAX_HOLLOW_SHARE = 0.5
"""Share of the right answer's reward that an answer without content must stay below."""

NEAR_BEST = 0.9
"""Share of the best reward that counts as having it: OpenAI's guide asks for a baseline strictly between
the lowest and the highest, and one that is near the highest leaves nothing to learn."""

REFERENCE_GAP = 0.1
"""By how much, times the scale of the rewards, an answer of the model may beat the reference."""

MIN_DISTINCT = 0.3
"""Share of different completions in a group below which sampling finds too little to compare."""

HEADROOM = 0.1
"""pass@n above pass@1 that RFT can turn into pass@1: what several tries find and one does not."""

WAITING = 0.5
"""Share of the sampling time that may be spent waiting for grades."""

Weight = Literal["blocker", "change", "note"]
Word = Literal["ready", "learnable with changes", "not learnable"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a few groups of the untrained model earned. Shares are of all groups or completions."""

    num_groups: int
    samples_per_prompt: int
    group_size: int
    """Of the job; the groups here have `samples_per_prompt`."""
    batch_size: int
    pass_threshold: float
    error_pause_rate: float
    reward_mean: float | None
    """Of graded completions; None when there is none."""
    reward_max: float | None
    reward_min: float | None
    signal: float
    """Share of groups whose rewards are not all equal."""
    all_zero: float
    """Share of groups where all rewards are equal, at 0 or below."""
    all_zero_rewards: tuple[float, ...]
    """The different rewards of those groups, the lowest first."""
    all_passing: float
    """Share of groups where all rewards are equal, at `pass_threshold` or above."""
    all_equal_between: float
    """Share of groups where all rewards are equal, between 0 and `pass_threshold`."""
    signal_groups_per_step: float
    """Expected groups with a signal in a step of `batch_size` groups of `group_size`."""
    pass_at: Mapping[int, float]
    error_rates: Mapping[str, float]
    """Share of completions whose grade has the error, by its kind."""
    failed: float
    """Share of completions whose grading failed, as `error_pause_rate` counts them."""
    length_correlation: float | None
    """Of reward and tokens within groups."""
    truncated: float
    distinct: float
    canaries: Mapping[CanaryKind, float | None]
    """Mean reward of each; None where none is known or was graded without error."""
    canary_errors: Mapping[CanaryKind, str]
    """The first error over each kind that has one, in a line."""
    waited: float
    """Share of the sampling time spent waiting for grades."""

    @property
    def best_reward(self) -> float:
        """What the best answer earns, as far as can be told: the reference, or what passes or was seen."""
        reference = self.canaries.get("reference")
        if reference is not None:
            return reference
        return max(self.pass_threshold, self.reward_max or 0.0)

    @property
    def lowest_reward(self) -> float:
        """What an answer that is worth nothing earns: 0, or less where the grader gave less."""
        return min(0.0, self.reward_min or 0.0)

    @property
    def has_only_penalties(self) -> bool:
        """Whether no answer earned more than 0, and some less: what passes is then unlikely to be above."""
        reference = self.canaries.get("reference")
        highest = max(self.reward_max or 0.0, reference or 0.0)
        return highest <= 0 and self.lowest_reward < 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something seen, why it matters, and what to change."""

    weight: Weight
    """blocker: nothing can be learnt; change: something should be changed first; note: good to know."""
    about: str
    """A stable name."""
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    word: Word
    findings: tuple[Finding, ...]
    """The gravest first."""


def judge(baseline: Baseline) -> Verdict:
    """Whether the job can learn from these rewards."""
    findings = [finding for check in CHECKS if (finding := check(baseline))]
    weights = [finding.weight for finding in findings]
    word: Word = "ready"
    if "change" in weights:
        word = "learnable with changes"
    if "blocker" in weights:
        word = "not learnable"
    order = ("blocker", "change", "note")
    return Verdict(word, tuple(sorted(findings, key=lambda finding: order.index(finding.weight))))


def failing_grades(baseline: Baseline) -> Finding | None:
    """So many grades fail that the job would pause at its first step."""
    if baseline.failed <= baseline.error_pause_rate:
        return None
    return Finding(
        "blocker",
        "failing_grades",
        f"{baseline.failed:.0%} of the grades failed ({_kinds(baseline)}): the job would pause at its first "
        f"step (engine.grading.error_pause_rate is {baseline.error_pause_rate:g}). Mend the grader first, and "
        "try it with rft grade",
    )


def nothing_graded(baseline: Baseline) -> Finding | None:
    """There is not one reward, and the job would go on all the same."""
    if baseline.reward_mean is not None or baseline.failed > baseline.error_pause_rate:
        return None
    return Finding(
        "blocker",
        "nothing_graded",
        f"No completion got a reward ({_kinds(baseline)}), so there is nothing to learn from, and the job "
        f"would go on without effect (engine.grading.error_pause_rate is {baseline.error_pause_rate:g}). "
        "Mend the grader first, and try it with rft grade",
    )


def some_errors(baseline: Baseline) -> Finding | None:
    """Grades fail, but others do not, and the job would go on."""
    if not baseline.error_rates or baseline.reward_mean is None:
        return None
    if baseline.failed > baseline.error_pause_rate:
        return None
    is_notable = max(baseline.error_rates.values()) >= NOTABLE_ERROR_RATE
    return Finding(
        "change" if is_notable else "note",
        "grading_errors",
        f"Some grades have errors ({_kinds(baseline)}): what fails teaches nothing, or the wrong thing. Mend "
        "the grader for these answers",
    )


def no_signal(baseline: Baseline) -> Finding | None:
    """No group has rewards that differ: no gradient at all."""
    if baseline.signal > 0 or baseline.reward_mean is None:
        return None
    if baseline.failed > baseline.error_pause_rate:
        return None  # what failing grades earn says nothing of the rows
    seen = f"In none of the {baseline.num_groups} groups do rewards differ, so there is nothing to learn from"
    if baseline.distinct <= 1 / baseline.samples_per_prompt:
        cause = ": all answers to a prompt are the same. Raise engine.rollout.temperature"
    elif baseline.all_zero == 1:
        cause = f": {_earned_nothing(baseline)}. {TOO_HARD}"
    elif baseline.all_passing == 1:
        cause = f": every answer passed. {TOO_EASY}"
    else:
        cause = (
            f" (mean reward {baseline.reward_mean:.3g}): the grader gives all answers to a prompt the same. "
            f"Let it tell them apart. {TOO_HARD}"
        )
    return Finding("blocker", "no_signal", seen + cause)


TOO_HARD = (
    "Take easier rows, give partial credit in the grader, teach the form of the answer first (in the prompt, "
    "or by supervised training), or raise group_size so that a rare success is seen"
)
TOO_EASY = "Take harder rows, or grade more strictly"


def too_hard(baseline: Baseline) -> Finding | None:
    """Most groups earn nothing."""
    if baseline.all_zero < MOST or baseline.signal == 0:
        return None
    return Finding(
        "change",
        "too_hard",
        f"In {baseline.all_zero:.0%} of the groups {_earned_nothing(baseline)}: too hard, and without effect. "
        f"{TOO_HARD}",
    )


def too_easy(baseline: Baseline) -> Finding | None:
    """Most groups pass, or the mean reward is near the best."""
    if baseline.signal == 0 or baseline.reward_mean is None:
        return None
    if baseline.all_passing >= MOST:
        seen = f"In {baseline.all_passing:.0%} of the groups every answer passed: too easy, and without effect"
    elif baseline.reward_mean >= NEAR_BEST * baseline.best_reward > 0:
        seen = (
            f"The mean reward {baseline.reward_mean:.3g} is near the best ({baseline.best_reward:.3g}) before "
            "any training: little is left to learn"
        )
    else:
        return None
    return Finding("change", "too_easy", f"{seen}. {TOO_EASY}")


def too_coarse(baseline: Baseline) -> Finding | None:
    """Most groups have one reward that is neither nothing nor a pass."""
    if baseline.all_equal_between < MOST or baseline.signal == 0:
        return None
    return Finding(
        "change",
        "too_coarse",
        f"In {baseline.all_equal_between:.0%} of the groups all answers earned the same, neither nothing nor a "
        "pass: the grader sees no difference between them. Let it grade more finely, or raise "
        "engine.rollout.temperature so that answers differ more",
    )


def few_groups(baseline: Baseline) -> Finding | None:
    """A step has too few groups that teach something."""
    expected = baseline.signal_groups_per_step
    enough = min(MIN_SIGNAL_GROUPS, MOST * baseline.batch_size)
    if expected >= enough or baseline.signal == 0:
        return None
    return Finding(
        "change",
        "few_groups",
        f"A step of {baseline.batch_size} groups of {baseline.group_size} will have {expected:.1f} with "
        "rewards that differ: steps will be noisy, and some without effect. Raise batch_size or "
        "engine.rollout.group_size, or set engine.training.resample_zero_signal",
    )


def cut_off(baseline: Baseline) -> Finding | None:
    """Most completions reach the token limit."""
    if baseline.truncated < MOST:
        return None
    return Finding(
        "change",
        "truncated",
        f"{baseline.truncated:.0%} of the completions were cut off at the token limit: what they would have "
        "said is not graded. Raise engine.rollout.max_completion_tokens, or ask for shorter answers; if none "
        "ever ends by itself, check that the chat template is the model's own",
    )


def same_answers(baseline: Baseline) -> Finding | None:
    """The completions of a prompt are nearly all the same."""
    if baseline.distinct >= MIN_DISTINCT or baseline.signal == 0:
        return None
    return Finding(
        "change",
        "same_answers",
        f"Only {baseline.distinct:.0%} of a prompt's completions are different: there is little to compare. "
        "Raise engine.rollout.temperature",
    )


def hollow_pays(baseline: Baseline) -> Finding | None:
    """An answer without content earns more than the model, or half of what the right answer earns."""
    rewards = {kind: baseline.canaries.get(kind) for kind in HOLLOW_KINDS}
    hollow = {kind: reward for kind, reward in rewards.items() if reward is not None}
    if not hollow:
        return None
    kind = max(hollow, key=lambda kind: hollow[kind])
    reward, reference = hollow[kind], baseline.canaries.get("reference")
    lowest = baseline.lowest_reward
    is_above_model = baseline.reward_mean is not None and reward > baseline.reward_mean
    is_near_best = reward - lowest > MAX_HOLLOW_SHARE * (baseline.best_reward - lowest)
    if lowest < 0:  # one very bad answer makes all others look near the best
        is_near_best = is_near_best and is_above_model
    if reward <= lowest or not (is_near_best or is_above_model):
        return None
    against = f"the model's answers {_number(baseline.reward_mean)}"
    if reference is not None:
        against += f", the reference {reference:.3g}"
    is_grave = is_near_best or reference is None
    remedy = (
        f"training will find it. {hacking.hollow_remedy(reward)}"
        if is_grave
        else "training may go there first, and on from there, as the right answer earns much more"
    )
    text = f"{ANSWER[kind].capitalize()} earns {reward:.3g} ({against}): {remedy}"
    return Finding("change" if is_grave else "note", "hollow_pays", text)


def reference_fails(baseline: Baseline) -> Finding | None:
    """The right answer does not earn the best reward."""
    reference, best = baseline.canaries.get("reference"), baseline.reward_max
    if reference is None:
        return None
    if best is not None and best - reference > REFERENCE_GAP * max(1.0, abs(best), abs(reference)):
        seen = f"The reference answer earns {reference:.3g}, an answer of the model {best:.3g}"
    elif reference < NEAR_BEST * baseline.pass_threshold and not baseline.has_only_penalties:
        seen = f"The reference answer earns {reference:.3g}, below the pass_threshold {baseline.pass_threshold:g}"
    else:
        return None
    return Finding(
        "change",
        "reference_fails",
        f"{seen}: the grader does not want what the data call right, and training follows the grader. Try "
        "the reference with rft grade, and mend the grader or the data",
    )


def length_pays(baseline: Baseline) -> Finding | None:
    """Longer answers earn more."""
    correlation = baseline.length_correlation
    if correlation is None or correlation < LENGTH_CORRELATION:
        return None
    return Finding(
        "change",
        "length_pays",
        f"Among the answers to one prompt longer ones earn more (correlation {correlation:.2f}): training will "
        "lengthen answers, with padding if that pays as well. Let the grader take something off for length, "
        "unless length is what you want",
    )


def headroom(baseline: Baseline) -> Finding | None:
    """What several tries find and one does not."""
    if baseline.signal == 0 or baseline.reward_mean is None:
        return None
    most = max(baseline.pass_at)
    one, many = baseline.pass_at[1], baseline.pass_at[most]
    if many == 0:
        return Finding(
            "note",
            "nothing_passes",
            f"No answer reached {baseline.pass_threshold:g} (evaluation.pass_threshold): training has to climb by "
            "partial credit. Look at validation rewards early, and whether answers that pass turn up",
        )
    if many - one < HEADROOM:
        return None
    return Finding(
        "note",
        "headroom",
        f"One try passes {one:.0%} of the prompts, {most} tries {many:.0%}: the model can do more than it does, "
        "which is what RFT brings out",
    )


def slow_grader(baseline: Baseline) -> Finding | None:
    """Sampling waits for grades."""
    if baseline.waited < WAITING:
        return None
    return Finding(
        "note",
        "slow_grader",
        f"{baseline.waited:.0%} of the sampling time went by waiting for grades: the grader sets the pace. Make "
        "it faster, or raise engine.grading.concurrency if it mostly waits for a server",
    )


def no_reference(baseline: Baseline) -> Finding | None:
    """The right answers are not known to this program."""
    if baseline.canaries.get("reference") is not None or "reference" in baseline.canary_errors:
        return None
    return Finding(
        "note",
        "no_reference",
        "No reference answer is known, so whether the right answer earns most was not tried: keep it in the "
        "rows as reference_answer to have it tried",
    )


def canary_fails(baseline: Baseline) -> Finding | None:
    """The grader raises an error over an answer of known worth."""
    text = hacking.canary_fails(baseline.canary_errors)
    if text is None:
        return None
    weight: Weight = "change" if "reference" in baseline.canary_errors else "note"
    return Finding(weight, "canary_fails", text[0].upper() + text[1:])


CHECKS: tuple[Callable[[Baseline], Finding | None], ...] = (
    failing_grades,
    nothing_graded,
    no_signal,
    some_errors,
    too_hard,
    too_easy,
    too_coarse,
    few_groups,
    cut_off,
    same_answers,
    hollow_pays,
    reference_fails,
    canary_fails,
    length_pays,
    headroom,
    slow_grader,
    no_reference,
)


def _kinds(baseline: Baseline) -> str:
    rates = sorted(baseline.error_rates.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{kind} in {rate:.1%}" for kind, rate in rates) or "without a named error"


def _earned_nothing(baseline: Baseline) -> str:
    """What the answers of the groups earned that are equal at 0 or below."""
    rewards = baseline.all_zero_rewards
    if not any(rewards):
        return "every answer earned 0"
    if len(rewards) == 1:
        return f"every answer earned the same, {rewards[0]:.3g}"
    return f"all answers to a prompt earned the same, from {rewards[0]:.3g} to {rewards[-1]:.3g}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
