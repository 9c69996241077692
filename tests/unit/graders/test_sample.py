"""A completion has the product's shape, and equal ones have equal samples."""

import pytest

from rft.graders.sample import make_sample, parse_error_details, parse_errors_of

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
CALLS = [{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]


def test_graders_see_the_answer_in_the_shape_of_the_product() -> None:
    assert make_sample("42", "length") == {
        "output_text": "42",
        "output_tools": [],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "42"},
                "finish_reason": "length",
            }
        ],
    }
    assert make_sample("")["choices"][0]["finish_reason"] == "stop"
    assert make_sample("42") == make_sample("42") != make_sample("42", "length")


def test_calls_stand_apart_from_the_text() -> None:
    assert make_sample(f"Wait.\n{CALL}", tools=TOOLS) == {
        "output_text": "Wait.",
        "output_tools": CALLS,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Wait.", "tool_calls": CALLS},
                "finish_reason": "tool_calls",
            }
        ],
    }


def test_calls_are_looked_for_only_in_answers_to_rows_with_tools() -> None:
    assert make_sample(CALL) == {**make_sample("x"), "output_text": CALL} | {
        "choices": make_sample(CALL)["choices"]
    }
    assert make_sample(CALL)["choices"][0]["message"] == {"role": "assistant", "content": CALL}
    assert make_sample("Paris", tools=TOOLS) == make_sample("Paris")


def test_the_special_tokens_are_read_but_not_shown() -> None:
    sample = make_sample("f{}", marked_text="[TOOL_CALLS]f[ARGS]{}", tools=TOOLS)
    assert sample["output_tools"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert sample["output_text"] == ""
    assert make_sample("hi", marked_text="<|x|>hi", tools=TOOLS) == make_sample("hi")
    assert make_sample("f{}", marked_text="[TOOL_CALLS]f[ARGS]{}") == make_sample("f{}")


def test_a_malformed_call_is_an_error_and_its_text_kept() -> None:
    sample = make_sample("Wait. <tool_call>{", "length", tools=TOOLS)
    assert (sample["output_text"], sample["output_tools"]) == ("Wait. <tool_call>{", [])
    assert sample["choices"][0]["message"]["content"] == "Wait. <tool_call>{"
    assert sample["choices"][0]["finish_reason"] == "length"
    assert list(parse_errors_of(sample)) == ["output_tools"]
    assert parse_error_details(sample).startswith("output_tools: tool call 1: not valid JSON")


def test_a_call_that_was_finished_before_the_cut_counts() -> None:
    sample = make_sample(f"{CALL} and", "length", tools=TOOLS)
    assert (sample["output_tools"], sample["output_text"]) == (CALLS, "and")
    assert sample["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": 1}', {"a": 1}), ("[1]", [1]), (" null ", None), ("7", 7)]
)
def test_json_is_read_where_the_job_asks_for_it(text: str, value: object) -> None:
    sample = make_sample(text, wants_json=True)
    assert sample["output_json"] == value and sample["output_text"] == text
    assert parse_errors_of(sample) == {} and parse_error_details(sample) == ""
    assert "output_json" not in make_sample(text)


@pytest.mark.parametrize("text", ["", "Paris", '{"a": 1', "NaN", "1e999", '{"a": 1} x'])
def test_a_text_that_is_no_json_is_an_error_where_the_job_asks_for_it(text: str) -> None:
    sample = make_sample(text, wants_json=True)
    assert "output_json" not in sample
    assert list(sample["parse_errors"]) == ["output_json"]
    assert "parse_errors" not in make_sample(text)


def test_a_call_needs_no_json_beside_it() -> None:
    sample = make_sample(CALL, tools=TOOLS, wants_json=True)
    assert sample["output_tools"] == CALLS and "output_json" not in sample
    assert "parse_errors" not in sample
    both = make_sample(CALL + '{"a": 1}', tools=TOOLS, wants_json=True)
    assert both["output_json"] == {"a": 1}
    neither = make_sample("<tool_call>", tools=TOOLS, wants_json=True)
    assert list(neither["parse_errors"]) == ["output_tools", "output_json"]
    assert parse_error_details(neither) == (
        "output_tools: tool call 1: it is cut off; "
        "output_json: not valid JSON: Expecting value at character 1"
    )
