"""The tools of a row, and the calls of tools in its messages, checked one by one."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rft.data.rows import RowError, kind
from rft.graders.strict_json import NotJson, read_json
from rft.types import Message, Tool

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
FUNCTION_KEYS = ("name", "description", "parameters", "strict")
SHAPE = '{"type": "function", "function": {"name": …, "parameters": {…}}}'


def check_tools(tools: Any) -> tuple[Tool, ...]:
    """The tools of a row, each in the nested shape of chat completions; raises RowError."""
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise RowError(f"`tools` is {kind(tools)}, not a list", f"give a list of {SHAPE}")
    checked = tuple(_tool(tool, f"`tools[{index}]`") for index, tool in enumerate(tools))
    places: dict[str, int] = {}
    for index, tool in enumerate(checked):
        name = tool["function"]["name"]
        if name in places:
            what = f"`tools[{index}]` has the name {name!r} of `tools[{places[name]}]`"
            raise RowError(what, "give each tool its own name")
        places[name] = index
    return checked


def _tool(tool: Any, place: str) -> Tool:
    if not isinstance(tool, dict):
        raise RowError(f"{place} is {kind(tool)}", f"write {SHAPE}")
    if tool.get("type") != "function":
        what = f"{place} is of type {json.dumps(tool.get('type'))[:40]}"
        raise RowError(what, 'only tools of type "function" are known')
    function = tool.get("function", tool)  # the flat shape has all keys beside `type`
    if not isinstance(function, dict):
        raise RowError(f"`function` of {place} is {kind(function)}", f"write {SHAPE}")
    _check_name(function.get("name"), place)
    for key, type_, words in (
        ("description", str, "text"),
        ("parameters", dict, "an object, a JSON schema"),
        ("strict", bool, "true or false"),
    ):
        value = function.get(key)
        if value is not None and not isinstance(value, type_):
            raise RowError(f"`{key}` of {place} is {kind(value)}", f"it must be {words}")
    known = {key: function[key] for key in FUNCTION_KEYS if function.get(key) is not None}
    return {"type": "function", "function": known}


def _check_name(name: Any, place: str) -> None:
    remedy = "a name is 1 to 64 of a-z, A-Z, 0-9, _ and -"
    if not isinstance(name, str):
        raise RowError(f"{place} has no name", remedy)
    if not NAME.fullmatch(name):
        raise RowError(f"the name {name[:80]!r} of {place} is not allowed", remedy)


def check_tool_messages(messages: Sequence[Message]) -> None:
    """Raises RowError for a call that is none, or a result of a tool that nobody called."""
    called: list[str] | None = None
    for number, message in enumerate(messages, 1):
        role, calls = message["role"], message.get("tool_calls")
        if calls is not None and role != "assistant":
            what = f"`tool_calls` in the {role}'s message"
            raise RowError(what, "only the assistant calls tools", message=number)
        if role != "tool":
            called = None if calls is None else _call_ids(calls, number)
            continue
        if called is None:
            remedy = "put it after the assistant's message with the `tool_calls`"
            raise RowError("a tool's message that follows no call", remedy, message=number)
        call_id = message.get("tool_call_id")
        if call_id is not None and call_id not in called:
            what = f"`tool_call_id` {json.dumps(call_id)[:40]} is of none of the calls before it"
            raise RowError(what, "write the `id` of the call", message=number)


def _call_ids(calls: Any, number: int) -> list[str]:
    if not isinstance(calls, list) or not calls:
        what = f"`tool_calls` is {'empty' if calls == [] else kind(calls)}"
        raise RowError(what, "give a list of calls, or leave it out", message=number)
    for index, call in enumerate(calls):
        _check_call(call, f"`tool_calls[{index}]`", number)
    return [call["id"] for call in calls if call.get("id") is not None]


def _check_call(call: Any, place: str, number: int) -> None:
    remedy = 'write {"id": …, "type": "function", "function": {"name": …, "arguments": "{…}"}}'
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise RowError(f"{place} is no call of a function", remedy, message=number)
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(f"{place} has no name", remedy, message=number)
    if not isinstance(call.get("id", ""), str | None):
        raise RowError(f"the id of {place} is no text", remedy, message=number)
    if not _is_object(function.get("arguments")):
        what = f"the arguments of {place} are neither an object nor a JSON text of one"
        raise RowError(what, remedy, message=number)


def _is_object(arguments: Any) -> bool:
    if not isinstance(arguments, str):
        return isinstance(arguments, Mapping)
    try:
        return isinstance(read_json(arguments), Mapping)
    except NotJson:
        return False
