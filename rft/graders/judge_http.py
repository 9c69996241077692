"""A judge behind an OpenAI-compatible server: POST {base_url}/chat/completions."""

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rft.errors import GraderError, Problem
from rft.graders.addresses import (
    AddressRefused,
    canonical_host,
    kind_if_surely_private,
    literal_address,
)
from rft.graders.fault import GradingFault
from rft.graders.http import (
    BACKOFF_SECONDS,
    HttpClient,
    NoReply,
    Reply,
    ReplyTooLarge,
    Url,
    excerpt,
    parse_url,
    status_words,
)
from rft.graders.judge import JudgeReply, JudgeRequest, JudgeSettings
from rft.graders.judge_reply import fault
from rft.types import Message

OPENAI_HOST = "api.openai.com"
REQUESTS_PER_SECOND = 1000.0
"""The number of calls under way is what is limited."""
PRIVATE_HOSTS_KEY = "engine.grading.endpoint.private_hosts"
MIN_SECRET = 6
"""Characters; anything shorter is no secret."""
NO_SECRET = b"\xff\xff"
"""Stands in no text."""
MAX_NAME = 100
"""Characters of a model's name; a longer one is none."""
REMEDIES = {
    401: "set {key_env} to a valid key",
    403: "set {key_env} to a key that may use this model",
    404: "check base_url, which ends with /v1 as a rule, and the model's name",
}


class HttpJudge:
    """Asks a server; at most `concurrency` calls at a time. Retries as `HttpClient` does."""

    def __init__(
        self,
        url: Url,
        model: str,
        settings: JudgeSettings,
        private_hosts: tuple[str, ...] = (),
        backoff_seconds: float = BACKOFF_SECONDS,
    ):
        self._model = model
        self._key_env = settings.api_key_env
        self._key = os.environ.get(settings.api_key_env, "").strip()
        self._key_bytes = self._key.encode() if len(self._key) >= MIN_SECRET else NO_SECRET
        self._is_openai = url.host == OPENAI_HOST
        self._free = threading.BoundedSemaphore(settings.concurrency)
        own = (url.host,) if is_loopback(url.host) else ()
        self._client = HttpClient(
            url,
            requests_per_second=REQUESTS_PER_SECOND,
            private_hosts=(*private_hosts, *own),
            total_seconds=settings.timeout_seconds,
            backoff_seconds=backoff_seconds,
        )

    def answer(self, request: JudgeRequest) -> JudgeReply:
        """The reply of the server; raises GradingFault, never of the sample."""
        body = json.dumps(self._document(request)).encode("ascii")
        with self._free:
            try:
                reply = self._client.post(body, self._headers())
            except AddressRefused as error:
                details = f"{error}; if that is meant, add the host to {PRIVATE_HOSTS_KEY}"
                raise self._server_fault(details) from None
            except (NoReply, ReplyTooLarge) as error:
                raise self._server_fault(str(error)) from None
        reply = replace(reply, body=reply.body.replace(self._key_bytes, b"***"))
        if not reply.is_success:
            remedy = REMEDIES.get(reply.status, "").format(key_env=self._key_env)
            raise self._server_fault(status_words(reply) + (f" → {remedy}" if remedy else ""))
        return self._read(reply)

    def close(self) -> None:
        self._client.close()

    def _document(self, request: JudgeRequest) -> dict[str, Any]:
        document: dict[str, Any] = {
            "model": self._model,
            "messages": [self._message(message) for message in request.messages],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": request.schema_name,
                    "strict": True,
                    "schema": dict(request.schema),
                },
            },
            "max_completion_tokens": request.max_tokens,
            # what servers read that do not know the newer name
            "max_tokens": None if self._is_openai else request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "reasoning_effort": request.reasoning_effort,
        }
        return {key: value for key, value in document.items() if value is not None}

    def _message(self, message: Message) -> dict[str, Any]:
        """`developer` is `system` to servers whose models' templates do not know it."""
        is_renamed = message["role"] == "developer" and not self._is_openai
        return {**message, "role": "system"} if is_renamed else dict(message)

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "rft",
        }
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def _read(self, reply: Reply) -> JudgeReply:
        try:
            document = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise self._parse_fault("the server's reply is not JSON", reply) from None
        choices = document.get("choices") if isinstance(document, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise self._parse_fault("the server's reply has no message", reply)
        content, refusal = message.get("content"), message.get("refusal") or None
        if choice.get("finish_reason") == "content_filter":
            refusal = refusal or "its content filter"
        is_cut = choice.get("finish_reason") == "length"
        if refusal is None and not is_cut and not isinstance(content, str):
            raise self._parse_fault("the message has no text", reply)
        return JudgeReply(
            text=self._without_key(content) if isinstance(content, str) else "",
            finish_reason="length" if is_cut else "stop",
            refusal=None if refusal is None else self._without_key(str(refusal)),
            usage=usage_of(document.get("usage")),
            model=self._name_of(document.get("model")),
        )

    def _name_of(self, model: Any) -> str:
        """The model that says it answered; the one that was asked where it says nothing usable."""
        is_name = isinstance(model, str) and model.isprintable() and len(model) <= MAX_NAME
        return self._without_key(model) if is_name else self._model

    def _parse_fault(self, what: str, reply: Reply) -> GradingFault:
        return fault(
            "model_grader_parse_error", self._without_key(f"{what}: {excerpt(reply.body)}")
        )

    def _server_fault(self, details: str) -> GradingFault:
        return fault("model_grader_server_error", self._without_key(details))

    def _without_key(self, text: str) -> str:
        """A server may echo the key."""
        return (
            text.replace(self._key, f"${{{self._key_env}}}")
            if len(self._key) >= MIN_SECRET
            else text
        )


def usage_of(usage: Any) -> dict[str, int]:
    """The token counts of a reply, as far as they are counts."""
    if not isinstance(usage, Mapping):
        return {}
    details = usage.get("prompt_tokens_details")
    counts = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cached_tokens": details.get("cached_tokens") if isinstance(details, Mapping) else None,
    }
    return {
        kind: count
        for kind, count in counts.items()
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53
    }


def completions_url(base_url: str, where: str) -> Url:
    """Where chat completions are posted, a query of the base kept behind; raises GraderError."""
    base, mark, query = base_url.partition("?")
    return parse_url(f"{base.rstrip('/')}/chat/completions{mark}{query}", where)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very spelling."""
    address = literal_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def url_problems(
    base_url: str, key_env: str, private_hosts: tuple[str, ...], where: str
) -> list[Problem]:
    """What is wrong with a judge's address, or with the key that goes there."""
    try:
        url = completions_url(base_url, where)
    except GraderError as error:
        return list(error.problems)
    kind = kind_if_surely_private(url.host)
    listed = {canonical_host(host) for host in private_hosts}
    if kind is not None and not is_loopback(url.host) and url.host not in listed:
        what = f"the host {url.host} is {kind}"
        return [Problem(what, where, f"if that is meant, add {url.host!r} to {PRIVATE_HOSTS_KEY}")]
    key = os.environ.get(key_env, "").strip()
    if not all("!" <= character <= "~" for character in key):
        what = f"the environment's {key_env} holds a blank or a character outside ASCII"
        return [Problem(what, where, "set it to the bare key")]
    if url.host == OPENAI_HOST and not key:
        what = f"the environment has no {key_env}, the key for {OPENAI_HOST}"
        return [
            Problem(what, where, f"set {key_env} before starting rft, or write model: local:base")
        ]
    return []
