"""A step's record and an evaluation → metrics: flat for `metrics.jsonl`, the product's tree for events,
and a line of `results.csv`. The formulas stand in ARCHITECTURE.md."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import pstdev
from typing import Any

from rft.graders.multi import own_errors
from rft.graders.template import is_of_answer
from rft.runs.results import counted_as, error_kinds
from rft.training.evaluation import Evaluation, mean, sub_reward_means
from rft.training.trainer import StepRecord
from rft.types import Completion, Grade, Group, Rollout

MODEL_GRADERS = ("score_model", "label_model")
USAGE_KINDS = ("prompt_tokens", "completion_tokens", "cached_tokens")

Part = tuple[str, str]
"""(name, type) of a grader, the job's own first, then a multi grader's children."""


def step_metrics(record: StepRecord) -> dict[str, Any]:
    """The flat metrics of a training step."""
    groups = [*record.groups, *record.replaced]
    rollouts = _rollouts(groups)
    rewards = _rewards(rollouts)
    completions = [rollout.completion for rollout in rollouts]
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    sampling_seconds = record.seconds["sampling"]
    return {
        "train_reward_mean": mean(rewards),
        **{f"train_reward_mean/{k}": v for k, v in sub_reward_means(groups).items()},
        "train_reward_std": pstdev(rewards) if rewards else None,
        "completion_tokens_mean": _mean_of(completions, _num_tokens),
        "reasoning_tokens_mean": _mean_of(completions, _num_reasoning_tokens),
        "mean_unresponsive_rewards": 1 - len(rewards) / len(rollouts),
        **_error_metrics("train", rollouts),
        "rollout/groups": len(groups),
        "rollout/zero_signal_groups": sum(is_dull(group) for group in groups),
        "rollout/skipped_groups": sum(len(group.graded) < 2 for group in groups),
        "rollout/resampled_groups": len(record.replaced),
        "rollout/truncated_fraction": mean([float(c.is_truncated) for c in completions]),
        "rollout/unanswered_fraction": mean([float(c.ends_in_thinking) for c in completions]),
        "rollout/distinct_fraction": mean([distinct_fraction(group) for group in groups]),
        **_update_metrics(record),
        **{f"timing/{name}": seconds for name, seconds in record.seconds.items()},
        "timing/grading": sum(rollout.grade.latency for rollout in rollouts),
        "timing/grader_calls": sum(rollout.grade.latency > 0 for rollout in rollouts),
        **judge_usage(rollouts),
        "timing/grading_tokens_per_second": _graded_tokens_per_second(rollouts),
        "timing/sampling_tokens_per_second": num_tokens / max(sampling_seconds, 1e-9),
        **sampler_timing(record.sampler_spent),
        **_training_timing(record),
    }


def evaluation_metrics(evaluation: Evaluation, pass_threshold: float) -> dict[str, Any]:
    """The flat metrics of an evaluation."""
    rollouts = _rollouts(evaluation.groups)
    completions = [rollout.completion for rollout in rollouts]
    passes = evaluation.pass_at(pass_threshold)
    return {
        "valid_reward_mean": evaluation.reward_mean,
        **{f"valid_reward_mean/{k}": v for k, v in sub_reward_means(evaluation.groups).items()},
        "valid_reward_se": evaluation.standard_error,
        "valid_graded_reward_mean": evaluation.graded_reward_mean,
        "valid_ungraded_fraction": evaluation.ungraded_fraction,
        **{f"valid_pass@{k}": value for k, value in passes.items()},
        "valid_completion_tokens_mean": _mean_of(completions, _num_tokens),
        "valid_reasoning_tokens_mean": _mean_of(completions, _num_reasoning_tokens),
        "valid_truncated_fraction": mean([float(c.is_truncated) for c in completions]),
        "valid_unanswered_fraction": mean([float(c.ends_in_thinking) for c in completions]),
        **_error_metrics("valid", rollouts),
        "timing/evaluation": evaluation.seconds,
        "timing/evaluation_tokens_per_second": _per_second(
            sum(map(_num_tokens, completions)), evaluation.seconds
        ),
    }


def sampler_timing(spent: Mapping[str, float]) -> dict[str, float | None]:
    """Seconds and tokens/s of prefill and decode, as `Sampler.spent` counts them."""
    if not spent:
        return {}
    prefill, decode = spent.get("prefill", 0.0), spent.get("decode", 0.0)
    return {
        "timing/prefill": prefill,
        "timing/prefill_tokens_per_second": _per_second(spent.get("prefill_tokens", 0), prefill),
        "timing/decode": decode,
        "timing/decode_tokens_per_second": _per_second(spent.get("decode_tokens", 0), decode),
    }


def metric_tree(
    flat: Mapping[str, Any],
    parts: Sequence[Part],
    record: StepRecord | None,
    evaluation: Evaluation | None,
) -> dict[str, Any]:
    """`data` of a metrics event, in the product's shape; null where a step has no evaluation."""
    train = _rollouts([*record.groups, *record.replaced]) if record else []
    valid = _rollouts(evaluation.groups) if evaluation else []
    return {
        "step": flat["step"],
        "total_steps": flat["total_steps"],
        "train_mean_reward": flat.get("train_reward_mean"),
        "full_valid_mean_reward": flat.get("valid_reward_mean"),
        "full_valid_mean_parse_error": _rate(valid, "sample_parse_error"),
        "mean_unresponsive_rewards": flat.get("mean_unresponsive_rewards"),
        "reasoning_tokens_mean": flat.get("reasoning_tokens_mean"),
        "valid_reasoning_tokens_mean": flat.get("valid_reasoning_tokens_mean"),
        "completion_tokens_mean": flat.get("completion_tokens_mean"),
        "model_graders_token_usage": usage_by_model(train, valid),
        "usage": {
            "graders": [
                _usage_entry(index, part, train, valid)
                for index, part in enumerate(parts)
                if part[1] in MODEL_GRADERS
            ],
            "samples": _reasoning_usage(train, valid),
        },
        "scores": {
            "train_reward_mean": flat.get("train_reward_mean"),
            "valid_reward_mean": flat.get("valid_reward_mean"),
            "graders": [_score_entry(i, part, train, valid) for i, part in enumerate(parts)],
        },
        "errors": {"graders": [_error_entry(i, p, train, valid) for i, p in enumerate(parts)]},
        "timing": {
            "step": {
                "sampling": flat.get("timing/sampling"),
                "training": flat.get("timing/training"),
                "eval": flat.get("timing/evaluation"),
                "full_iteration": flat.get("timing/full_iteration"),
            },
            "graders": [_latency_entry(i, p, train, valid) for i, p in enumerate(parts)],
        },
    }


def results_row(flat: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The line of `results.csv` for a step."""
    row = {
        "step": flat["step"],
        "train_mean_reward": flat.get("train_reward_mean"),
        "full_valid_mean_reward": flat.get("valid_reward_mean"),
        "pg_loss_sum": flat.get("loss/policy"),
        "total_loss_sum": flat.get("loss/total"),
        "entropy_loss_sum": flat.get("policy/entropy"),
        "completion_tokens_mean": flat.get("completion_tokens_mean"),
        "reasoning_tokens_mean": flat.get("reasoning_tokens_mean"),
        "mean_unresponsive_rewards": flat.get("mean_unresponsive_rewards"),
        "sampling_duration": flat.get("timing/sampling"),
        "training_duration": flat.get("timing/training"),
        "eval_duration": flat.get("timing/evaluation"),
        "total_duration": flat.get("timing/full_iteration"),
    }
    for area, infix in (("scores", ""), ("errors", "errors/")):
        for entry in tree[area]["graders"]:
            place = f"{area}/graders/{entry['type']}/{entry['name']}/{infix}"
            row |= {place + key: v for key, v in entry.items() if key not in ("name", "type")}
    return row


def sample_rows(record: StepRecord) -> list[dict[str, Any]]:
    """A step's rollouts as rows of `samples/`."""
    replaced = [(group, (None,) * len(group.rollouts)) for group in record.replaced]
    pairs = [*zip(record.groups, record.advantages, strict=True), *replaced]
    return [
        {"ordinal": group.ordinal, "advantage": advantages[sample], **_row(group, sample)}
        for group, advantages in sorted(pairs, key=lambda pair: pair[0].ordinal)
        for sample in range(len(group.rollouts))
    ]


def evaluation_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """An evaluation's rollouts as rows of `evaluations/`."""
    return [_row(group, i) for group in evaluation.groups for i in range(len(group.rollouts))]


def grading_failures(groups: Sequence[Group]) -> list[tuple[Group, int]]:
    """Group and sample of each rollout whose grading failed: ungraded, or with an error other than that
    the completion is not what a grader reads, as the first answers of a policy often are."""
    return [
        (group, sample)
        for group in groups
        for sample, rollout in enumerate(group.rollouts)
        if _has_failed(rollout.grade)
    ]


def _has_failed(grade: Grade) -> bool:
    """Whether a grade, or a part of it, fails for another reason than what the policy wrote."""
    own = own_errors(grade)
    excused = [flag for flag, details in own.items() if is_of_answer(flag, details)]
    if len(excused) < len(own) or any(map(_has_failed, grade.sub_grades.values())):
        return True
    return grade.reward is None and not all_errors(grade)


def all_errors(grade: Grade) -> dict[str, str]:
    """The error flags of a grade and of its parts, with details."""
    errors = dict(grade.errors)
    for part in grade.sub_grades.values():
        errors |= all_errors(part)
    return errors


def errors_by_part(grade: Grade) -> dict[str, dict[str, str]]:
    """Flags and details by who raised them: a part under its key, the grader itself under its name."""
    # a key is a plain word, so that no name with its type is one
    is_key = grade.name in grade.sub_grades
    own_name = f"{grade.name} ({grade.type})" if is_key else grade.name
    parts = {key: dict(part.errors) for key, part in grade.sub_grades.items()}
    found = {own_name: own_errors(grade), **parts}
    return {name: errors for name, errors in found.items() if errors}


def _update_metrics(record: StepRecord) -> dict[str, Any]:
    updates = record.updates
    num_tokens = sum(update.sums.num_tokens for update in updates)
    first = updates[0].sums
    return {
        "loss/total": sum(update.sums.loss for update in updates),
        "loss/policy": sum(update.sums.policy_loss for update in updates),
        "loss/kl": mean([update.sums.kl for update in updates]),
        "policy/entropy": _ratio(sum(update.sums.entropy for update in updates), num_tokens),
        "policy/clipped_fraction": _ratio(sum(u.sums.num_clipped for u in updates), num_tokens),
        "rollout/logprob_gap": _ratio(first.gap, first.num_tokens),
        "rollout/logprob_gap_max": first.gap_max if first.num_tokens else None,
        "optimizer/gradient_norm": mean([update.gradient_norm for update in updates]),
        "optimizer/update_norm": mean([update.update_norm for update in updates]),
        "optimizer/skipped_updates": sum(update.is_skipped for update in updates),
        "optimizer/learning_rate": updates[-1].learning_rate,
        "optimizer/trained_tokens": num_tokens,
    }


def _training_timing(record: StepRecord) -> dict[str, float | None]:
    """Tokens of all ranks and updates per second: completion tokens that were trained, and all inputs."""
    seconds = record.seconds["training"]
    trained = sum(update.sums.num_tokens for update in record.updates)
    inputs = sum(update.sums.num_input_tokens for update in record.updates)
    return {
        "timing/training_tokens_per_second": _per_second(trained, seconds),
        "timing/training_input_tokens_per_second": _per_second(inputs, seconds),
    }


def _graded_tokens_per_second(rollouts: Sequence[Rollout]) -> float | None:
    """Completion tokens that the grader was called for per second of its calls."""
    called = [rollout for rollout in rollouts if rollout.grade.latency > 0]
    num_tokens = sum(_num_tokens(rollout.completion) for rollout in called)
    return _per_second(num_tokens, sum(rollout.grade.latency for rollout in called))


def _per_second(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None


def _error_metrics(split: str, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Counts and rates of each kind, then of each kind in each part of a multi; none that are 0."""
    grades = [rollout.grade for rollout in rollouts]
    kinds = Counter(kind for grade in grades for kind in all_errors(grade))
    kinds_of_parts = Counter(
        (part, kind)
        for grade in grades
        if grade.sub_grades
        for part, errors in errors_by_part(grade).items()
        for kind in errors
    )
    metrics: dict[str, float] = {}
    for kind, count in sorted(kinds.items()):
        metrics[f"errors/{split}_{kind}_count"] = count
        metrics[f"errors/{split}_{kind}_mean"] = count / len(rollouts)
    for (part, kind), count in sorted(kinds_of_parts.items()):
        metrics[f"errors/{part}/{split}_{kind}_count"] = count
        metrics[f"errors/{part}/{split}_{kind}_mean"] = count / len(rollouts)
    return metrics


def _score_entry(
    index: int, part: Part, train: Sequence[Rollout], valid: Sequence[Rollout]
) -> dict[str, Any]:
    def score(rollouts: Sequence[Rollout]) -> float | None:
        rewards = [_part(rollout.grade, index).reward for rollout in rollouts]
        graded = [reward for reward in rewards if reward is not None]
        return mean(graded) if graded else None

    return _entry(part) | {"train_reward_mean": score(train), "valid_reward_mean": score(valid)}


def _error_entry(
    index: int, part: Part, train: Sequence[Rollout], valid: Sequence[Rollout]
) -> dict[str, Any]:
    """What the grader raised itself; a multi grader's entry leaves its parts' errors to theirs."""
    entry = _entry(part)
    for split, rollouts in (("train", train), ("valid", valid)):
        raised = [own_errors(_part(rollout.grade, index)) for rollout in rollouts]
        kinds = [{counted_as(flag, part[1]) for flag in flags} for flags in raised]
        for kind in error_kinds(part[1]):
            count = sum(kind in found for found in kinds)
            entry[f"{split}_{kind}_mean"] = count / len(rollouts) if rollouts else None
            entry[f"{split}_{kind}_count"] = count if rollouts else None
    return entry


def _latency_entry(
    index: int, part: Part, train: Sequence[Rollout], valid: Sequence[Rollout]
) -> dict[str, Any]:
    """Seconds per call that was really made; a grade used again counts for none."""

    def latency(rollouts: Sequence[Rollout]) -> float | None:
        seconds = [_part(rollout.grade, index).latency for rollout in rollouts]
        calls = [value for value in seconds if value > 0]
        return mean(calls) if calls else None

    return _entry(part) | {
        "train_execution_latency_mean": latency(train),
        "valid_execution_latency_mean": latency(valid),
    }


def usage_by_model(train: Sequence[Rollout], valid: Sequence[Rollout]) -> dict[str, dict[str, int]]:
    """Tokens of the calls that were made, by the model that judged: `train_prompt_tokens`, `eval_…`, …"""
    usage: dict[str, dict[str, int]] = {}
    for split, rollouts in (("train", train), ("eval", valid)):
        for grade in judged_grades(rollouts):
            counts = usage.setdefault(
                grade.model, {f"{s}_{kind}": 0 for s in ("train", "eval") for kind in USAGE_KINDS}
            )
            for kind in USAGE_KINDS:
                counts[f"{split}_{kind}"] += grade.usage.get(kind, 0)
    return usage


def judged_grades(rollouts: Sequence[Rollout]) -> list[Grade]:
    """The grades of all model graders, parts of a multi included."""
    grades = [part for r in rollouts for part in (r.grade, *r.grade.sub_grades.values())]
    return [grade for grade in grades if grade.model]


def _usage_entry(
    index: int, part: Part, train: Sequence[Rollout], valid: Sequence[Rollout]
) -> dict[str, Any]:
    """Tokens of one grader: per call that was made, and in all."""
    entry: dict[str, Any] = _entry(part)
    models = [m for r in (*train, *valid) if (m := _part(r.grade, index).model)]
    entry["model"] = models[0] if models else None
    for split, rollouts in (("train", train), ("valid", valid)):
        calls = [usage for r in rollouts if (usage := _part(r.grade, index).usage)]
        for kind in ("prompt_tokens", "completion_tokens"):
            counts = [usage.get(kind, 0) for usage in calls]
            entry[f"{split}_{kind}_mean"] = mean(counts) if counts else None
            entry[f"{split}_{kind}_count"] = sum(counts) if rollouts else None
    return entry


def judge_usage(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`timing/judge_…_tokens`: what judges read and wrote for these rollouts; empty without any."""
    grades = judged_grades(rollouts)
    if not grades:
        return {}
    read, written = (
        sum(grade.usage.get(kind, 0) for grade in grades)
        for kind in ("prompt_tokens", "completion_tokens")
    )
    return {"timing/judge_prompt_tokens": read, "timing/judge_completion_tokens": written}


def _entry(part: Part) -> dict[str, Any]:
    return {"name": part[0], "type": part[1]}


def _part(grade: Grade, index: int) -> Grade:
    """Grade of the job's grader (0) or of a multi grader's child, in document order."""
    return grade if index == 0 else list(grade.sub_grades.values())[index - 1]


def _reasoning_usage(train: Sequence[Rollout], valid: Sequence[Rollout]) -> dict[str, Any]:
    usage: dict[str, Any] = {}
    for split, rollouts in (("train", train), ("valid", valid)):
        completions = [rollout.completion for rollout in rollouts]
        counts = [completion.num_reasoning_tokens for completion in completions]
        usage[f"{split}_reasoning_tokens_mean"] = mean(counts) if counts else None
        usage[f"{split}_reasoning_tokens_count"] = sum(counts) if counts else None
    return usage


def _row(group: Group, sample: int) -> dict[str, Any]:
    completion, grade = group.rollouts[sample].completion, group.rollouts[sample].grade
    example = group.prompt.example
    return {
        "row": example.row,
        "sample": sample,
        "prompt": group.prompt.text,
        "messages": list(example.messages),
        "completion": completion.text,
        "output_text": completion.output_text,
        "finish_reason": completion.finish_reason,
        "ends_in_thinking": completion.ends_in_thinking,
        "num_tokens": len(completion.token_ids),
        "reward": grade.reward,
        "sub_rewards": grade.sub_rewards,
        "errors": errors_by_part(grade),
        "item": dict(example.item),
    }


def _rollouts(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def _rewards(rollouts: Sequence[Rollout]) -> list[float]:
    return [r.grade.reward for r in rollouts if r.grade.reward is not None]


def is_dull(group: Group) -> bool:
    """At least two graded rollouts, all with exactly the same reward."""
    return len(group.graded) >= 2 and not group.has_signal


def distinct_fraction(group: Group) -> float:
    """Different completions / completions."""
    return len({rollout.completion.token_ids for rollout in group.rollouts}) / len(group.rollouts)


def _mean_of(completions: Sequence[Completion], number: Callable[[Completion], int]) -> float:
    return mean([number(completion) for completion in completions])


def _num_tokens(completion: Completion) -> int:
    return len(completion.token_ids)


def _num_reasoning_tokens(completion: Completion) -> int:
    return completion.num_reasoning_tokens


def _rate(rollouts: Sequence[Rollout], kind: str) -> float | None:
    if not rollouts:
        return None
    return mean([float(kind in all_errors(rollout.grade)) for rollout in rollouts])


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None
