"""The endpoint grader, against a real server on this machine."""

import gc
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rft.cli.grade import product_reply
from rft.errors import GraderError, JobError, MachineError
from rft.graders import GraderDocument, GradingSettings, grader_parts, open_grader
from rft.graders import addresses as addresses_module
from rft.graders.endpoint import Endpoint, EndpointGrader
from rft.graders.http import HttpClient, Pace, Reply, parse_url, retry_after
from rft.graders.network import CheckedNetwork, DeadlineStream, set_options
from rft.job import parse_job
from rft.runs.results import results_columns
from rft.types import Grade
from tests.unit.graders.loopback import (
    LoopbackServer,
    Request,
    always,
    in_turn,
    reply,
    serving,
)

SERVER_ERROR = "endpoint_grader_server_error"
INTERNAL_ERROR = "endpoint_grader_internal_error"
SAFETY_ERROR = "endpoint_grader_safety_check_error"
SAMPLE = {"output_text": "Paris é"}
ITEM = {"answer": "Paris", "n": [1, None, True]}
LISTED = GradingSettings(private_hosts=("127.0.0.1",))
FINE = reply()

documents = TypeAdapter(GraderDocument)


@pytest.fixture(autouse=True)
def _certificates_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def open_endpoint(
    url: str,
    settings: GradingSettings = LISTED,
    total_seconds: float = 10,
    backoff_seconds: float = 0.01,
    **fields: Any,
) -> EndpointGrader:
    """An endpoint grader that is quicker to try again and to give up than a job's."""
    document = Endpoint(type="endpoint", url=url, **fields)
    client = HttpClient(
        parse_url(url, "url"),
        requests_per_second=fields.get("rate_limit", 1000),
        private_hosts=settings.private_hosts,
        total_seconds=total_seconds,
        backoff_seconds=backoff_seconds,
    )
    return EndpointGrader(document, settings, client)


def grade_once(url: str, **options: Any) -> Grade:
    with open_endpoint(url, **options) as grader:
        return grader.grade(SAMPLE, ITEM)


def failed(grade: Grade, flag: str) -> str:
    """The details of a grade that has this flag, no other, and no reward."""
    assert grade.reward is None
    assert list(grade.errors) == [flag]
    return grade.errors[flag]


def num_descriptors() -> int:
    """Open files of this process, those of the test's server included."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# the request


def test_what_is_posted() -> None:
    with serving(always(FINE)) as server:
        grade = grade_once(f"http://127.0.0.1:{server.port}/grade?k=1")
    assert (grade.reward, grade.name, grade.type) == (0.75, "endpoint", "endpoint")
    assert grade.errors == {} and grade.sub_grades == {}
    assert 0 < grade.latency < 5
    (request,) = server.requests
    assert request.line == "POST /grade?k=1 HTTP/1.1"
    assert request.body == (
        b'{"sample":{"output_text":"Paris \\u00e9"},'
        b'"item":{"answer":"Paris","n":[1,null,true]},'
        b'"trace_id":"b0f84faa913e956a97a2bd65f8062c6e"}'
    )
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "content-type": "application/json",
        "accept": "application/json",
        "user-agent": "rft",
        "content-length": str(len(request.body)),
    }


def test_the_trace_id_depends_on_sample_and_item_alone() -> None:
    pairs = [
        ({"a": 1, "b": 2}, {"c": 3}),
        ({"b": 2, "a": 1}, {"c": 3}),
        ({"a": 1}, {"b": 2, "c": 3}),
        ({"a": 1, "b": 2}, {"c": 4}),
    ]
    with serving(always(FINE)) as server, open_endpoint(server.url) as grader:
        for sample, item in pairs:
            grader.grade(sample, item)
    first, again, *others = [json.loads(request.body)["trace_id"] for request in server.requests]
    assert first == again
    assert len({first, *others}) == 3
    assert all(len(trace_id) == 32 for trace_id in (first, *others))


def test_a_date_travels_as_its_text() -> None:
    with serving(always(FINE)) as server, open_endpoint(server.url) as grader:
        assert grader.grade(SAMPLE, {"day": date(2025, 5, 8)}).reward == 0.75
    assert json.loads(server.requests[0].body)["item"] == {"day": "2025-05-08"}


def deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"x": float("nan")}, "cannot be written as JSON"),
        ({"x": float("inf")}, "cannot be written as JSON"),
        ({"x": deep(100_000)}, "cannot be written as JSON"),
        ({"x": "a" * 1_000_001}, "more than 1000000"),
    ],
)
def test_what_cannot_be_posted(item: dict[str, Any], words: str) -> None:
    with serving(always(FINE)) as server, open_endpoint(server.url) as grader:
        assert words in failed(grader.grade(SAMPLE, item), INTERNAL_ERROR)
    assert server.requests == []


def test_a_request_may_have_a_million_bytes() -> None:
    empty = len(b'{"sample":{"output_text":""},"item":{},"trace_id":"' + b"0" * 32 + b'"}')
    with serving(always(FINE)) as server, open_endpoint(server.url) as grader:
        fits = "x" * (1_000_000 - empty)
        assert grader.grade({"output_text": fits}, {}).reward == 0.75
        assert failed(grader.grade({"output_text": fits + "x"}, {}), INTERNAL_ERROR) == (
            "sample and item are 1000001 bytes of JSON, more than 1000000"
        )
    assert [len(request.body) for request in server.requests] == [1_000_000]


# the reply


@pytest.mark.parametrize(
    ("body", "reward"),
    [
        (b'{"score": 1}', 1.0),
        (b'{"score": 0}', 0.0),
        (b'{"score": -2.5}', -2.5),
        (b'{"score": 1e3, "why": "it is"}', 1000.0),
        (b'\xef\xbb\xbf {"score": 0.5}\r\n', 0.5),
    ],
)
def test_scores(body: bytes, reward: float) -> None:
    with serving(always(reply(body))) as server:
        grade = grade_once(server.url)
    assert (grade.reward, grade.errors) == (reward, {})


@pytest.mark.parametrize(
    ("body", "details"),
    [
        (b'{"score": true}', 'score is no number but a bool: {"score": true}'),
        (b'{"score": "1"}', 'score is no number but a str: {"score": "1"}'),
        (b'{"score": null}', 'score is no number but a NoneType: {"score": null}'),
        (b'{"score": [1]}', 'score is no number but a list: {"score": [1]}'),
        (b'{"score": NaN}', 'score is not finite: {"score": NaN}'),
        (b'{"score": -Infinity}', 'score is not finite: {"score": -Infinity}'),
        (b'{"score": 1e400}', 'score is not finite: {"score": 1e400}'),
        (b'{"score": 1' + b"0" * 400 + b"}", "score is not finite: "),
        (b'{"score": 1' + b"0" * 5000 + b"}", "the reply is not JSON: "),
        (b'{"reward": 1}', 'the reply is not an object such as {"score": 0.5}: {"reward": 1}'),
        (b"0.5", 'the reply is not an object such as {"score": 0.5}: 0.5'),
        (b'["score"]', 'the reply is not an object such as {"score": 0.5}: ["score"]'),
        (b"", "the reply is not JSON: "),
        (b"0.5 points", "the reply is not JSON: Extra data: line 1 column 5 (char 4): 0.5 points"),
        (b"\xff\xfe\xfd", "the reply is not JSON: "),
        (b"[" * 100_000, "the reply is not JSON: "),
        (b"<html>\n\x1b[2J oops", "the reply is not JSON: Expecting value"),
    ],
)
def test_replies_without_a_score(body: bytes, details: str) -> None:
    with serving(always(reply(body))) as server:
        told = failed(grade_once(server.url), INTERNAL_ERROR)
    assert told.startswith(details)
    assert len(server.requests) == 1
    assert told.isprintable() and len(told) < 700


@pytest.mark.parametrize("head", ["Content-Length: 10000000", "Transfer-Encoding: chunked"])
def test_a_reply_of_ten_megabytes_is_cut_off(head: str) -> None:
    sent = []

    def flood(request: Request) -> None:
        request.send(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        for _ in range(1000):
            request.send((b"2710\r\n" if "chunked" in head else b"") + b" " * 10_000)
            request.send(b"\r\n" if "chunked" in head else b"")
            sent.append(10_000)

    with serving(flood) as server:
        started = time.monotonic()
        grade = grade_once(server.url)
    assert failed(grade, INTERNAL_ERROR) == "the reply has more than 1000000 bytes"
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1
    assert sum(sent) < 10_000_000


def test_a_reply_may_have_a_million_bytes() -> None:
    body = b'{"score": 0.25}'.ljust(1_000_000)
    with serving(always(reply(body))) as server:
        assert grade_once(server.url).reward == 0.25


def test_an_informational_reply_comes_before_the_reply() -> None:
    with serving(always(b"HTTP/1.1 103 Early Hints\r\n\r\n" + FINE)) as server:
        assert grade_once(server.url).reward == 0.75


@pytest.mark.parametrize(
    ("threshold", "shapes", "reward"),
    [(0.75, False, 0.75), (0.75, True, 1.0), (0.76, True, 0.0), (None, True, 0.75)],
)
def test_a_threshold_shapes_the_reward_only_when_asked(
    threshold: float | None, shapes: bool, reward: float
) -> None:
    settings = GradingSettings(private_hosts=("127.0.0.1",), pass_threshold_shapes_reward=shapes)
    with serving(always(FINE)) as server:
        grade = grade_once(server.url, settings=settings, pass_threshold=threshold)
    assert grade.reward == reward


# statuses and retries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 422, 418])
def test_a_refusal_is_final(status: int) -> None:
    answer = always(reply(b'{"error": "no such\nmodel"}', f"{status} Whatever"))
    with serving(answer) as server:
        details = failed(grade_once(server.url), INTERNAL_ERROR)
    assert details.startswith(f"HTTP {status} ")
    assert details.endswith(': {"error": "no such model"}')
    assert len(server.requests) == 1


def test_a_success_without_a_body_has_no_score() -> None:
    with serving(always(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        failed(grade_once(server.url), INTERNAL_ERROR)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with serving(always(FINE)) as target:
        answer = always(reply(b"", f"{status} Moved", f"Location: {target.url}"))
        with serving(answer) as server:
            details = failed(grade_once(server.url), INTERNAL_ERROR)
    assert f"it redirects to '{target.url}', and redirects are not followed" in details
    assert (len(server.requests), target.num_connections) == (1, 0)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_three_retries(status: int) -> None:
    with serving(always(reply(b"busy", f"{status} Whatever"))) as server:
        details = failed(grade_once(server.url), SERVER_ERROR)
    assert details.startswith(f"HTTP {status}") and details.endswith(": busy (asked 4 times)")
    assert len(server.requests) == 4
    assert len({request.body for request in server.requests}) == 1


def test_pauses_between_retries_double() -> None:
    with serving(always(reply(b"", "500 Oops"))) as server:
        grade_once(server.url, backoff_seconds=0.1)
    times = [request.time for request in server.requests]
    first, second, third = (b - a for a, b in pairwise(times))
    assert first >= 0.05 and second >= 0.1 and third >= 0.2


def test_what_recovers_is_graded() -> None:
    busy = reply(b"x" * 20_000, "503 Service Unavailable")
    with serving(in_turn(busy, Request.reset, reply(b"", "429 Slow"), FINE)) as server:
        grade = grade_once(server.url)
    assert (grade.reward, grade.errors) == (0.75, {})
    assert len(server.requests) == 4


def test_retry_after_is_heeded() -> None:
    busy = reply(b"", "429 Too Many Requests", "Retry-After: 1")
    with serving(in_turn(busy, FINE)) as server:
        assert grade_once(server.url).reward == 0.75
    first, second = (request.time for request in server.requests)
    assert 1 <= second - first < 3


def test_retry_after_the_limit_is_not_waited_for() -> None:
    busy = reply(b"", "503 Service Unavailable", "Retry-After: 11")
    with serving(always(busy)) as server:
        started = time.monotonic()
        details = failed(grade_once(server.url), SERVER_ERROR)
    assert details == (
        "HTTP 503 Service Unavailable (asked once); "
        "the next request, in 11 s, would pass the limit of 10 s"
    )
    assert time.monotonic() - started < 5
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("0", 0, 0),
        ("120", 120, 120),
        (" 7 ", 7, 7),
        ("-5", 0, 0),
        ("1.5", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        ("9" * 400, 0, 0),
        (format_datetime(datetime.now(UTC) + timedelta(hours=9), usegmt=True), 3600, 32400),
        (format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True), 0, 0),
        ("Mon, 01 Jan 99999 00:00:00 GMT", 0, 0),
    ],
    ids=lambda value: "a date" if "GMT" in str(value) else None,
)
def test_retry_after(text: str, low: float, high: float) -> None:
    assert low <= retry_after(Reply(503, {"retry-after": text}, b"")) <= high


# connections


def half(request: Request) -> None:
    request.send(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"score": 1}')
    request.reset()


def hang_up(request: Request) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def headers_without_end(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\n" + b"X-Pad: " + b"x" * 300_000)


@pytest.mark.parametrize(
    "answer",
    [
        Request.reset,
        hang_up,
        half,
        always(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        always(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
        headers_without_end,
    ],
)
def test_connections_that_break_off(answer: Any) -> None:
    with serving(answer) as server:
        details = failed(grade_once(server.url), SERVER_ERROR)
    assert details.startswith("the connection broke off: ")
    assert details.endswith("(asked 4 times)")
    assert len(server.requests) == 4


def test_nobody_listens() -> None:
    with serving(always(FINE)) as server:
        url, port = server.url, server.port
    with open_endpoint(url) as grader:
        before = num_descriptors()
        details = failed(grader.grade(SAMPLE, ITEM), SERVER_ERROR)
        assert num_descriptors() == before
    assert details == f"no connection to 127.0.0.1:{port}: Connection refused (asked 4 times)"


def test_a_name_without_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert failed(grade_once("http://nobody.example/"), SERVER_ERROR) == (
        "no connection to nobody.example: Name or service not known (asked 4 times)"
    )


def drip(data: bytes) -> Any:
    """A byte every 50 ms, each of them soon enough for a limit on single reads."""

    def answer(request: Request) -> None:
        for byte in data:
            request.send(bytes([byte]))
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: time.sleep(3),
        drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 100),
        lambda request: (request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"), drip(b" " * 99)(request)),
        drip(b"HTTP/1.1 102 Processing\r\n\r\n" * 20),
    ],
    ids=["silence", "headers", "body", "informational"],
)  # fmt: skip
def test_the_time_of_a_call_is_bounded(answer: Any) -> None:
    with serving(answer) as server:
        started = time.monotonic()
        details = failed(grade_once(server.url, total_seconds=0.5), SERVER_ERROR)
        assert 0.5 <= time.monotonic() - started < 2.5
    assert details == "no reply within 0.5 s (asked once)"


def test_the_time_to_send_is_bounded() -> None:
    near, far = socket.socketpair()
    stream = DeadlineStream(near, CheckedNetwork(()))
    started = time.monotonic()
    with pytest.raises(httpcore2.WriteTimeout):
        stream.write(b"x" * 10_000_000, timeout=started + 0.3)
    assert 0.3 <= time.monotonic() - started < 2.3
    stream.close()
    far.close()


def test_the_time_of_retries_is_bounded() -> None:
    with serving(always(reply(b"", "500 Oops"))) as server:
        started = time.monotonic()
        grade = grade_once(server.url, total_seconds=0.3, backoff_seconds=0.2)
        assert time.monotonic() - started < 2.3
    failed(grade, SERVER_ERROR)
    assert 1 <= len(server.requests) <= 2


def test_the_settings_limit_a_call() -> None:
    assert GradingSettings().endpoint_timeout_seconds == 600
    document = Endpoint(type="endpoint", url="http://127.0.0.1:9")
    settings = GradingSettings(endpoint_timeout_seconds=0.4, private_hosts=("127.0.0.1",))
    with serving(always(reply(b"", "500 Oops"))) as server:
        document = document.model_copy(update={"url": server.url})
        started = time.monotonic()
        with document.open(settings) as grader:
            failed(grader.grade(SAMPLE, {}), SERVER_ERROR)
        assert time.monotonic() - started < 2.4


def test_a_connection_is_used_again() -> None:
    with serving(always(FINE)) as server, open_endpoint(server.url) as grader:
        assert {grader.grade(SAMPLE, {"row": row}).reward for row in range(20)} == {0.75}
    assert [request.connection_number for request in server.requests] == [1] * 20


def test_a_connection_that_the_server_ended_is_replaced_without_a_retry() -> None:
    def once(request: Request) -> None:
        request.send(FINE)
        hang_up(request)

    with serving(once) as server, open_endpoint(server.url, backoff_seconds=60) as grader:
        for _ in range(5):
            assert grader.grade(SAMPLE, ITEM).reward == 0.75
            time.sleep(0.02)
    assert [request.connection_number for request in server.requests] == [1, 2, 3, 4, 5]


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(always(FINE)) as server:
        assert grade_once(server.url).reward == 0.75


def test_a_peer_that_vanished_is_noticed() -> None:
    with socket.socket() as sock:
        set_options(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_an_ipv6_address() -> None:
    try:
        context = serving(always(FINE), host="::1")
        server = context.__enter__()
    except OSError:
        pytest.skip("this machine has no ::1")
    with open_endpoint(
        f"http://[::1]:{server.port}/", settings=GradingSettings(private_hosts=("[::1]",))
    ) as grader:
        assert grader.grade(SAMPLE, ITEM).reward == 0.75
    context.__exit__(None, None, None)
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


def test_the_second_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(always(FINE)) as server:
        port = server.port
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            dead = unused.getsockname()[1]
        entries = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number))
            for number in (dead, port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
        assert grade_once(server.url).reward == 0.75


# pace and threads


def test_two_hundred_calls_in_sixteen_threads() -> None:
    def slowly(request: Request) -> None:
        time.sleep(0.1)
        request.send(FINE)

    with serving(slowly) as server, open_endpoint(server.url) as grader:
        started = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            grades = list(pool.map(lambda row: grader.grade(SAMPLE, {"row": row}), range(200)))
        seconds = time.monotonic() - started
    assert [grade.reward for grade in grades] == [0.75] * 200
    assert seconds < 3
    assert server.num_connections <= 16
    rows = sorted(json.loads(request.body)["item"]["row"] for request in server.requests)
    assert rows == list(range(200))


def test_threads_share_the_rate_limit() -> None:
    with (
        serving(always(FINE)) as server,
        open_endpoint(server.url, rate_limit=20) as grader,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda row: grader.grade(SAMPLE, {"row": row}), range(11)))
    times = sorted(request.time for request in server.requests)
    assert 0.4 <= times[-1] - times[0] < 2


def test_retries_keep_to_the_rate_limit() -> None:
    with serving(always(reply(b"", "500 Oops"))) as server:
        grade_once(server.url, rate_limit=10)
    times = [request.time for request in server.requests]
    assert len(times) == 4 and 0.25 <= times[-1] - times[0] < 2


def test_no_instant_is_taken_past_the_limit() -> None:
    pace, never = Pace(2), threading.Event()
    started = time.monotonic()
    assert pace.wait(never, until=started + 60)
    assert not pace.wait(never, until=started + 0.2)
    assert time.monotonic() - started < 0.2
    assert pace.wait(never, until=started + 60)
    assert 0.5 <= time.monotonic() - started < 2.5


def closing_while(
    grader: EndpointGrader, is_under_way: threading.Event, num_calls: int = 8
) -> tuple[list[Grade], float]:
    """The grades of calls that are under way when the grader is closed, and how long they took on."""
    with ThreadPoolExecutor(num_calls) as pool:
        calls = [pool.submit(grader.grade, SAMPLE, {"row": row}) for row in range(num_calls)]
        assert is_under_way.wait(5)
        time.sleep(0.1)
        started = time.monotonic()
        grader.close()
        grades = [call.result() for call in calls]
    return grades, time.monotonic() - started


@pytest.mark.parametrize("kind", ["silence", "body", "retry", "pace"])
def test_close_ends_the_calls_in_flight(kind: str) -> None:
    is_under_way = threading.Event()
    release = threading.Event()

    def answer(request: Request) -> None:
        is_under_way.set()
        if kind == "body":
            request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        if kind == "retry":
            request.send(reply(b"", "503 Busy", "Retry-After: 8"))
        release.wait(5)

    before = num_descriptors()
    with serving(answer) as server:
        rate_limit = 0.01 if kind == "pace" else 1000
        grader = open_endpoint(server.url, rate_limit=rate_limit)
        grades, seconds = closing_while(grader, is_under_way)
        release.set()
        assert seconds < 1
        for grade in grades:
            assert failed(grade, SERVER_ERROR) == "the grader was closed during the call"
        assert failed(grader.grade(SAMPLE, ITEM), SERVER_ERROR)
        assert len(server.requests) <= 8
    del server, grader, grades
    time.sleep(0.1)
    assert num_descriptors() <= before


def test_close_ends_a_name_that_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    is_under_way, release = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        is_under_way.set()
        release.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    grader = open_endpoint("http://slow.example/")
    grades, seconds = closing_while(grader, is_under_way)
    release.set()
    assert seconds < 1
    assert {failed(grade, SERVER_ERROR) for grade in grades} == {
        "the grader was closed during the call"
    }


def test_close_ends_a_connection_that_is_not_accepted() -> None:
    """The queue of the listener is full, so that connecting hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        is_under_way = threading.Event()
        is_under_way.set()
        grader = open_endpoint(f"http://127.0.0.1:{address[1]}/")
        grades, seconds = closing_while(grader, is_under_way, 2)
        for filler in fillers:
            filler.close()
    assert seconds < 1
    for grade in grades:
        failed(grade, SERVER_ERROR)


def test_failing_calls_leave_nothing_behind() -> None:
    with (
        serving(in_turn(FINE, *[Request.reset, half, FINE, hang_up] * 12)) as server,
        open_endpoint(server.url, backoff_seconds=0) as grader,
    ):
        grader.grade(SAMPLE, ITEM)
        before, threads = num_descriptors(), threading.active_count()
        for row in range(40):
            grader.grade(SAMPLE, {"row": row})
        time.sleep(0.1)
        assert num_descriptors() <= before
        assert threading.active_count() <= threads
        assert len(server.requests) > 50


def test_close_ends_connections_that_wait() -> None:
    with serving(always(FINE)) as server, open_endpoint(server.url) as grader:
        before = num_descriptors()
        grader.grade(SAMPLE, ITEM)
        assert num_descriptors() == before + 2
        grader.close()
        time.sleep(0.1)
        assert num_descriptors() == before


# addresses


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost.", "LOCALHOST", "a.localhost", "127.0.0.1", "127.1", "2130706433",
        "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "10.1.2.3", "172.16.0.1", "192.168.0.1",
        "100.64.0.1", "169.254.169.254", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[fd00::1]",
        "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_private_urls_are_refused_before_any_sample(host: str) -> None:
    document = documents.validate_python({"type": "endpoint", "url": f"http://{host}:8000/g"})
    with pytest.raises(GraderError) as raised:
        open_grader(document)
    (problem,) = raised.value.problems
    assert problem.where == "endpoint.url"
    assert problem.remedy.endswith("to engine.grading.endpoint.private_hosts")
    open_grader(document, GradingSettings(private_hosts=(host,))).close()


def test_a_job_with_a_private_url_is_refused_with_its_place() -> None:
    text = (
        "model: m\ntraining_file: t\nvalidation_file: v\nmethod:\n  type: reinforcement\n"
        "  reinforcement:\n    grader:\n      type: multi\n      calculate_output: a\n"
        "      graders:\n        a: {type: endpoint, url: 'http://localhost:8000'}\n"
    )
    with pytest.raises(JobError) as raised:
        parse_job(text, name="job.yaml", folder=Path("/"))
    (problem,) = raised.value.problems
    assert problem.where == "job.yaml:11:34"
    assert problem.what == (
        "method.reinforcement.grader.graders.a.url: the url's host localhost is this machine"
    )
    assert problem.remedy == (
        "if that is meant, add 'localhost' to engine.grading.endpoint.private_hosts"
    )
    override = "engine.grading.endpoint.private_hosts=[localhost]"
    job = parse_job(text, name="job.yaml", folder=Path("/"), overrides=[override])
    assert grader_parts(job.grader) == [("multi", "multi"), ("a", "endpoint")]


@pytest.mark.parametrize("listed", ["127.0.0.1", "127.1", "[127.0.0.1]", "0x7f000001"])
def test_a_listed_host_is_called(listed: str) -> None:
    with serving(always(FINE)) as server:
        grade = grade_once(server.url, settings=GradingSettings(private_hosts=(listed,)))
    assert grade.reward == 0.75


def test_localhost_is_called_when_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(always(FINE)) as server:
        resolving_to(monkeypatch, ["127.0.0.1"])
        url = f"http://LocalHost.:{server.port}/"
        grade = grade_once(url, settings=GradingSettings(private_hosts=("localhost",)))
    assert grade.reward == 0.75
    assert server.requests[0].headers["host"] == f"localhost:{server.port}"


def resolving_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """A name server that answers differently each time; the names it was asked for."""
    waiting, asked = list(answers), []

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_a_private_address_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(always(FINE)) as server:
        url = f"http://grader.example:{server.port}/"
        for found in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"]):
            asked = resolving_to(monkeypatch, found)
            with open_endpoint(url, backoff_seconds=60) as grader:
                details = failed(grader.grade(SAMPLE, ITEM), SAFETY_ERROR)
            assert details == (
                "grader.example has the address 127.0.0.1, which is a loopback address; if that is "
                "meant, add the host to engine.grading.endpoint.private_hosts"
            )
            assert asked == ["grader.example"]
    assert server.num_connections == 0


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs 127.0.0.2")
def test_a_name_server_that_changes_its_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 plays the public address, 127.0.0.1 the private one of a later answer."""
    private = ((ip_network("127.0.0.1/32"), "a loopback address"),)
    monkeypatch.setattr(addresses_module, "SPECIAL_NETWORKS", private)

    def once(request: Request) -> None:
        request.send(FINE)
        hang_up(request)

    with (
        serving(once, host="127.0.0.2") as public,
        serving(always(FINE), host="127.0.0.1", port=public.port) as internal,
    ):
        asked = resolving_to(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
        with open_endpoint(f"http://grader.example:{public.port}/") as grader:
            assert grader.grade(SAMPLE, ITEM).reward == 0.75
            assert (asked, public.num_connections) == (["grader.example"], 1)
            time.sleep(0.05)
            failed(grader.grade(SAMPLE, ITEM), SAFETY_ERROR)
        assert asked == ["grader.example"] * 2
        assert (public.num_connections, internal.num_connections) == (1, 0)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for grader.example, with its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    settings = path.with_name("openssl.cnf")
    settings.write_text(
        "[req]\ndistinguished_name=name\nx509_extensions=more\n[name]\n[more]\n"
        "subjectAltName=DNS:grader.example\nbasicConstraints=critical,CA:TRUE\n"
    )
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=grader.example",
            "-config", settings, "-keyout", path, "-out", "-",
        ],
        check=True, stdout=path.with_name("certificate").open("wb"), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_name("certificate").read_bytes())
    return path


@pytest.fixture
def tls_server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    """A server of grader.example and other.example; `server.names` are those it was asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    with serving(always(FINE), tls=context) as server:
        server.names = names  # type: ignore[attr-defined]
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
        yield server


BOTH_HOSTS = GradingSettings(private_hosts=("grader.example", "other.example"))


def test_a_certificate_that_nobody_vouches_for(tls_server: LoopbackServer) -> None:
    url = f"https://grader.example:{tls_server.port}/"
    details = failed(grade_once(url, settings=BOTH_HOSTS, backoff_seconds=60), SERVER_ERROR)
    assert details.startswith("the certificate of grader.example is not trusted: self")
    assert details.endswith("(asked once)")
    assert tls_server.requests == []


def test_the_name_counts_though_the_address_is_called(
    tls_server: LoopbackServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://grader.example:{tls_server.port}/"
    with open_endpoint(url, settings=BOTH_HOSTS) as grader:
        rewards = [grader.grade(SAMPLE, ITEM).reward for _ in range(5)]
    assert rewards == [0.75] * 5
    assert tls_server.names == ["grader.example"]  # type: ignore[attr-defined]
    assert tls_server.requests[0].headers["host"] == f"grader.example:{tls_server.port}"
    other = f"https://other.example:{tls_server.port}/"
    details = failed(grade_once(other, settings=BOTH_HOSTS), SERVER_ERROR)
    assert details.startswith("the certificate of other.example is not trusted: Hostname mismatch")
    assert len(tls_server.requests) == 5


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_trusted_certificates_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    document = Endpoint(type="endpoint", url="https://example.com")
    with pytest.raises(MachineError, match=f"the certificates of SSL_CERT_FILE={path} cannot be"):
        open_grader(document)


def test_a_handshake_that_hangs_ends_by_the_limit_and_by_close() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        before, started = num_descriptors(), time.monotonic()
        failed(grade_once(url, total_seconds=0.5), SERVER_ERROR)
        assert 0.5 <= time.monotonic() - started < 2.5
        is_under_way = threading.Event()
        is_under_way.set()
        grader = open_endpoint(url)
        grades, seconds = closing_while(grader, is_under_way, 2)
        assert num_descriptors() == before
    assert seconds < 1
    for grade in grades:
        failed(grade, SERVER_ERROR)


# the document


def test_defaults() -> None:
    document = Endpoint(type="endpoint", url="https://example.com")
    assert document.model_dump() == {
        "type": "endpoint",
        "name": "endpoint",
        "url": "https://example.com",
        "headers": {},
        "rate_limit": 50.0,
        "pass_threshold": None,
    }
    assert document.problems("grader") == []
    assert grader_parts(document) == [("endpoint", "endpoint")]


@pytest.mark.parametrize(
    "fields",
    [
        {"rate_limit": 0},
        {"rate_limit": -1},
        {"rate_limit": 0.0009},
        {"rate_limit": "50"},
        {"rate_limit": True},
        {"rate_limit": float("inf")},
        {"rate_limit": None},
        {"pass_threshold": "0.5"},
        {"headers": {"X": 1}},
        {"headers": [["X", "1"]]},
        {"name": ""},
        {"url": None},
        {"method": "PUT"},
    ],
)
def test_fields_that_are_not_legal(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        documents.validate_python({"type": "endpoint", "url": "https://example.com", **fields})


@pytest.mark.parametrize("rate_limit", [0.001, 1, 50, 5000.5])
def test_rates_that_are_legal(rate_limit: float) -> None:
    Endpoint(type="endpoint", url="https://example.com", rate_limit=rate_limit)


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "host_header"),
    [
        ("http://example.com", "example.com", 80, "/", "example.com"),
        ("https://Example.COM.:443/A?b=C", "example.com", 443, "/A?b=C", "example.com"),
        ("HTTPS://example.com:8443?x", "example.com", 8443, "/?x", "example.com:8443"),
        ("http://[2606:4700::1111]:80/", "2606:4700::1111", 80, "/", "[2606:4700::1111]"),
        ("http://xn--bcher-kva.example/%20", "xn--bcher-kva.example", 80, "/%20",
         "xn--bcher-kva.example"),
        ("http://a_b/", "a_b", 80, "/", "a_b"),
        ("http://example.com:/", "example.com", 80, "/", "example.com"),
        ("http://0x08080808/", "8.8.8.8", 80, "/", "8.8.8.8"),
    ],
)  # fmt: skip
def test_urls(url: str, host: str, port: int, target: str, host_header: str) -> None:
    parsed = parse_url(url, "url")
    assert (parsed.host, parsed.port, parsed.target) == (host, port, target)
    assert parsed.host_header == host_header


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no http or https url with a host"),
        ("example.com/grade", "no http or https url with a host"),
        ("ftp://example.com", "no http or https url with a host"),
        ("file:///etc/passwd", "no http or https url with a host"),
        ("http://", "no http or https url with a host"),
        ("http:///path", "no http or https url with a host"),
        ("https:example.com", "no http or https url with a host"),
        ("http://user@example.com", "holds a user name or a password"),
        ("http://user:secret@example.com", "holds a user name or a password"),
        ("http://example.com\\@127.0.0.1/", "holds '\\\\', which no url may"),
        ("http://example.com/#part", "has a fragment"),
        ("http://example.com/#", "has a fragment"),
        ("http://exa mple.com", "holds ' ', which no url may"),
        ("http://example.com/\r\nX-Evil: 1", "holds '\\r', which no url may"),
        ("http://example.com/\x00", "holds '\\x00', which no url may"),
        ("http://bücher.example/", "holds 'ü', which no url may"),
        ("http://①②⑦.0.0.1/", "holds '①', which no url may"),
        ("http://example.com:99999/", "is no url: Port out of range"),
        ("http://example.com:port/", "is no url: Port could not be cast"),
        ("http://example.com:0/", "names no host and port that can be called"),
        ("http://[::1", "is no url: Invalid IPv6 URL"),
        ("http://[fe80::1%25eth0]/", "names no host and port that can be called"),
        ("http://.example.com/", "names no host and port that can be called"),
        ("http://exam*ple.com/", "names no host and port that can be called"),
        ("http://" + "a" * 64 + ".com/", "names no host and port that can be called"),
        ("http://example.com/${KEY}", "holds a brace"),
        ("http://example.com/" + "a" * 8000, "the url has 8019 characters"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    document = Endpoint(type="endpoint", url=url)
    (problem,) = document.problems("grader")
    assert words in problem.what and "secret" not in str(problem)
    assert problem.where == "grader.url" and problem.remedy
    with pytest.raises(GraderError):
        document.open(GradingSettings())


@given(st.one_of(st.text(), st.text("htps:/[]@%.0x7f{}#?\\ a"), st.from_regex(r"https?://.*")))
def test_any_text_is_a_url_or_a_located_error(text: str) -> None:
    document = Endpoint(type="endpoint", url=text, headers={text: text})
    for problem in [
        *document.problems("grader"),
        *document.settings_problems("grader", GradingSettings()),
    ]:
        assert problem.what and problem.where.startswith("grader.") and problem.remedy


# headers


def test_headers_are_filled_in_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADER_KEY", "sk-12345")
    monkeypatch.setenv("TENANT", "blue")
    headers = {
        "Authorization": "Bearer ${GRADER_KEY}",
        "X-Both": "${TENANT}/${GRADER_KEY}",
        "user-agent": "mine $HOME {x}",
        "X-Empty": "",
    }
    with serving(always(FINE)) as server, open_endpoint(server.url, headers=headers) as grader:
        assert grader.grade(SAMPLE, ITEM).reward == 0.75
    sent = server.requests[0].headers
    assert sent["authorization"] == "Bearer sk-12345"
    assert sent["x-both"] == "blue/sk-12345"
    assert (sent["user-agent"], sent["x-empty"]) == ("mine $HOME {x}", "")
    document = Endpoint(type="endpoint", url=server.url, headers=headers)
    assert "sk-12345" not in document.model_dump_json()


@pytest.mark.parametrize(
    ("value", "words", "remedy"),
    [
        (None, "the environment has no GRADER_KEY", "set GRADER_KEY before starting rft"),
        ("", "the environment has no GRADER_KEY", "set GRADER_KEY before starting rft"),
        ("sk-1\nX-Evil: 1", "the environment's GRADER_KEY holds a line break", "remove it"),
        ("sk-1\r\n", "the environment's GRADER_KEY holds a line break", "remove it"),
        ("sk-é", "the environment's GRADER_KEY holds a line break", "remove it"),
        (" sk-1", "the environment's GRADER_KEY holds a line break", "remove it"),
    ],
)
def test_what_the_environment_lacks(
    monkeypatch: pytest.MonkeyPatch, value: str | None, words: str, remedy: str
) -> None:
    monkeypatch.delenv("GRADER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("GRADER_KEY", value)
    document = Endpoint(
        type="endpoint", url="https://example.com", headers={"Authorization": "${GRADER_KEY}"}
    )
    assert document.problems("grader") == []
    with pytest.raises(GraderError) as raised:
        open_grader(document)
    (problem,) = raised.value.problems
    assert problem.what.startswith(words) and "sk-" not in str(problem)
    assert (problem.where, problem.remedy) == ("endpoint.headers.Authorization", remedy)


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "500 Oops"])
def test_a_key_that_the_server_echoes_is_not_told(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setenv("GRADER_KEY", "sk-12345")
    with serving(always(reply(b"bad key sk-12345", status))) as server:
        grade = grade_once(server.url, headers={"X-Key": "${GRADER_KEY}"})
    (details,) = grade.errors.values()
    assert "bad key ${GRADER_KEY}" in details and "sk-12345" not in details


def test_a_short_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANT", "k")
    with serving(always(reply(b"", "500 Oops"))) as server:
        grade = grade_once(server.url, headers={"X-Tenant": "${TENANT}"})
    assert failed(grade, SERVER_ERROR) == "HTTP 500 Internal Server Error (asked 4 times)"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-A": "1\r\nX-Evil: 2"}, "X-A holds a line break"),
        ({"X-A": "1\nX-Evil: 2"}, "X-A holds a line break"),
        ({"X-A": "1\x00"}, "X-A holds a line break"),
        ({"X-A": "1\n"}, "X-A holds a line break"),
        ({"X-A": "é"}, "X-A holds a line break"),
        ({"X-A": " 1"}, "X-A holds a line break"),
        ({"X\r\nEvil": "1"}, "'X\\r\\nEvil' cannot name a header"),
        ({"X-A\n": "1"}, "'X-A\\n' cannot name a header"),
        ({"X A": "1"}, "'X A' cannot name a header"),
        ({"X:": "1"}, "'X:' cannot name a header"),
        ({"": "1"}, "'' cannot name a header"),
        ({"é": "1"}, "'é' cannot name a header"),
        ({"Host": "internal"}, "the header Host cannot be set"),
        ({"content-length": "0"}, "the header content-length cannot be set"),
        ({"Transfer-Encoding": "chunked"}, "the header Transfer-Encoding cannot be set"),
        ({"Connection": "close"}, "the header Connection cannot be set"),
        ({"X-A": "1", "x-a": "2"}, "the header x-a is given twice"),
        ({"x-a": "1", "X-A": "2"}, "the header X-A is given twice"),
        ({"X-A": "${}"}, "the header X-A has a ${ that begins no ${NAME}"),
        ({"X-A": "${A-B}"}, "the header X-A has a ${ that begins no ${NAME}"),
        ({"X-A": "Bearer ${KEY"}, "the header X-A has a ${ that begins no ${NAME}"),
    ],
)
def test_headers_that_are_refused(headers: dict[str, str], words: str) -> None:
    document = Endpoint(type="endpoint", url="https://example.com", headers=headers)
    (problem,) = document.problems("grader")
    assert words in problem.what and problem.remedy
    assert problem.where.startswith("grader.headers")
    with pytest.raises(GraderError):
        document.open(GradingSettings())


# what others see of it


def test_inside_a_multi_grader() -> None:
    with serving(in_turn(FINE, reply(b"", "404 Not Found"))) as server:
        document = documents.validate_python(
            {
                "type": "multi",
                "graders": {"judge": {"type": "endpoint", "url": server.url}},
                "calculate_output": "2 * judge",
            }
        )
        with open_grader(document, LISTED) as grader:
            first = grader.grade(SAMPLE, ITEM)
            second = grader.grade(SAMPLE, ITEM)
    assert (first.reward, first.sub_rewards) == (1.5, {"judge": 0.75})
    assert second.reward is None
    assert second.errors == {INTERNAL_ERROR: "judge: HTTP 404 Not Found"}


def test_the_flags_in_the_products_reply_and_in_the_results() -> None:
    with serving(always(reply(b"", "404 Not Found"))) as server:
        errors = product_reply(grade_once(server.url), {})["metadata"]["errors"]
    assert errors[INTERNAL_ERROR] is True
    assert errors[f"{INTERNAL_ERROR}_details"] == "HTTP 404 Not Found"
    assert (errors[SERVER_ERROR], errors[SAFETY_ERROR]) == (False, False)
    refused = grade_once("http://127.0.0.1:9/", settings=GradingSettings())
    errors = product_reply(refused, {})["metadata"]["errors"]
    assert errors[SAFETY_ERROR] is True
    assert errors[f"{SAFETY_ERROR}_details"].startswith("127.0.0.1 is a loopback address")
    columns = results_columns([("endpoint", "endpoint")])
    for flag in (SERVER_ERROR, INTERNAL_ERROR, SAFETY_ERROR):
        assert f"errors/graders/endpoint/endpoint/errors/train_{flag}_count" in columns
