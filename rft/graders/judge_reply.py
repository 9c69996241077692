"""The structured reply of a judge: its JSON schema, and its strict reading."""

from collections.abc import Mapping, Sequence
from typing import Any

from rft.graders.fault import Flag, GradingFault
from rft.graders.judge import JudgeReply
from rft.graders.strict_json import NotJson, read_json_at, skip_blanks

STEP_CHARACTERS = 80
STEP_TOKENS = 96
"""Room for a step: two texts of STEP_CHARACTERS, and its JSON."""
RESULT_TOKENS = 32
"""Room for what is no step."""
MAX_SHOWN = 200


def reply_schema(result: Mapping[str, Any], max_tokens: int | None = None) -> dict[str, Any]:
    """`{"steps": [{"description", "conclusion"}], "result": …}`, as the product asks its judges.

    With `max_tokens`, as many and as long steps as are likely to fit within them, beside the result.
    """
    return an_object(steps=step_list(max_tokens), result=dict(result))


def step_list(max_tokens: int | None) -> dict[str, Any]:
    if max_tokens is None:
        text: dict[str, Any] = {"type": "string"}
        return {"type": "array", "items": an_object(description=text, conclusion=text)}
    text = {"type": "string", "maxLength": STEP_CHARACTERS}
    return {
        "type": "array",
        "items": an_object(description=text, conclusion=text),
        "maxItems": max(0, (max_tokens - RESULT_TOKENS) // STEP_TOKENS),
    }


def an_object(**properties: Any) -> dict[str, Any]:
    """The schema of an object with just these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def score_of_reply(reply: JudgeReply) -> float:
    """The finite number that is the result; raises GradingFault."""
    result = result_of(reply)
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise parse_fault(f"result is no number but a {type(result).__name__}", reply)
    return float(result)


def label_of_reply(reply: JudgeReply, labels: Sequence[str]) -> str:
    """The label that is the result; raises GradingFault."""
    result = result_of(reply)
    if not isinstance(result, str) or result not in labels:
        raise parse_fault("result is none of the labels", reply)
    return result


def result_of(reply: JudgeReply) -> Any:
    """The `result` of a reply that is exactly one JSON object of the structure; raises GradingFault."""
    if reply.refusal is not None:
        raise fault("model_grader_refusal_error", f"the judge refused: {shown(reply.refusal)}")
    if reply.finish_reason == "length":
        what = "the judge's reply was cut at its token limit"
        raise fault("model_grader_exceeded_max_tokens_error", f"{what}: {shown(reply.text)}")
    try:
        value, end = read_json_at(reply.text, 0)
    except NotJson as error:
        raise parse_fault(str(error), reply) from None
    if skip_blanks(reply.text, end) < len(reply.text):
        raise parse_fault("text after the JSON", reply)
    if not isinstance(value, dict) or value.keys() != {"steps", "result"}:
        raise parse_fault('not an object of "steps" and "result"', reply)
    if not isinstance(value["steps"], list):
        raise parse_fault("steps is no list", reply)
    return value["result"]


def parse_fault(what: str, reply: JudgeReply) -> GradingFault:
    return fault("model_grader_parse_error", f"{what}: {shown(reply.text)}")


def fault(flag: Flag, details: str) -> GradingFault:
    return GradingFault(flag, details, of_sample=False)


def shown(text: str) -> str:
    """The beginning of a text on one line, safe to print."""
    printable = "".join(c if c.isprintable() else " " for c in text[: MAX_SHOWN + 1])
    return printable if len(printable) <= MAX_SHOWN else printable[:MAX_SHOWN] + "…"
