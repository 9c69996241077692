"""What model graders ask a judge, and what it answers; graders own the protocol, others implement it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rft.types import Message


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One call of a judge."""

    messages: tuple[Message, ...]
    """The conversation: `role` and text `content`, filled in and fenced."""
    schema_name: str
    schema: Mapping[str, Any]
    """The JSON schema of the reply."""
    replies: tuple[str, ...] = ()
    """A few that stand for all that fit the schema: a judge that can may then tell how likely each is among them,
    in place of giving one. Empty: it gives one."""
    max_tokens: int | None = None
    temperature: float | None = None
    """None: the judge's own default; a judge in this process then answers greedily."""
    top_p: float | None = None
    seed: int | None = None
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What the judge answered."""

    text: str
    finish_reason: Literal["stop", "length"]
    refusal: str | None = None
    """Its words where it declined to answer."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """prompt_tokens, completion_tokens, cached_tokens."""
    model: str = ""
    """The model that answered, by the name it goes by."""
    probabilities: tuple[float, ...] = ()
    """Of each of the request's `replies`, where the judge tells; `text` is then the likeliest."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Where judges are, and how they are asked."""

    base_url: str | None = None
    """None: OpenAI's."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    concurrency: int = 16
    """Calls of one judge at a time."""
    timeout_seconds: float = 120
    """Of one call, retries included, once its turn has come."""


class Judge(Protocol):
    """A model that graders can ask; safe to call from several threads."""

    def answer(self, request: JudgeRequest) -> JudgeReply:
        """The reply to one request; raises GradingFault, never of the sample, where there is none."""

    def close(self) -> None:
        """Ends calls in flight; nothing is answered afterwards."""


class StandInJudge:
    """Says the least that it is asked for: for trying a grader before the judges of this process are loaded."""

    def answer(self, request: JudgeRequest) -> JudgeReply:
        result = request.schema["properties"]["result"]
        least = result["enum"][0] if "enum" in result else result["minimum"]
        return JudgeReply(json.dumps({"steps": [], "result": least}), "stop")

    def close(self) -> None:
        return
