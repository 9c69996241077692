"""score_model and label_model: documents, replies, faults of a real server on this machine, equal calls."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rft.cli.grade import product_reply
from rft.errors import GraderError
from rft.graders import GraderDocument, GradingSettings, local_judges, open_grader, problems_of
from rft.graders.fault import GradingFault
from rft.graders.judge import JudgeReply, JudgeRequest, JudgeSettings, StandInJudge
from rft.graders.judge_http import HttpJudge, completions_url
from rft.graders.judge_prompt import MessageTemplate
from rft.graders.model_grader import ModelGrader, OpenModelGrader
from rft.graders.score_model import levels
from rft.graders.template import parse_template
from rft.types import Grade
from tests.unit.graders.loopback import Answer, Request, always, in_turn, reply, serving

documents = TypeAdapter(GraderDocument)
SAMPLE = {"output_text": "Paris", "output_tools": [], "choices": []}
ITEM = {"answer": "Paris"}
SERVER = "model_grader_server_error"
REFUSAL = "model_grader_refusal_error"
PARSE = "model_grader_parse_error"
TOO_LONG = "model_grader_exceeded_max_tokens_error"


def score_model(**fields: Any) -> ModelGrader:
    content = "Answer: {{ sample.output_text }} Reference: {{ item.answer }}"
    base = {"type": "score_model", "name": "judge", "model": "m"}
    return documents.validate_python(
        {**base, "input": [{"role": "user", "content": content}], **fields}
    )


def label_model(**fields: Any) -> ModelGrader:
    labels = {"labels": ["good", "fair", "poor"], "passing_labels": ["good", "fair"]}
    return score_model(**{"type": "label_model", **labels, **fields})


def opened(
    document: ModelGrader,
    port: int,
    seconds: float = 5,
    concurrency: int = 16,
    key_env: str = "NO_KEY",
) -> OpenModelGrader:
    """A grader that is quicker to try again and to give up than a job's."""
    url = f"http://127.0.0.1:{port}/v1"
    settings = JudgeSettings(url, key_env, concurrency, seconds)
    judge = HttpJudge(completions_url(url, "url"), document.model, settings, backoff_seconds=0.01)
    templates = [MessageTemplate(m.role, parse_template(m.content, "t")) for m in document.input]
    return OpenModelGrader(document, GradingSettings(), judge, templates)


def chat(content: Any, finish_reason: str = "stop", **message: Any) -> bytes:
    """A server's reply with that content."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    document = {
        "model": "m-2026",
        "choices": [
            {
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 7,
            "total_tokens": 27,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }
    return reply(json.dumps(document).encode())


def result(value: Any) -> bytes:
    return chat({"steps": [], "result": value})


def graded(answer: Answer | bytes, document: ModelGrader | None = None, **options: Any) -> Grade:
    answer = always(answer) if isinstance(answer, bytes) else answer
    with (
        serving(answer) as server,
        opened(document or score_model(), server.port, **options) as grader,
    ):
        return grader.grade(SAMPLE, ITEM)


@pytest.mark.parametrize(
    ("value", "bounds", "reward"),
    [
        (0.75, [0, 1], 0.75),
        (1, [0, 1], 1.0),
        (7, [0, 1], 1.0),
        (-0.5, [0, 1], 0.0),
        (-5, [-2, 10], -2.0),
        (9.5, [-2, 10], 9.5),
        (1e300, [0, 1], 1.0),
    ],
)
def test_the_result_is_cut_to_the_range(value: float, bounds: list[float], reward: float) -> None:
    grade = graded(result(value), score_model(range=bounds))
    assert (grade.reward, grade.errors, grade.model) == (reward, {}, "m-2026")
    assert grade.usage == {"prompt_tokens": 20, "completion_tokens": 7, "cached_tokens": 4}
    assert grade.latency > 0


@pytest.mark.parametrize(("label", "reward"), [("good", 1.0), ("fair", 1.0), ("poor", 0.0)])
def test_a_label_that_passes_earns_one(label: str, reward: float) -> None:
    assert graded(result(label), label_model()).reward == reward


def test_the_request_is_the_products() -> None:
    document = score_model(
        sampling_params={"temperature": 0.5, "seed": 3, "max_completion_tokens": 99, "top_p": 0.9}
    )
    with serving(always(result(1))) as server, opened(document, server.port) as grader:
        grader.grade(SAMPLE, ITEM)
    (request,) = server.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert "authorization" not in request.headers
    body = json.loads(request.body)
    assert body["response_format"]["json_schema"]["name"] == "float_score_classification"
    assert body["response_format"]["json_schema"]["strict"] is True
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["steps", "result"]
    assert schema["properties"]["result"] == {"type": "number"}
    assert (body["model"], body["temperature"], body["seed"], body["top_p"]) == ("m", 0.5, 3, 0.9)
    assert body["max_completion_tokens"] == body["max_tokens"] == 99
    assert "reasoning_effort" not in body
    (message,) = body["messages"]
    assert message["role"] == "user" and "Reference: Paris" in message["content"]


def drip(request: Request) -> None:
    """A byte now and then, for ever."""
    request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    for _ in range(200):
        request.send(b" ")
        time.sleep(0.05)


def half(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{")
    request.reset()


def silent(request: Request) -> None:
    time.sleep(20)


FAULTS: dict[str, tuple[Answer | bytes, str, str]] = {
    "no reply in time": (silent, SERVER, "no reply within"),
    "slow drip": (drip, SERVER, "no reply within"),
    "reset": (Request.reset, SERVER, "broke off"),
    "reset in the reply": (half, SERVER, "broke off"),
    "429 for ever": (reply(b"slow down", "429 Too Many Requests"), SERVER, "HTTP 429"),
    "429 beyond the limit": (
        reply(b"", "429 Too Many Requests", "Retry-After: 3600"),
        SERVER,
        "would pass the limit",
    ),
    "500 for ever": (reply(b"oops", "500 Internal Server Error"), SERVER, "HTTP 500"),
    "503": (reply(b"", "503 Service Unavailable"), SERVER, "HTTP 503"),
    "401": (reply(b"no key", "401 Unauthorized"), SERVER, "set NO_KEY to a valid key"),
    "404": (reply(b"no model", "404 Not Found"), SERVER, "check base_url"),
    "400": (reply(b"response_format?", "400 Bad Request"), SERVER, "response_format?"),
    "10 MB": (reply(b" " * 10_000_000), SERVER, "more than 1000000 bytes"),
    "no HTTP": (lambda request: request.send(b"hello\r\n\r\n"), SERVER, "broke off"),
    "a redirect": (reply(b"", "302 Found", "Location: http://127.0.0.1:1/"), SERVER, "HTTP 302"),
    "not JSON": (reply(b"<html>"), PARSE, "not JSON"),
    "nested without end": (reply(b"[" * 100_000), PARSE, "not JSON"),
    "no choices": (reply(b"{}"), PARSE, "no message"),
    "empty choices": (reply(b'{"choices": []}'), PARSE, "no message"),
    "choices of the wrong type": (reply(b'{"choices": [3]}'), PARSE, "no message"),
    "no content": (chat(None), PARSE, "no text"),
    "prose": (chat("I would give 0.8."), PARSE, "not valid JSON"),
    "prose around JSON": (chat('Sure: {"steps": [], "result": 1}'), PARSE, "not valid JSON"),
    "text after JSON": (chat('{"steps": [], "result": 1} done'), PARSE, "text after the JSON"),
    "a bare number": (chat("0.8"), PARSE, "not an object"),
    "no steps": (chat({"result": 1}), PARSE, "not an object"),
    "another key": (chat({"steps": [], "result": 1, "x": 2}), PARSE, "not an object"),
    "steps that are none": (chat({"steps": "a", "result": 1}), PARSE, "steps is no list"),
    "a key twice": (chat('{"steps": [], "result": 0, "result": 1}'), PARSE, "stands twice"),
    "text as number": (result("0.8"), PARSE, "no number but a str"),
    "true as number": (result(True), PARSE, "no number but a bool"),
    "null": (result(None), PARSE, "no number but a NoneType"),
    "NaN": (chat('{"steps": [], "result": NaN}'), PARSE, "NaN"),
    "infinity": (chat('{"steps": [], "result": 1e999}'), PARSE, "too large"),
    "refusal": (chat(None, refusal="I cannot judge that."), REFUSAL, "I cannot judge that."),
    "an empty refusal": (chat(None, refusal=""), PARSE, "no text"),
    "content filter": (chat("", "content_filter"), REFUSAL, "content filter"),
    "cut off without text": (chat(None, "length"), TOO_LONG, "cut at its token limit"),
    "cut off": (chat('{"steps": [', "length"), TOO_LONG, "cut at its token limit"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_server_has_its_flag_in_bounded_time(name: str) -> None:
    answer, flag, words = FAULTS[name]
    began = time.monotonic()
    grade = graded(answer, seconds=1)
    assert time.monotonic() - began < 4
    assert grade.reward is None
    assert list(grade.errors) == [flag]
    assert words in grade.errors[flag]


@pytest.mark.parametrize(
    "first",
    [
        reply(b"", "429 Too Many Requests", "Retry-After: 0"),
        reply(b"", "500 Internal Server Error"),
        Request.reset,
        half,
    ],
)
def test_what_may_pass_is_tried_again(first: Answer | bytes) -> None:
    with (
        serving(in_turn(first, first, result(0.5))) as server,
        opened(score_model(), server.port) as grader,
    ):
        assert grader.grade(SAMPLE, ITEM).reward == 0.5
    assert len(server.requests) == 3


def test_retry_after_is_waited_for() -> None:
    late = reply(b"", "429 Too Many Requests", "Retry-After: 1")
    began = time.monotonic()
    assert graded(in_turn(late, result(1))).reward == 1
    assert 1 <= time.monotonic() - began < 3


def test_what_does_not_pass_is_not_tried_again() -> None:
    with (
        serving(always(reply(b"", "401 Unauthorized"))) as server,
        opened(score_model(), server.port) as grader,
    ):
        grader.grade(SAMPLE, ITEM)
    assert len(server.requests) == 1


def test_a_key_goes_out_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-verysecret")
    echo = reply(b"bad key sk-verysecret", "403 Forbidden")
    with (
        serving(always(echo)) as server,
        opened(score_model(), server.port, key_env="MY_KEY") as grader,
    ):
        grade = grader.grade(SAMPLE, ITEM)
    assert server.requests[0].headers["authorization"] == "Bearer sk-verysecret"
    assert "sk-verysecret" not in str(grade) and "***" in grade.errors[SERVER]


@pytest.mark.parametrize(
    "text", ["", " \n\t", ".", "?!…", "—", "🙂", "***", "{}", "。、", "\u200b"]
)
def test_hollow_answers_earn_the_minimum_unasked(text: str) -> None:
    with (
        serving(always(result(1))) as server,
        opened(score_model(range=[-1, 1]), server.port) as grader,
    ):
        grade = grader.grade({**SAMPLE, "output_text": text}, ITEM)
    assert (grade.reward, grade.errors, grade.usage) == (-1.0, {}, {})
    assert not server.requests


@pytest.mark.parametrize("text", ["0", "да", "はい", "é", "a.", "٣"])
def test_anything_with_a_letter_or_a_digit_is_judged(text: str) -> None:
    with serving(always(result(1))) as server, opened(score_model(), server.port) as grader:
        grader.grade({**SAMPLE, "output_text": text}, ITEM)
    assert len(server.requests) == 1


def test_a_missing_variable_of_the_sample_earns_the_minimum_unasked() -> None:
    content = "{{ sample.output_json.a }}"
    document = score_model(range=[-3, 1], input=[{"role": "user", "content": content}])
    with serving(always(result(1))) as server, opened(document, server.port) as grader:
        grade = grader.grade(SAMPLE, ITEM)
    assert grade.reward == -3.0 and list(grade.errors) == ["invalid_variable_error"]
    assert not server.requests


def test_equal_questions_are_asked_once_and_failed_ones_again() -> None:
    failing = in_turn(reply(b"", "400 Bad Request"), result(0.25))
    with serving(failing) as server, opened(score_model(), server.port) as grader:
        assert grader.grade(SAMPLE, ITEM).reward is None
        first = grader.grade(SAMPLE, ITEM)
        again = grader.grade({**SAMPLE, "choices": [1]}, {**ITEM, "other": 2})
    assert len(server.requests) == 2
    assert (first.reward, again.reward) == (0.25, 0.25)
    assert first.usage and first.latency
    assert (again.usage, again.latency, again.model) == ({}, 0.0, "m-2026")


def test_names_and_addresses_that_servers_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-verysecret")

    def named(model: object) -> str:
        body = {"model": model, "choices": [{"message": {"content": '{"steps": [], "result": 1}'}}]}
        answer = always(reply(json.dumps(body).encode()))
        with (
            serving(answer) as server,
            opened(score_model(), server.port, key_env="MY_KEY") as grader,
        ):
            return grader.grade(SAMPLE, ITEM).model

    assert named("m-2") == "m-2"
    assert named("sk-verysecret") == "***"
    assert named("m" * 101) == named(None) == named("a\nb") == "m"
    assert (
        completions_url("http://x/v1?api-version=1", "u").target
        == "/v1/chat/completions?api-version=1"
    )


def test_a_developer_is_the_system_to_servers_but_openais() -> None:
    document = score_model(input=[{"role": "developer", "content": "{{ sample.output_text }}"}])
    with serving(always(result(1))) as server, opened(document, server.port) as grader:
        grader.grade(SAMPLE, ITEM)
    assert json.loads(server.requests[0].body)["messages"][0]["role"] == "system"


def test_who_asks_the_same_meanwhile_waits_for_the_reply() -> None:
    def slowly(request: Request) -> None:
        time.sleep(0.3)
        request.send(result(0.5))

    with (
        serving(slowly) as server,
        opened(score_model(), server.port) as grader,
        ThreadPoolExecutor(8) as pool,
    ):
        grades = list(pool.map(lambda _: grader.grade(SAMPLE, ITEM), range(8)))
    assert len(server.requests) == 1
    assert [grade.reward for grade in grades] == [0.5] * 8
    assert sum(bool(grade.usage) for grade in grades) == 1


def test_200_calls_of_100_ms_take_under_three_seconds_and_16_at_a_time() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slowly(request: Request) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        request.send(result(0.5))

    def seconds(attempt: int) -> float:
        samples = [{**SAMPLE, "output_text": f"answer {attempt} {n}"} for n in range(200)]
        with ThreadPoolExecutor(40) as pool:
            began = time.monotonic()
            grades = list(pool.map(lambda sample: grader.grade(sample, ITEM), samples))
            spent = time.monotonic() - began
        assert all(grade.reward == 0.5 for grade in grades)
        return spent

    with serving(slowly) as server, opened(score_model(), server.port) as grader:
        best = seconds(0)
        for attempt in range(1, 4):  # a shared machine may be busy for a while
            best = best if best < 3 else min(best, seconds(attempt))
    assert 200 / 16 * 0.1 <= best < 3
    assert 8 < most[0] <= 16


def test_a_judge_that_does_not_answer_is_found_before_a_run() -> None:
    def check(answer: bytes) -> None:
        with serving(always(answer)) as server, opened(score_model(), server.port) as grader:
            grader.check()

    with pytest.raises(GraderError, match=r"401.*NO_KEY"):
        check(reply(b"who?", "401 Unauthorized"))
    with pytest.raises(GraderError, match="structured outputs"):
        check(chat("prose"))
    check(result(0))


class Fixed:
    """A judge of this process that always says the same."""

    def __init__(self, text: str):
        self.text = text
        self.asked: list[JudgeRequest] = []

    def answer(self, request: JudgeRequest) -> JudgeReply:
        self.asked.append(request)
        return JudgeReply(self.text, "stop", usage={"prompt_tokens": 3}, model="local:base")

    def close(self) -> None:
        raise AssertionError("its owner closes it")


class Weighing(Fixed):
    """Finds later replies likelier."""

    def answer(self, request: JudgeRequest) -> JudgeReply:
        self.asked.append(request)
        weights = range(len(request.replies))
        total = max(1, sum(weights))
        return JudgeReply(
            request.replies[-1], "stop", probabilities=tuple(w / total for w in weights)
        )


WITHOUT_ROOM = {"max_completions_tokens": 127}


def test_without_room_for_steps_a_score_is_the_mean_of_those_that_could_be_given() -> None:
    judge = Weighing("")
    settings = GradingSettings(local_judges={"local:base": judge})
    document = score_model(model="local:base", sampling_params=WITHOUT_ROOM, range=[1, 2])
    with document.open(settings) as grader:
        expected = sum(n * (1 + n / 4) for n in range(5)) / 10
        assert grader.grade(SAMPLE, ITEM).reward == pytest.approx(expected)
    (request,) = judge.asked
    assert request.replies[0] == '{"steps": [], "result": 1}'
    assert request.replies[1] == '{"steps": [], "result": 1.25}'


def test_without_room_for_steps_a_label_is_the_likeliest() -> None:
    judge = Weighing("")
    settings = GradingSettings(local_judges={"local:base": judge})
    document = label_model(model="local:base", sampling_params=WITHOUT_ROOM)
    with document.open(settings) as grader:
        passes = document.labels[-1] in document.passing_labels
        assert grader.grade(SAMPLE, ITEM).reward == float(passes)
    assert judge.asked[0].replies == tuple(
        json.dumps({"steps": [], "result": label}) for label in document.labels
    )


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("local:base", {"max_completions_tokens": 128}),
        ("local:base", {**WITHOUT_ROOM, "temperature": 1.0}),
        ("some-model", WITHOUT_ROOM),
    ],
)
def test_where_there_is_room_or_chance_or_a_server_nothing_is_weighed(
    model: str, params: dict[str, Any]
) -> None:
    assert score_model(model=model, sampling_params=params).weighed_replies == ()


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 1), (0, 0.25, 0.5, 0.75, 1)),
        ((1, 5), (1, 2, 3, 4, 5)),
        ((0, 10), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        ((-1, 1), (-1, 0, 1)),
        ((0.5, 3.5), (0.5, 1.25, 2, 2.75, 3.5)),
        ((0, 15), (0, 3.8, 7.5, 11.2, 15)),
        ((0, 150), (0, 38, 75, 112, 150)),
        ((0, 100), (0, 25, 50, 75, 100)),
        ((0.1, 0.3), (0.1, 0.15, 0.2, 0.25, 0.3)),
    ],
)
def test_what_is_weighed_is_what_rubrics_use(
    bounds: tuple[float, float], expected: tuple[float, ...]
) -> None:
    assert levels(*bounds) == expected


@pytest.mark.parametrize(
    "bounds",
    [(0, 1), (1, 5), (0, 15), (0, 150), (-0.5, 1e5), (0.1, 0.3), (0.1234567, 1), (0.3, 0.7)],
)
def test_what_is_weighed_could_also_be_written(bounds: tuple[float, float]) -> None:
    document = score_model(model="local:base", range=bounds, sampling_params=WITHOUT_ROOM)
    step = document.result_schema.get("multipleOf", 1)
    results = document.results
    assert [r / step for r in results] == pytest.approx([round(r / step) for r in results])
    assert bounds[0] <= results[0] and results[-1] <= bounds[1] and len(set(results)) >= 5


def test_what_is_weighed_is_written_in_its_own_letters() -> None:
    labels = ["möglich", "да"]
    document = label_model(
        model="local:base", labels=labels, passing_labels=labels, sampling_params=WITHOUT_ROOM
    )
    assert document.weighed_replies == (
        '{"steps": [], "result": "möglich"}',
        '{"steps": [], "result": "да"}',
    )


def test_of_many_labels_one_is_written() -> None:
    labels = [f"label {n}" for n in range(17)]
    fields = {"labels": labels, "passing_labels": labels[:1], "sampling_params": WITHOUT_ROOM}
    assert label_model(model="local:base", **fields).weighed_replies == ()
    fields["labels"] = labels[:16]
    assert len(label_model(model="local:base", **fields).weighed_replies) == 16


@pytest.mark.parametrize(
    ("threshold", "params", "warns"),
    [
        (1.0, WITHOUT_ROOM, True),
        (0.9, WITHOUT_ROOM, False),
        (1.0, {}, False),
        (None, WITHOUT_ROOM, False),
    ],
)
def test_a_threshold_that_no_mean_reaches_is_told(
    threshold: float | None, params: dict[str, Any], warns: bool
) -> None:
    document = score_model(model="local:base", pass_threshold=threshold, sampling_params=params)
    assert any("nothing passes" in warning for warning in document.warnings()) == warns


def test_a_judge_of_this_process_is_asked_for_what_fits_its_limit() -> None:
    judge = Fixed('{"steps": [], "result": 0.5}')
    settings = GradingSettings(local_judges={"local:base": judge})
    params = {"max_completions_tokens": 250}
    with open_grader(score_model(model="local:base", sampling_params=params), settings) as grader:
        assert grader.grade(SAMPLE, ITEM).reward == 0.5
    schema = judge.asked[0].schema["properties"]
    assert schema["steps"]["maxItems"] == 2
    assert schema["result"] == {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01}


@pytest.mark.parametrize(
    "document", [score_model(model="local:base"), label_model(model="local:base")]
)
def test_a_judge_that_is_not_loaded_is_an_error_and_never_a_reward(document: ModelGrader) -> None:
    with pytest.raises(GraderError, match="local:base is not loaded here"):
        document.open(GradingSettings())


@pytest.mark.parametrize(
    ("document", "least"),
    [
        (score_model(model="local:base", range=[-1, 1]), -1.0),
        (label_model(model="local:base"), 1.0),
    ],
)
def test_a_stand_in_says_something_that_can_be_read(document: ModelGrader, least: float) -> None:
    settings = GradingSettings(local_judges={"local:base": StandInJudge()})
    with document.open(settings) as grader:
        grader.check()
        assert grader.grade(SAMPLE, ITEM).reward == least


def test_where_a_threshold_shapes_rewards_it_shapes_the_least_one_too() -> None:
    settings = GradingSettings(pass_threshold_shapes_reward=True, local_judges={"local:base": Fixed(
        '{"steps": [], "result": 4}')})  # fmt: skip
    document = score_model(model="local:base", range=[1, 5], pass_threshold=3)
    with document.open(settings) as grader:
        assert grader.grade(SAMPLE, ITEM).reward == 1.0
        assert grader.grade({**SAMPLE, "output_text": "?"}, ITEM).reward == 0.0


@pytest.mark.parametrize(
    ("bounds", "step"),
    [([0, 1], 0.01), ([0, 10], 0.1), ([-1, 1], 0.01), ([0.001, 0.009], 1e-5)],
)
def test_a_judge_of_this_process_has_a_hundred_steps_or_more(
    bounds: list[float], step: float
) -> None:
    schema = score_model(model="local:base", range=bounds).result_schema
    assert schema["multipleOf"] == pytest.approx(step)


def test_a_wide_range_is_one_of_whole_numbers() -> None:
    schema = score_model(model="local:base", range=[-0.5, 1e9]).result_schema
    assert schema == {"type": "integer", "minimum": 0, "maximum": 1_000_000_000}


def test_tokens_of_a_reply_that_cannot_be_read_count() -> None:
    grade = graded(chat("prose"))
    assert grade.usage == {"prompt_tokens": 20, "completion_tokens": 7, "cached_tokens": 4}
    assert grade.model == "m-2026" and grade.reward is None


def test_tokens_of_a_reply_that_cannot_be_read_count_once() -> None:
    asked, waiting = threading.Event(), threading.Semaphore(0)

    class Slow(Fixed):
        def answer(self, request: JudgeRequest) -> JudgeReply:
            asked.set()
            waiting.acquire()
            return super().answer(request)

    judge = Slow("prose")
    settings = GradingSettings(local_judges={"local:base": judge})
    grader = score_model(model="local:base").open(settings)
    with grader, ThreadPoolExecutor(2) as pool:
        first = pool.submit(grader.grade, SAMPLE, ITEM)
        assert asked.wait(60)
        second = pool.submit(grader.grade, SAMPLE, ITEM)
        time.sleep(0.2)  # until it waits for the first, or else asks, and the judge was asked twice
        waiting.release(2)
        grades = [first.result(60), second.result(60)]
    assert [grade.reward for grade in grades] == [None, None]
    assert len(judge.asked) == 1
    assert [grade.usage for grade in grades] == [{"prompt_tokens": 3}, {}]
    assert [grade.model for grade in grades] == ["local:base"] * 2


def test_a_multi_takes_both_and_adds_up_what_they_cost() -> None:
    content = [{"role": "user", "content": "{{ sample.output_text }}"}]
    parts = {
        key: {"type": "score_model", "name": key, "model": f"local:{key}", "input": content}
        for key in ("a", "b")
    }
    document = documents.validate_python(
        {"type": "multi", "graders": parts, "calculate_output": "a + b"}
    )
    assert local_judges(document) == ["local:a", "local:b"]
    judges = {f"local:{key}": Fixed('{"steps": [], "result": 0.25}') for key in ("a", "b")}
    with open_grader(document, GradingSettings(local_judges=judges)) as grader:
        grade = grader.grade(SAMPLE, ITEM)
    assert (grade.reward, grade.usage) == (0.5, {"prompt_tokens": 6})
    usage = product_reply(grade, {})["model_grader_token_usage_per_model"]
    assert usage == {"local:base": {"prompt_tokens": 6, "total_tokens": 6}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{{ item.a }}", "{{ item.a }}"),
        ({"type": "input_text", "text": "{{ item.a }}"}, "{{ item.a }}"),
        ([{"type": "input_text", "text": "a "}, {"type": "output_text", "text": "b"}], "a b"),
    ],
)
def test_contents_of_messages(content: Any, expected: str) -> None:
    assert (
        score_model(input=[{"role": "developer", "content": content}]).input[0].content == expected
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []},
        {"input": [{"role": "tool", "content": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"range": [1, 1]},
        {"range": [2, 1]},
        {"range": [0, float("inf")]},
        {"range": [-1.7e308, 1.7e308]},
        {"range": [0, 1e-12]},
        {"model": ""},
        {"sampling_params": {"max_completions_tokens": 0}},
        {"sampling_params": {"temprature": 1}},
        {"sampling_params": {"seed": "5"}},
        {"sampling_params": {"temperature": True}},
        {"api_key_env": "sk-123"},
        {"type": "label_model", "labels": [], "passing_labels": []},
    ],
)
def test_documents_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        score_model(**fields)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (lambda: score_model(base_url="ftp://x"), "no http or https url"),
        (lambda: score_model(base_url="http://10.0.0.7/v1"), "private"),
        (lambda: score_model(base_url="https://api.openai.com/v1"), "no NO_SUCH_KEY"),
        (lambda: score_model(), "no NO_SUCH_KEY"),
        (lambda: score_model(model="local:"), "names no model"),
        (lambda: score_model(model="local:base", base_url="http://x/v1"), "base_url has no use"),
        (
            lambda: score_model(model="local:base", sampling_params={"reasoning_effort": "low"}),
            "reasoning_effort has no use",
        ),
        (lambda: score_model(input=[{"role": "user", "content": "{{ item }}"}]), "item"),
        (lambda: label_model(model="local:base"), "only in a multi"),
    ],
)
def test_faults_are_told_before_a_run(document: Callable[[], ModelGrader], words: str) -> None:
    settings = GradingSettings(judge=JudgeSettings(api_key_env="NO_SUCH_KEY"))
    problems = problems_of(document(), "grader", settings)
    assert any(words in problem.what for problem in problems), problems


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_judge_on_this_machine_needs_no_listing(host: str) -> None:
    assert not problems_of(score_model(base_url=f"http://{host}:8000/v1"), "g", GradingSettings())


def test_a_judge_that_does_not_see_the_sample_is_warned_about() -> None:
    blind = score_model(input=[{"role": "user", "content": "{{ item.answer }}"}])
    assert "every completion earns the same" in blind.warnings()[0]
    assert score_model().warnings() == []


def test_a_closed_judge_ends_its_calls() -> None:
    with serving(silent) as server:
        grader = opened(score_model(), server.port, seconds=30)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(grader.grade, SAMPLE, ITEM)
            while not server.requests:
                time.sleep(0.01)
            grader.close()
            assert SERVER in waiting.result(5).errors


def test_a_fault_is_never_raised() -> None:
    class Broken(Fixed):
        def answer(self, request: JudgeRequest) -> JudgeReply:
            raise GradingFault(SERVER, "gone", of_sample=False)

    settings = GradingSettings(local_judges={"local:base": Broken("")})
    with open_grader(score_model(model="local:base"), settings) as grader:
        assert grader.grade(SAMPLE, ITEM).errors == {SERVER: "gone"}
