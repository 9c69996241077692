"""`results.csv`: the product's table of a job, one line a step."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

JOB_COLUMNS = (
    "step",
    "train_mean_reward",
    "full_valid_mean_reward",
    "pg_loss_sum",
    "total_loss_sum",
    "entropy_loss_sum",
    "completion_tokens_mean",
    "reasoning_tokens_mean",
    "mean_unresponsive_rewards",
    "sampling_duration",
    "training_duration",
    "eval_duration",
    "total_duration",
)
ANY_GRADER_ERRORS = ("sample_parse_error", "invalid_variable_error", "other_error")
MODEL_ERRORS = (
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
    "model_grader_exceeded_max_tokens_error",
)
EXTRA_ERRORS: Mapping[str, tuple[str, ...]] = {
    "python": ("python_grader_server_error", "python_grader_runtime_error"),
    "endpoint": (
        "endpoint_grader_server_error",
        "endpoint_grader_internal_error",
        "endpoint_grader_safety_check_error",
    ),
    "score_model": MODEL_ERRORS,
    "label_model": MODEL_ERRORS,
}


def error_kinds(grader_type: str) -> tuple[str, ...]:
    """The error flags that are counted for a grader of that type."""
    return ANY_GRADER_ERRORS + EXTRA_ERRORS.get(grader_type, ())


def counted_as(flag: str, grader_type: str) -> str:
    """The kind under which a flag of such a grader is counted: `other_error` where it has no own."""
    return flag if flag in error_kinds(grader_type) else "other_error"


def results_columns(grader_parts: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The header for graders given as (name, type): the job's columns, rewards, then errors."""
    rewards = [
        f"scores/graders/{type}/{name}/{split}_reward_mean"
        for name, type in grader_parts
        for split in ("train", "valid")
    ]
    errors = [
        f"errors/graders/{type}/{name}/errors/{split}_{kind}_{measure}"
        for name, type in grader_parts
        for kind in error_kinds(type)
        for split in ("train", "valid")
        for measure in ("mean", "count")
    ]
    return tuple(dict.fromkeys((*JOB_COLUMNS, *rewards, *errors)))


def csv_line(values: Sequence[Any]) -> bytes:
    """One line of CSV; blank where a value is None or not finite."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([_cell(value) for value in values])
    return stream.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    is_blank = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if is_blank else value
