"""Tools of a row and calls in its messages: legal forms, and every fault with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from rft.data import data_warnings, load_examples
from rft.errors import DataError
from rft.job import DataSettings
from rft.types import Example

NESTED = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
USER = {"role": "user", "content": "1+1?"}


def load(folder: Path, row: Any, **keys: Any) -> Example:
    (folder / "train.jsonl").write_text(json.dumps(row))
    settings = DataSettings.model_validate(keys)
    path = str(folder / "train.jsonl")
    (example,) = load_examples(path, settings, field="training_file", minimum=1)
    return example


def problem(folder: Path, row: Any) -> tuple[str, str]:
    with pytest.raises(DataError) as raised:
        load(folder, row)
    (found,) = raised.value.problems
    assert found.remedy
    return found.what, found.where.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (None, ()),
        ([], ()),
        ([NESTED], (NESTED,)),
        ([{"type": "function", **NESTED["function"]}], (NESTED,)),
        (
            [{"type": "function", "function": {"name": "a" * 64, "strict": True}}],
            ({"type": "function", "function": {"name": "a" * 64, "strict": True}},),
        ),
        # a table fills in what a struct lacks
        (
            [
                {
                    "type": "function",
                    "name": None,
                    "function": {**NESTED["function"], "strict": None},
                }
            ],
            (NESTED,),
        ),
    ],
)
def test_tools_come_in_the_nested_shape_and_the_item_as_given(
    tmp_path: Path, tools: Any, expected: tuple[Any, ...]
) -> None:
    example = load(tmp_path, {"messages": [USER], "tools": tools})
    assert example.tools == expected
    assert example.item["tools"] == tools


def test_a_column_may_hold_the_tools(tmp_path: Path) -> None:
    row = {"messages": [USER], "functions": [NESTED]}
    example = load(tmp_path, row, fields={"tools": "{{ functions }}"})
    assert example.tools == (NESTED,)


@pytest.mark.parametrize(
    ("tools", "what"),
    [
        ("[]", "`tools` is text, not a list"),
        ({}, "`tools` is an object, not a list"),
        ([3], "`tools[0]` is a number"),
        ([NESTED, {}], "`tools[1]` is of type null"),
        ([{"type": "web_search"}], '`tools[0]` is of type "web_search"'),
        ([{"type": "function"}], "`tools[0]` has no name"),
        ([{"type": "function", "function": []}], "`function` of `tools[0]` is a list"),
        ([{"type": "function", "function": {"name": 3}}], "`tools[0]` has no name"),
        ([{"type": "function", "name": ""}], "the name '' of `tools[0]` is not allowed"),
        ([{"type": "function", "name": "a b"}], "the name 'a b' of `tools[0]` is not allowed"),
        ([{"type": "function", "name": "é"}], "the name 'é' of `tools[0]` is not allowed"),
        ([{"type": "function", "name": "a\n"}], "the name 'a\\n' of `tools[0]` is not allowed"),
        (
            [{"type": "function", "name": "a" * 65}],
            f"the name '{'a' * 65}' of `tools[0]` is not allowed",
        ),
        (
            [NESTED, {"type": "function", "name": "add"}],
            "`tools[1]` has the name 'add' of `tools[0]`",
        ),
        (
            [{"type": "function", "name": "f", "parameters": []}],
            "`parameters` of `tools[0]` is a list",
        ),
        (
            [{"type": "function", "name": "f", "description": 3}],
            "`description` of `tools[0]` is a number",
        ),
        (
            [{"type": "function", "name": "f", "strict": "yes"}],
            "`strict` of `tools[0]` is text",
        ),
    ],
)
def test_bad_tools_are_told(tmp_path: Path, tools: Any, what: str) -> None:
    assert problem(tmp_path, {"messages": [USER], "tools": tools}) == (what, "train.jsonl:1")


def call(arguments: Any = "{}", call_id: Any = "a", **function: Any) -> dict[str, Any]:
    named = {"name": "add", "arguments": arguments, **function}
    return {"id": call_id, "type": "function", "function": named}


def asked(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(call_id: Any = "a") -> dict[str, Any]:
    return {"role": "tool", "content": "2", "tool_call_id": call_id}


@pytest.mark.parametrize(
    "history",
    [
        [asked(call())],
        [asked(call({"a": 1}))],
        [asked(call('{"a": 1}'), call(call_id="b")), result("b"), result("a")],
        [asked(call(call_id=None)), {"role": "tool", "content": "2"}],
        [asked(call()), result(), asked(call()), result(), {"role": "assistant", "content": "2"}],
        [{"role": "assistant", "content": "x", "tool_calls": None}],
    ],
)
def test_legal_calls(tmp_path: Path, history: list[Any]) -> None:
    messages = [USER, *history, USER]
    example = load(tmp_path, {"messages": messages, "tools": [NESTED]})
    assert len(example.messages) == len(messages)
    assert example.item["messages"] == messages


NEITHER = "the arguments of `tool_calls[0]` are neither an object nor a JSON text of one"


@pytest.mark.parametrize(
    ("history", "what", "message"),
    [
        ([{**USER, "tool_calls": [call()]}], "`tool_calls` in the user's message", 2),
        ([{"role": "assistant", "content": "x", "tool_calls": []}], "`tool_calls` is empty", 2),
        (
            [{"role": "assistant", "content": "x", "tool_calls": {}}],
            "`tool_calls` is an object",
            2,
        ),
        ([asked("add")], "`tool_calls[0]` is no call of a function", 2),
        ([asked({"id": "a"})], "`tool_calls[0]` is no call of a function", 2),
        (
            [asked(call(), {**call(), "type": "custom"})],
            "`tool_calls[1]` is no call of a function",
            2,
        ),
        ([asked(call(name=""))], "`tool_calls[0]` has no name", 2),
        ([asked(call(call_id=3))], "the id of `tool_calls[0]` is no text", 2),
        ([asked(call(None))], NEITHER, 2),
        ([asked(call("[1]"))], NEITHER, 2),
        ([asked(call("{'a': 1}"))], NEITHER, 2),
        ([asked(call("{} {}"))], NEITHER, 2),
        ([result()], "a tool's message that follows no call", 2),
        ([asked(call()), USER, result()], "a tool's message that follows no call", 4),
        (
            [asked(call()), result("b")],
            '`tool_call_id` "b" is of none of the calls before it',
            3,
        ),
        (
            [asked(call()), result(["a"])],
            '`tool_call_id` ["a"] is of none of the calls before it',
            3,
        ),
    ],
)
def test_bad_calls_are_told_with_their_message(
    tmp_path: Path, history: list[Any], what: str, message: int
) -> None:
    row = {"messages": [USER, *history, USER]}
    assert problem(tmp_path, row) == (what, f"train.jsonl:1 message {message}")


def test_the_same_prompt_with_other_tools_is_no_repetition(tmp_path: Path) -> None:
    plain = load(tmp_path, {"messages": [USER]})
    tooled = load(tmp_path, {"messages": [USER], "tools": [NESTED]})
    assert data_warnings([plain], [tooled]) == []
    assert len(data_warnings([tooled, tooled], [plain])) == 1
