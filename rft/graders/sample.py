"""A completion as graders see it, in the product's shape."""

from collections.abc import Mapping, Sequence
from typing import Any

from rft.graders.strict_json import NotJson, read_json
from rft.graders.tool_calls import parse_tool_calls
from rft.types import FinishReason, Sample, Tool


def make_sample(
    text: str,
    finish_reason: FinishReason = "stop",
    *,
    marked_text: str | None = None,
    tools: Sequence[Tool] = (),
    wants_json: bool = False,
) -> Sample:
    """The sample of a completion; equal completions have equal samples.

    `marked_text`: the text with its special tokens, where it has any. `tools`: those of the row; only
    then are calls looked for. `wants_json`: the job asks for JSON, so the text is read as such. What
    cannot be read stands under `parse_errors`, by the variable that would hold it.
    """
    parse_errors: dict[str, str] = {}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    ended = "length" if finish_reason == "length" else "stop"
    parsed = (
        parse_tool_calls(text if marked_text is None else marked_text, tools) if tools else None
    )
    if parsed and parsed.error:
        parse_errors["output_tools"] = parsed.error
    calls = list(parsed.calls) if parsed else []
    if parsed and calls:
        message = {"role": "assistant", "content": parsed.content, "tool_calls": calls}
        ended = "tool_calls" if ended == "stop" else ended
    content = message["content"]
    choice = {"index": 0, "message": message, "finish_reason": ended}
    sample: dict[str, Any] = {"output_text": content, "output_tools": calls, "choices": [choice]}
    if wants_json and (content or not calls):
        try:
            sample["output_json"] = read_json(content)
        except NotJson as error:
            parse_errors["output_json"] = str(error)
    return {**sample, "parse_errors": parse_errors} if parse_errors else sample


def parse_errors_of(sample: Sample) -> Mapping[str, str]:
    """Why a part of the completion could not be read, by the variable that would hold it."""
    errors: Mapping[str, str] = sample.get("parse_errors", {})
    return errors


def parse_error_details(sample: Sample) -> str:
    """All that could not be read, in one line; empty when all could."""
    return "; ".join(f"{name}: {details}" for name, details in parse_errors_of(sample).items())
