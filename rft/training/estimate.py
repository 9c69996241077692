"""Time and memory of a whole job, from a few measured steps."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rft.job import ResolvedJob
from rft.training.evaluation import Evaluation
from rft.training.trainer import StepRecord

SAMPLER_STAGES = ("prefill", "decode")


def time_document(
    job: ResolvedJob,
    records: Sequence[StepRecord],
    evaluation: Evaluation,
    num_training_rows: int,
    num_validation_rows: int,
) -> dict[str, Any]:
    """Seconds of the job in all and by part; `evaluation` may be of a share of the validation rows."""
    total_steps = job.steps(num_training_rows)
    num_evaluations = -(-total_steps // job.hyperparameters.eval_interval)
    num_evaluations += int(job.engine.evaluation.at_start)
    per_step = fmean(record.seconds["full_iteration"] for record in records)
    per_evaluation = evaluation.seconds * num_validation_rows / len(evaluation.groups)
    steps = {
        name: _part(values, total_steps, rate) for name, values, rate in _parts_of_steps(records)
    }
    rest = per_step - sum(part["seconds_each"] for part in steps.values())
    tokens = sum(len(r.completion.token_ids) for g in evaluation.groups for r in g.rollouts)
    return {
        "total_steps": total_steps,
        "seconds_per_step": per_step,
        "num_evaluations": num_evaluations,
        "seconds_per_evaluation": per_evaluation,
        "total_seconds": total_steps * per_step + num_evaluations * per_evaluation,
        "parts": {
            **steps,
            "rest": _part([max(0.0, rest)], total_steps, None),
            "evaluation": _part(
                [per_evaluation], num_evaluations, _rate(tokens, evaluation.seconds)
            ),
        },
    }


def warnings_of(
    records: Sequence[StepRecord], largest_step_bytes: int, available_bytes: int
) -> list[str]:
    """What makes the estimate too low, or the job too large."""
    warnings = []
    if not any(update.sums.num_tokens for record in records for update in record.updates):
        warnings.append(
            "no group of the measured steps had rewards that differ, so nothing was trained in them: "
            "a step with such groups takes longer"
        )
    if largest_step_bytes > available_bytes:
        warnings.append(
            f"a step whose completions are all as long as they may be can ask for {_gib(largest_step_bytes)}, "
            f"and there are {_gib(available_bytes)}: lower engine.rollout.slots, "
            "engine.training.token_budget or engine.rollout.max_completion_tokens"
        )
    return warnings


Measured = tuple[str, list[float], float | None]
"""A part's name, its seconds in each step, and its tokens per second."""


def _parts_of_steps(records: Sequence[StepRecord]) -> list[Measured]:
    def seconds(name: str) -> list[float]:
        return [record.seconds[name] for record in records]

    trained = sum(update.sums.num_tokens for record in records for update in record.updates)
    return [
        *_sampling_parts(records),
        ("grading", seconds("grading_wait"), None),
        ("training", seconds("training"), _rate(trained, sum(seconds("training")))),
        ("sync", seconds("sync"), None),
    ]


def _sampling_parts(records: Sequence[StepRecord]) -> list[Measured]:
    """Prefill and decode, or both as one where the engine cannot tell."""
    if all(stage in record.sampler_spent for record in records for stage in SAMPLER_STAGES):
        return [_stage(records, stage) for stage in SAMPLER_STAGES]
    seconds = [record.seconds["sampling"] - record.seconds["grading_wait"] for record in records]
    groups = [group for record in records for group in (*record.groups, *record.replaced)]
    tokens = sum(len(r.completion.token_ids) for group in groups for r in group.rollouts)
    return [("sampling", seconds, _rate(tokens, sum(seconds)))]


def _stage(records: Sequence[StepRecord], stage: str) -> Measured:
    seconds = [record.sampler_spent[stage] for record in records]
    tokens = sum(record.sampler_spent[f"{stage}_tokens"] for record in records)
    return stage, seconds, _rate(tokens, sum(seconds))


def _part(seconds: Sequence[float], times: int, rate: float | None) -> Mapping[str, Any]:
    each = fmean(seconds)
    return {"seconds_each": each, "total_seconds": times * each, "tokens_per_second": rate}


def _rate(num_tokens: float, seconds: float) -> float | None:
    return num_tokens / seconds if seconds > 0 else None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
