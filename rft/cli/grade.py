"""`rft grade`: one call of a job's grader, answered like the product's grader run."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rft.cli.output import Json, Reply
from rft.cli.probe import JobFile, Overrides
from rft.cli.text import decimal, shorten
from rft.errors import DataError
from rft.types import Grade, Sample, Tool

FLAGS = {
    "formula_parse_error": "",
    "sample_parse_error": "details",
    "truncated_observation_error": "",
    "unresponsive_reward_error": "",
    "invalid_variable_error": "details",
    "other_error": "",
    "python_grader_server_error": "type",
    "python_grader_runtime_error": "details",
    "model_grader_server_error": "details",
    "model_grader_refusal_error": "details",
    "model_grader_parse_error": "details",
    "model_grader_exceeded_max_tokens_error": "",
    "endpoint_grader_internal_error": "details",
    "endpoint_grader_server_error": "details",
    "endpoint_grader_safety_check_error": "",
}
"""The product's error flags, each with the field that says more about it."""


def grade(
    job_file: JobFile,
    sample: Annotated[str, typer.Option(metavar="TEXT", help="The completion to grade.")],
    overrides: Overrides = None,
    item: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A JSON file with one row of data; `-` reads stdin."),
    ] = None,
    as_json: Json = False,
) -> Reply:
    """Grade one completion with the job's grader.

    \b
    Example:
      rft grade job.yaml --item item.json --sample "Paris"
    """
    from rft.data import item_by_hand
    from rft.graders import local_judges, open_grader, passes
    from rft.job import load_job

    job = load_job(job_file, overrides or ())
    row = item_by_hand(read_item(item), job.engine.data)
    settings = job.grading_settings
    if local_judges(job.grader):
        from rft.training.judges import judges_alone

        settings = replace(settings, local_judges=judges_alone(job))
    made = sample_of(sample, tools_of(row, item), job.completion_schema is not None)
    with open_grader(job.grader, settings) as grader:
        graded = grader.grade(made, row)
    passed = passes(job.grader, graded, job.grading_settings)
    document = product_reply(graded, passed)
    return Reply(document, grade_lines(graded, passed), as_json)


def read_item(path: Path | None) -> dict[str, Any]:
    """The row in a JSON file; empty without one. Raises DataError."""
    if path is None:
        return {}
    where = "stdin" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if where == "stdin" else path.read_bytes()
        value = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"the item cannot be read: {error.strerror}",
            where=where,
            remedy="give --item a JSON file that holds one row of the data",
        ) from None
    except UnicodeDecodeError:
        raise DataError("the item is not UTF-8", where=where, remedy="save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"the item is not JSON: {error.msg}",
            where=f"{where}:{error.lineno}:{error.colno}",
            remedy="give --item a file with one JSON object",
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the item is not JSON: {error}", where=where) from None
    if not isinstance(value, dict):
        raise DataError(
            f"the item is a JSON {type(value).__name__}, not an object",
            where=where,
            remedy='give an object such as {"reference": "Paris"}',
        )
    return value


def tools_of(row: Mapping[str, Any], path: Path | None) -> Sequence[Tool]:
    """The tools of the row in a file; raises DataError."""
    from rft.data.rows import RowError
    from rft.data.tools import check_tools

    try:
        return check_tools(row.get("tools"))
    except RowError as error:
        raise DataError(error.problem("stdin" if str(path) == "-" else str(path))) from None


def sample_of(text: str, tools: Sequence[Tool] = (), wants_json: bool = False) -> Sample:
    """A completion as graders see it; a text that is JSON has `output_json` too, whatever the job asks for."""
    from rft.graders.sample import make_sample

    sample = make_sample(text, tools=tools, wants_json=True)
    return sample if wants_json or "output_json" in sample else make_sample(text, tools=tools)


def product_reply(grade: Grade, passed: Mapping[str, bool]) -> dict[str, Any]:
    """A grade in the shape of the product's grader run, and which graders passed."""
    return {
        "reward": grade.reward,
        "metadata": {
            "name": grade.name,
            "type": grade.type,
            "errors": _error_fields(grade),
            "execution_time": grade.latency,
            "scores": grade.sub_rewards,
            "passed": dict(passed),
            "token_usage": dict(grade.usage) or None,
            "sampled_model_name": grade.model or None,
        },
        "sub_rewards": grade.sub_rewards,
        "model_grader_token_usage_per_model": usage_per_model(grade),
    }


def usage_per_model(grade: Grade) -> dict[str, dict[str, int]]:
    """Tokens by the model that judged, with their total."""
    usage: dict[str, Counter[str]] = {}
    for part in (grade, *grade.sub_grades.values()):
        if part.model:
            usage.setdefault(part.model, Counter()).update(part.usage)
    return {
        model: {**counts, "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"]}
        for model, counts in usage.items()
    }


def grade_lines(grade: Grade, passed: Mapping[str, bool]) -> list[str]:
    """A grade for a person."""
    lines = [f"reward  {_reward(grade.reward)}"]
    lines += [f"  {key}  {_reward(reward)}" for key, reward in grade.sub_rewards.items()]
    lines += [f"  {flag}: {shorten(details, 2000)}" for flag, details in grade.errors.items()]
    lines += [f"  {name} {'passed' if done else 'did not pass'}" for name, done in passed.items()]
    lines.append(f"graded by {grade.name} ({grade.type}) in {decimal(grade.latency)} s")
    return lines


def _error_fields(grade: Grade) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for flag, more in FLAGS.items():
        fields[flag] = flag in grade.errors
        if more:
            fields[f"{flag}_{more}"] = grade.errors.get(flag)
        elif grade.errors.get(flag):
            fields[f"{flag}_details"] = grade.errors[flag]
    for flag in grade.errors.keys() - FLAGS.keys():
        fields[flag] = True
        fields[f"{flag}_details"] = grade.errors[flag]
    return fields


def _reward(reward: float | None) -> str:
    return "none (not the completion's fault)" if reward is None else f"{reward:.6g}"
