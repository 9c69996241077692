"""endpoint: the score comes from a server of the user's.

It gets POST {"sample": …, "item": …, "trace_id": …} as JSON and answers {"score": number}. A failure
is never the sample's fault, so it gives no reward:

    endpoint_grader_server_error         no connection, no reply in time, or 408, 425, 429, 5xx after
                                         three retries
    endpoint_grader_internal_error       any other status, a reply without a finite `score`, a reply or
                                         a request of more than 1 MB
    endpoint_grader_safety_check_error   the host's address is not a public one, and not allowed
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field

from rft.errors import GraderError, Problem
from rft.graders.addresses import AddressRefused, canonical_host, kind_if_surely_private
from rft.graders.fault import Flag, GradingFault
from rft.graders.grader import (
    Document,
    Grader,
    GradingSettings,
    PassThreshold,
    make_grade,
    shape_by_threshold,
)
from rft.graders.http import (
    HttpClient,
    NoReply,
    Reply,
    ReplyTooLarge,
    excerpt,
    parse_url,
    status_words,
)
from rft.types import Grade, Item, Sample

MAX_REQUEST_BYTES = 1_000_000
PRIVATE_HOSTS_KEY = "engine.grading.endpoint.private_hosts"

OWN_HEADERS: Mapping[str, str] = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "rft",
}
"""Sent where the document has no header of that name."""
RESERVED_HEADERS = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""They say how the request is carried, which is not the document's affair."""
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
HEADER_VALUE = re.compile(r"[!-~]([ -~\t]*[!-~])?|")
MIN_SECRET_CHARACTERS = 6
"""Anything shorter is no secret, and may stand in any message."""
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Endpoint(Document):
    """Grades by a server of the user's."""

    type: Literal["endpoint"]
    name: str = Field(default="endpoint", min_length=1)
    url: str
    """Where samples are posted: http or https; its host has a public address, or is listed in
    `engine.grading.endpoint.private_hosts`."""
    headers: dict[str, str] = Field(default={})
    """Sent with every request; `${NAME}` in a value is filled in from the environment."""
    rate_limit: float = Field(default=50.0, ge=0.001, strict=True)
    """Requests per second of one process, retries included; the product allows 50, a server of your
    own perhaps more."""
    pass_threshold: PassThreshold = None
    """A reward of at least this passes; it becomes 1, any other 0, only with
    `engine.grading.pass_threshold_shapes_reward`."""

    def problems(self, where: str) -> list[Problem]:
        return [
            *url_problems(self.url, f"{where}.url"),
            *header_problems(self.headers, f"{where}.headers"),
        ]

    def settings_problems(self, where: str, settings: GradingSettings) -> list[Problem]:
        return private_url_problems(self.url, settings.private_hosts, f"{where}.url")

    def open(self, settings: GradingSettings) -> Grader:
        problems = self.problems(self.name) + self.settings_problems(self.name, settings)
        if problems:
            raise GraderError(problems)
        client = HttpClient(
            parse_url(self.url, f"{self.name}.url"),
            requests_per_second=self.rate_limit,
            total_seconds=settings.endpoint_timeout_seconds,
            private_hosts=settings.private_hosts,
        )
        return EndpointGrader(self, settings, client)


class EndpointGrader(Grader):
    """Posts samples; as many requests at the same time as there are calls."""

    def __init__(self, document: Endpoint, settings: GradingSettings, client: HttpClient):
        self._document = document
        self._settings = settings
        self._client = client
        self._headers = filled_in(document.headers, f"{document.name}.headers")
        self._secrets = environment_of(document.headers)

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def type(self) -> str:
        return self._document.type

    def grade(self, sample: Sample, item: Item) -> Grade:
        return make_grade(self._document, self._settings, lambda: self._reward(sample, item))

    def close(self) -> None:
        self._client.close()

    def _reward(self, sample: Sample, item: Item) -> float:
        try:
            score = self._score(sample, item)
        except GradingFault as fault:
            details = without_secrets(fault.details, self._secrets)
            raise GradingFault(fault.flag, details, of_sample=False) from None
        return shape_by_threshold(score, self._document.pass_threshold, self._settings)

    def _score(self, sample: Sample, item: Item) -> float:
        body = request_body(sample, item)
        try:
            reply = self._client.post(body, self._headers)
        except NoReply as error:
            flag: Flag = "endpoint_grader_server_error"
            raise GradingFault(flag, str(error), of_sample=False) from None
        except AddressRefused as error:
            details = f"{error}; if that is meant, add the host to {PRIVATE_HOSTS_KEY}"
            flag = "endpoint_grader_safety_check_error"
            raise GradingFault(flag, details, of_sample=False) from None
        except ReplyTooLarge as error:
            raise internal_fault(str(error)) from None
        return score_of(reply)


def internal_fault(details: str) -> GradingFault:
    return GradingFault("endpoint_grader_internal_error", details, of_sample=False)


def request_body(sample: Sample, item: Item) -> bytes:
    """The JSON that is posted; raises GradingFault when there is none, or too much of it."""
    request = {"sample": dict(sample), "item": dict(item)}
    try:
        trace_id = hashlib.sha256(json_bytes(request, sort_keys=True)).hexdigest()[:32]
        body = json_bytes({**request, "trace_id": trace_id})
    except (ValueError, TypeError, RecursionError) as error:
        raise internal_fault(f"sample and item cannot be written as JSON: {error}") from None
    if len(body) > MAX_REQUEST_BYTES:
        what = f"sample and item are {len(body)} bytes of JSON, more than {MAX_REQUEST_BYTES}"
        raise internal_fault(what)
    return body


def json_bytes(value: Any, *, sort_keys: bool = False) -> bytes:
    """Strict JSON in ASCII; a value that JSON does not know, such as a date, becomes its text."""
    text = json.dumps(
        value, allow_nan=False, default=str, separators=(",", ":"), sort_keys=sort_keys
    )
    return text.encode("ascii")


def score_of(reply: Reply) -> float:
    """The finite `score` of a successful reply; raises GradingFault."""
    if 300 <= reply.status < 400:
        target = reply.headers.get("location", "nowhere")
        what = f"{status_words(reply)}: it redirects to {target!r}, and redirects are not followed"
        raise internal_fault(what)
    if not reply.is_success:
        raise internal_fault(status_words(reply))
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise internal_fault(f"the reply is not JSON: {error}: {excerpt(reply.body)}") from None
    if not isinstance(value, dict) or "score" not in value:
        wanted = 'an object such as {"score": 0.5}'
        raise internal_fault(f"the reply is not {wanted}: {excerpt(reply.body)}")
    score = value["score"]
    if isinstance(score, bool) or not isinstance(score, int | float):
        kind = type(score).__name__
        raise internal_fault(f"score is no number but a {kind}: {excerpt(reply.body)}")
    try:
        number = float(score)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise internal_fault(f"score is not finite: {excerpt(reply.body)}")
    return number


def url_problems(url: str, where: str) -> list[Problem]:
    try:
        parse_url(url, where)
    except GraderError as error:
        return list(error.problems)
    return []


def private_url_problems(url: str, private_hosts: Collection[str], where: str) -> list[Problem]:
    """The fault of a url whose mere spelling says that its host is not public, if it is not listed."""
    try:
        host = parse_url(url, where).host
    except GraderError:
        return []  # `problems` tells it
    kind = kind_if_surely_private(host)
    if kind is None or host in {canonical_host(listed) for listed in private_hosts}:
        return []
    what = f"the url's host {host} is {kind}"
    return [Problem(what, where, f"if that is meant, add {host!r} to {PRIVATE_HOSTS_KEY}")]


def header_problems(headers: Mapping[str, str], where: str) -> list[Problem]:
    """Headers that cannot be sent; values are not shown, as they may be keys."""
    problems = []
    taken: set[str] = set()
    for name, value in headers.items():
        place = f"{where}.{name}"
        if not HEADER_NAME.fullmatch(name):
            remedy = "use letters, digits and -"
            problems.append(Problem(f"{name[:50]!r} cannot name a header", where, remedy))
            continue
        if name.lower() in RESERVED_HEADERS:
            remedy = "remove it: it says how the request is carried"
            problems.append(Problem(f"the header {name} cannot be set", place, remedy))
        if name.lower() in taken:
            remedy = "names of headers do not differ by case: keep one"
            problems.append(Problem(f"the header {name} is given twice", place, remedy))
        taken.add(name.lower())
        if "${" in VARIABLE.sub("", value):
            what = f"the header {name} has a ${{ that begins no ${{NAME}}"
            problems.append(Problem(what, place, "write ${NAME}, the name of a variable"))
        problems += value_problems(name, value, place)
    return problems


def value_problems(what_holds: str, value: str, where: str) -> list[Problem]:
    """A value that would end the header or not survive the way."""
    if HEADER_VALUE.fullmatch(value):
        return []
    what = f"{what_holds} holds a line break, a blank at an end or a character outside ASCII"
    return [Problem(what, where, "remove it")]


def without_secrets(text: str, secrets: Mapping[str, str]) -> str:
    """A text in which the values of the environment are named, not shown: a server may echo a key."""
    for name, value in secrets.items():
        if len(value) >= MIN_SECRET_CHARACTERS:
            text = text.replace(value, f"${{{name}}}")
    return text


def environment_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The variables that header values name, with what the environment has for them."""
    names = [name for value in headers.values() for name in VARIABLE.findall(value)]
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def filled_in(headers: Mapping[str, str], where: str) -> dict[str, str]:
    """All headers of a request, with the environment's values; raises GraderError."""
    environment = environment_of(headers)
    problems = []
    filled = {}
    for header, value in headers.items():
        place = f"{where}.{header}"
        for name in VARIABLE.findall(value):
            if name not in environment:
                what = f"the environment has no {name}"
                problems.append(Problem(what, place, f"set {name} before starting rft"))
            else:
                problems += value_problems(f"the environment's {name}", environment[name], place)
        filled[header] = VARIABLE.sub(lambda found: environment.get(found[1], ""), value)
    if problems:
        raise GraderError(problems)
    given = {header.lower() for header in headers}
    return {k: v for k, v in OWN_HEADERS.items() if k.lower() not in given} | filled
