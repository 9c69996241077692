"""The tool calls in what a model wrote, as its family marks them.

| family | what it writes |
|---|---|
| Hermes, Qwen, SmolLM | `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, or a list of such objects |
| Qwen3-Coder | `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>` |
| Llama 3.1, the older form | `<function=name>{…}</function>` |
| Mistral | `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}` |
| Llama 3 | `<|python_tag|>{"name": …, "parameters": {…}}; …` |
| Granite, Phi-4 | `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>` |
| DeepSeek V3 | `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name …<｜tool▁call▁end｜>…` |
| others | nothing but such JSON, or one fence with it |

The first marker in the text decides. Each reader goes through the text once, from left to right.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rft.graders.strict_json import NotJson, read_json_at, skip_blanks
from rft.types import Tool

ToolCall = Mapping[str, Any]
"""As in chat completions: id, type, function with name and arguments, a JSON text."""

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
PYTHON_TAG = "<|python_tag|>"
BAR_OPEN, BAR_CLOSE = "<|tool_call|>", "<|/tool_call|>"
MISTRAL, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
DEEPSEEK, DEEPSEEK_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEPSEEK_CALL, DEEPSEEK_SEP = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
DEEPSEEK_CALL_END = "<｜tool▁call▁end｜>"

BARE_NAME = re.compile(r"\s*([\w.:/-]+)\s*")
FENCE = re.compile(r"```(?:json|tool_call|tool_code)?[ \t]*\n")
FENCE_END = "```"
ARGUMENT_KEYS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class ParsedCalls:
    """What a text says beside its tool calls, and the calls."""

    calls: tuple[ToolCall, ...]
    """In the order of the text; none when there are none or one of them is malformed."""
    content: str
    """The text outside the calls, without blanks around it; the whole text when there are no calls."""
    error: str | None = None
    """Why the calls cannot be read; None for a text without any."""


class Malformed(ValueError):
    """A tool call that cannot be read; says why in a few words."""


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


Pieces = Iterator[str | _Call]
"""The text outside the calls, and the calls, in order; ends with Malformed at the first bad one."""


def parse_tool_calls(text: str, tools: Sequence[Tool] = ()) -> ParsedCalls:
    """The tool calls of a completion; never raises, and takes time linear in the text.

    `tools` give the types of arguments that a family writes without quotes, as Qwen3-Coder does.
    """
    found = FIRST_MARKER.search(text)
    pieces = READERS[found[0]](text, tools) if found else _unmarked(text)
    calls: list[_Call] = []
    outside: list[str] = []
    try:
        for piece in pieces:
            if isinstance(piece, str):
                outside.append(piece)
            else:
                calls.append(piece)
    except (Malformed, NotJson) as error:
        return ParsedCalls((), text, f"tool call {len(calls) + 1}: {error}")
    if not calls:
        return ParsedCalls((), text)
    own = {call.id for call in calls if call.id}
    made = tuple(
        _in_product_shape(call, call.id or _free_id(number, own))
        for number, call in enumerate(calls)
    )
    return ParsedCalls(made, "".join(outside).strip())


def _free_id(number: int, taken: Collection[str]) -> str:
    """`call_N` of the call at that place; with another N where a model gave that id to another call."""
    plain = f"call_{number}"
    return plain if plain not in taken else f"call_{number}_{len(taken)}"


def _in_product_shape(call: _Call, call_id: str) -> ToolCall:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _tagged(text: str, tools: Sequence[Tool]) -> Pieces:
    """`<tool_call>` blocks, and `<function=…>` with or without one around it."""
    position = 0
    while found := BLOCK.search(text, position):
        yield text[position : found.start()]
        position = found.end()
        if found[0] == FUNCTION:
            call, position = _function(text, position, tools)
            yield call
            if text.startswith(CLOSE, inside := skip_blanks(text, position)):
                position = inside + len(CLOSE)  # some models leave the opening mark out
            continue
        inside = skip_blanks(text, position)
        if text.startswith(FUNCTION, inside):
            call, position = _function(text, inside + len(FUNCTION), tools)
            yield call
        else:
            value, position = _json_at(text, inside)
            yield from _calls(value)
        position = _closed(text, position, CLOSE)
    yield text[position:]


def _function(text: str, start: int, tools: Sequence[Tool]) -> tuple[_Call, int]:
    """The call whose name begins at `start`, and where it ends."""
    name, position = _until(text, start, ">")
    name = name.strip()
    if not name:
        raise Malformed("it has no name")
    inside = skip_blanks(text, position)
    if text.startswith("{", inside):
        value, position = _json_at(text, inside)
        return _Call(name, _object(value)), _closed(text, position, END_FUNCTION)
    arguments: dict[str, Any] = {}
    while text.startswith(PARAMETER, inside := skip_blanks(text, position)):
        key, position = _until(text, inside + len(PARAMETER), ">")
        value, position = _until(text, position, END_PARAMETER)
        if key.strip() in arguments:
            raise Malformed("a parameter is given twice")
        arguments[key.strip()] = _typed(value, _schema_of(tools, name, key.strip()))
    return _Call(name, arguments), _closed(text, position, END_FUNCTION)


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """A value written without quotes: a text, or what its schema says it is, if it reads as that."""
    text = text.removeprefix("\n").removesuffix("\n")
    options = [schema, *(_list(schema.get("anyOf")) or _list(schema.get("oneOf")))]
    types = [option.get("type") for option in options if isinstance(option, Mapping)]
    names = {name for kind in types for name in (kind if isinstance(kind, list) else [kind])}
    if "string" in names or names <= {None}:
        return text
    try:
        value, end = read_json_at(text, 0)
    except NotJson:
        return text
    return value if skip_blanks(text, end) == len(text) else text


def _schema_of(tools: Sequence[Tool], name: str, parameter: str) -> Mapping[str, Any]:
    for tool in tools:
        if tool["function"]["name"] == name:
            parameters = tool["function"].get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            schema = properties.get(parameter) if isinstance(properties, Mapping) else None
            return schema if isinstance(schema, Mapping) else {}
    return {}


def _mistral(text: str, tools: Sequence[Tool]) -> Pieces:
    """A list of calls behind the marker, or a name and arguments behind each marker."""
    position = 0
    while (start := text.find(MISTRAL, position)) >= 0:
        yield text[position:start]
        position = skip_blanks(text, start + len(MISTRAL))
        if text.startswith(("[", "{"), position):
            value, position = _json_at(text, position)
            yield from _calls(value)
            continue
        name, position = _bare_name(text, position)
        call_id = None
        if text.startswith(CALL_ID, position):
            call_id, position = _bare_name(text, position + len(CALL_ID))
        if text.startswith(ARGS, position):
            position += len(ARGS)
        value, position = _json_at(text, position)
        yield _Call(name, _object(value), call_id)
    yield text[position:]


def _python_tag(text: str, tools: Sequence[Tool]) -> Pieces:
    """Objects behind the marker, between them `;` or blanks; what follows the last is text."""
    position = text.find(PYTHON_TAG)
    yield text[:position]
    position += len(PYTHON_TAG)
    while True:
        value, position = _json_at(text, position)
        yield from _calls(value)
        following = skip_blanks(text, position)
        if text.startswith(PYTHON_TAG, following):
            position = following + len(PYTHON_TAG)
        elif text.startswith(";", following):
            position = following + 1
            if skip_blanks(text, position) == len(text):
                return
        elif not text.startswith(("{", "["), following):
            break
    yield text[position:]


def _barred(text: str, tools: Sequence[Tool]) -> Pieces:
    """`<|tool_call|>` and a list, closed by Phi-4 and left open by Granite."""
    position = 0
    while (start := text.find(BAR_OPEN, position)) >= 0:
        yield text[position:start]
        value, position = _json_at(text, start + len(BAR_OPEN))
        yield from _calls(value)
        if text.startswith(BAR_CLOSE, inside := skip_blanks(text, position)):
            position = inside + len(BAR_CLOSE)
    yield text[position:]


def _deepseek(text: str, tools: Sequence[Tool]) -> Pieces:
    """V3 writes `function`, the name and a fence with the arguments; V3.1 the name and the arguments."""
    position = text.find(DEEPSEEK)
    yield text[:position]
    position = skip_blanks(text, position + len(DEEPSEEK))
    while text.startswith(DEEPSEEK_CALL, position):
        name, position = _until(text, position + len(DEEPSEEK_CALL), DEEPSEEK_SEP)
        if name.strip() == "function" and (named := BARE_NAME.match(text, position)):
            name, position = named[1], named.end()
        fence = FENCE.match(text, position)
        value, position = _json_at(text, fence.end() if fence else position)
        if not name.strip():
            raise Malformed("it has no name")
        yield _Call(name.strip(), _object(value))
        if fence:
            position = _closed(text, position, FENCE_END)
        position = skip_blanks(text, _closed(text, position, DEEPSEEK_CALL_END))
    yield text[_closed(text, position, DEEPSEEK_END) :]


def _unmarked(text: str) -> Pieces:
    """Calls that stand alone, or in the text's only fence; all else is text and no error."""
    start, end = 0, len(text)
    if fence := FENCE.search(text):
        start, end = fence.end(), text.find(FENCE_END, fence.end())
        if end < 0 or text.find(FENCE_END, end + len(FENCE_END)) >= 0:
            return
        yield text[: fence.start()]
    body = text[start:end]
    values = _alone(body)
    if not values or not all(map(_looks_like_calls, values)):
        return
    position = 0
    for _ in values:  # read again, now that they are calls: no key may stand twice
        value, position = read_json_at(body, position)
        yield from _calls(value)
        position = _skip_separator(body, position)
    if fence:
        yield text[end + len(FENCE_END) :]


def _alone(body: str) -> list[Any]:
    """The JSON values that a text is made of, with `;` or blanks between them; empty if it is not."""
    values: list[Any] = []
    position = skip_blanks(body, 0)
    while text_is_left := position < len(body):
        if not body.startswith(("{", "["), position):
            break
        try:
            value, position = PLAIN.raw_decode(body, position)
        except (ValueError, RecursionError):
            break
        values.append(value)
        position = _skip_separator(body, position)
    return [] if text_is_left else values


def _skip_separator(text: str, position: int) -> int:
    position = skip_blanks(text, position)
    return skip_blanks(text, position + 1) if text.startswith(";", position) else position


def _looks_like_calls(value: Any) -> bool:
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list):
        return bool(value) and all(map(_looks_like_call, value))
    return _looks_like_call(value)


def _looks_like_call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function")
    inner = function if isinstance(function, dict) else value
    return "name" in inner and any(key in inner for key in ARGUMENT_KEYS)


def _calls(value: Any) -> Iterator[_Call]:
    """The calls that a JSON value describes."""
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if value == []:
        raise Malformed("the list of calls is empty")
    yield from map(_call, value if isinstance(value, list) else [value])


def _call(value: Any) -> _Call:
    if not isinstance(value, dict):
        raise Malformed("it is no object with a name and arguments")
    function = value.get("function")
    inner = function if isinstance(function, dict) else value
    name, call_id = inner.get("name"), value.get("id")
    if not isinstance(name, str) or not name.strip():
        raise Malformed("it has no name")
    arguments: Any = next((inner[key] for key in ARGUMENT_KEYS if key in inner), {})
    own_id = call_id if isinstance(call_id, str) and call_id else None
    return _Call(name, _object(arguments), own_id)


def _object(value: Any) -> Mapping[str, Any]:
    """Arguments: an object, or a text that holds one."""
    if isinstance(value, str):
        try:
            inner, end = read_json_at(value, 0)
        except NotJson:
            inner, end = None, 0
        value = inner if skip_blanks(value, end) == len(value) else None
    if not isinstance(value, dict):
        raise Malformed("its arguments are not an object")
    return value


def _json_at(text: str, start: int) -> tuple[Any, int]:
    if skip_blanks(text, start) == len(text):
        raise Malformed("it is cut off")
    return read_json_at(text, start)


def _bare_name(text: str, start: int) -> tuple[str, int]:
    found = BARE_NAME.match(text, start)
    if found is None:
        raise Malformed("it has no name")
    return found[1], found.end()


def _until(text: str, start: int, mark: str) -> tuple[str, int]:
    """The text before the next mark, and where that ends."""
    end = text.find(mark, start)
    if end < 0:
        raise Malformed(f"{mark} is missing")
    return text[start:end], end + len(mark)


def _closed(text: str, start: int, mark: str) -> int:
    """Where the mark ends that stands at `start` after blanks."""
    position = skip_blanks(text, start)
    if not text.startswith(mark, position):
        raise Malformed(f"{mark} is missing")
    return position + len(mark)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


READERS: Mapping[str, Callable[[str, Sequence[Tool]], Pieces]] = {
    OPEN: _tagged,
    FUNCTION: _tagged,
    MISTRAL: _mistral,
    PYTHON_TAG: _python_tag,
    BAR_OPEN: _barred,
    DEEPSEEK: _deepseek,
}
FIRST_MARKER = re.compile("|".join(map(re.escape, READERS)))
BLOCK = re.compile(f"{re.escape(OPEN)}|{re.escape(FUNCTION)}")
PLAIN = json.JSONDecoder()
