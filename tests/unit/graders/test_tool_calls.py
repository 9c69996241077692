"""Tool calls as each family of models prints them, good and broken, and texts made to be slow."""

import json
import time
from typing import Any

import pytest

from rft.graders.tool_calls import parse_tool_calls

WEATHER = ("get_weather", {"city": "Paris"})
TIME = ("get_time", {"zone": "Europe/Paris", "seconds": True})

HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HERMES_TIME = (
    '<tool_call>\n{"name": "get_time", "arguments": {"zone": "Europe/Paris", "seconds": true}}\n'
    "</tool_call>"
)
XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
    "</tool_call>"
)
DEEPSEEK = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
JSON_WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
LLAMA_WEATHER = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
LLAMA_TIME = '{"name": "get_time", "parameters": {"zone": "Europe/Paris", "seconds": true}}'

GOOD: list[tuple[str, str, list[tuple[str, Any]], str]] = [
    # Hermes, Qwen 2.5 and 3, SmolLM
    ("hermes", HERMES, [WEATHER], ""),
    ("hermes in one line", f"<tool_call>{JSON_WEATHER}</tool_call>", [WEATHER], ""),
    ("hermes after words", f"Let me look.\n{HERMES}", [WEATHER], "Let me look."),
    ("hermes between words", f"First {HERMES} then.", [WEATHER], "First  then."),
    ("hermes in parallel", f"{HERMES}\n{HERMES_TIME}", [WEATHER, TIME], ""),
    ("hermes side by side", HERMES + HERMES_TIME, [WEATHER, TIME], ""),
    (
        "hermes with the mark in a text",
        '<tool_call>{"name": "say", "arguments": {"text": "</tool_call> <tool_call>"}}</tool_call>',
        [("say", {"text": "</tool_call> <tool_call>"})],
        "",
    ),
    (
        "hermes with arguments first",
        '<tool_call>{"arguments": {"name": "John"}, "name": "get_age"}</tool_call>',
        [("get_age", {"name": "John"})],
        "",
    ),
    ("hermes without arguments", '<tool_call>{"name": "now"}</tool_call>', [("now", {})], ""),
    (
        "hermes with parameters",
        '<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>',
        [("f", {})],
        "",
    ),
    (
        "granite 4, arguments as text",
        '<tool_call>\n{"name": "f", "arguments": "{\\"p\\": \\"q\\"}"}\n</tool_call>',
        [("f", {"p": "q"})],
        "",
    ),
    (
        "hermes with nested values",
        '<tool_call>{"name": "f", "arguments": {"a": [1, 2.5, null], "o": {"é": "ü"}}}</tool_call>',
        [("f", {"a": [1, 2.5, None], "o": {"é": "ü"}})],
        "",
    ),
    (
        "smollm2, a list",
        f"<tool_call>[{JSON_WEATHER}]</tool_call>",
        [WEATHER],
        "",
    ),
    (
        "smollm2, a list of two",
        f'<tool_call>[{JSON_WEATHER}, {{"name": "now", "arguments": {{}}}}]</tool_call>',
        [WEATHER, ("now", {})],
        "",
    ),
    # Qwen3-Coder, Qwen 3.5, Nemotron 3
    ("qwen3-coder", XML, [WEATHER], ""),
    (
        "qwen3-coder in one line",
        "<tool_call><function=get_weather><parameter=city>Paris</parameter></function></tool_call>",
        [WEATHER],
        "",
    ),
    ("qwen3-coder after words", f"I will look it up.\n\n{XML}", [WEATHER], "I will look it up."),
    ("qwen3-coder in parallel", f"{XML}\n{XML}", [WEATHER, WEATHER], ""),
    (
        "qwen3-coder without parameters",
        "<tool_call>\n<function=refresh>\n</function>\n</tool_call>",
        [("refresh", {})],
        "",
    ),
    (
        "qwen3-coder with lines, quotes and tags in a value",
        "<tool_call>\n<function=write>\n<parameter=text>\na <b>\n\n\"c\" {d}\\n\n</parameter>\n"
        "</function>\n</tool_call>",
        [("write", {"text": 'a <b>\n\n"c" {d}\\n'})],
        "",
    ),
    (
        "qwen3-coder without the opening mark",
        XML.removeprefix("<tool_call>\n"),
        [WEATHER],
        "",
    ),
    (
        "llama 3.1, the older form",
        '<function=get_weather>{"city": "Paris"}</function>',
        [WEATHER],
        "",
    ),
    # Mistral
    ("mistral 7b", f"[TOOL_CALLS] [{JSON_WEATHER}]", [WEATHER], ""),
    ("mistral nemo", f"[TOOL_CALLS][{JSON_WEATHER}]", [WEATHER], ""),
    (
        "mistral in parallel",
        f'[TOOL_CALLS] [{JSON_WEATHER}, {{"name": "add", "arguments": {{"a": 3.5, "b": 4}}}}]',
        [WEATHER, ("add", {"a": 3.5, "b": 4})],
        "",
    ),
    ("mistral after words", f"Hello[TOOL_CALLS] [{JSON_WEATHER}]", [WEATHER], "Hello"),
    ("mistral before words", f"[TOOL_CALLS] [{JSON_WEATHER}]\nMore.", [WEATHER], "More."),
    ("mistral small 3.1", '[TOOL_CALLS]get_weather{"city": "Paris"}', [WEATHER], ""),
    ("mistral small 3.2", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', [WEATHER], ""),
    (
        "magistral in parallel",
        'Two.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}',
        [WEATHER, ("now", {})],
        "Two.",
    ),
    # Llama 3
    ("llama 3.1", f"<|python_tag|>{LLAMA_WEATHER}", [WEATHER], ""),
    ("llama 3.1 by semicolons", f"<|python_tag|>{LLAMA_WEATHER}; {LLAMA_TIME}", [WEATHER, TIME], ""),
    ("llama 3.1 by lines", f"<|python_tag|>{LLAMA_WEATHER}\n{LLAMA_TIME}", [WEATHER, TIME], ""),
    (
        "llama 3.1 by tags",
        f"<|python_tag|>{LLAMA_WEATHER}<|python_tag|>{LLAMA_TIME};",
        [WEATHER, TIME],
        "",
    ),
    ("llama 3.1 and words", f"Now: <|python_tag|>{LLAMA_WEATHER} OK", [WEATHER], "Now:  OK"),
    ("llama 3.2 without a tag", LLAMA_WEATHER, [WEATHER], ""),
    ("llama 3.2 in parallel", f"{LLAMA_WEATHER}; {LLAMA_TIME}", [WEATHER, TIME], ""),
    (
        "llama 3.1, its own type",
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}',
        [WEATHER],
        "",
    ),
    # Granite 3, Phi-4
    ("granite 3", f"<|tool_call|>[{JSON_WEATHER}]", [WEATHER], ""),
    ("phi-4 mini", f"<|tool_call|>[{JSON_WEATHER}]<|/tool_call|>", [WEATHER], ""),
    # DeepSeek
    ("deepseek v3", DEEPSEEK, [WEATHER], ""),
    (
        "deepseek v3.1 in parallel",
        'Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}'
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [WEATHER, ("now", {})],
        "Let me see.",
    ),
    # no marker: nothing but JSON, or one fence
    ("json", f" {JSON_WEATHER}\n", [WEATHER], ""),
    ("json list", f"[{JSON_WEATHER}]", [WEATHER], ""),
    ("json fence", f"```json\n{JSON_WEATHER}\n```", [WEATHER], ""),
    ("fence among words", f"I call:\n```json\n{JSON_WEATHER}\n```\nDone.", [WEATHER], "I call:\n\nDone."),
    ("fence without a word", f"```\n[{JSON_WEATHER}]\n```", [WEATHER], ""),
    ("product's function", f'{{"type": "function", "function": {JSON_WEATHER}}}', [WEATHER], ""),
    (
        "product's message",
        f'{{"tool_calls": [{{"type": "function", "function": {JSON_WEATHER}}}]}}',
        [WEATHER],
        "",
    ),
]  # fmt: skip

BROKEN: list[tuple[str, str, str]] = [
    ("cut off", '<tool_call>\n{"name": "get_weather", "argum', "not valid JSON"),
    ("cut off at once", "Sure.\n<tool_call>", "it is cut off"),
    ("not closed", HERMES.removesuffix("</tool_call>"), "</tool_call> is missing"),
    ("one brace too few", '<tool_call>{"name": "f", "arguments": {}</tool_call>', "not valid JSON"),
    ("one brace too many", HERMES.replace("}}", "}}}"), "</tool_call> is missing"),
    ("single quotes", "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", "not valid JSON"),
    ("words", "<tool_call>get_weather(Paris)</tool_call>", "not valid JSON"),
    ("no name", '<tool_call>{"arguments": {}}</tool_call>', "it has no name"),
    ("an empty name", '<tool_call>{"name": " ", "arguments": {}}</tool_call>', "it has no name"),
    ("a number for a name", '<tool_call>{"name": 3, "arguments": {}}</tool_call>', "it has no name"),
    (
        "a list of arguments",
        '<tool_call>{"name": "f", "arguments": ["Paris"]}</tool_call>',
        "its arguments are not an object",
    ),
    (
        "a word for arguments",
        '<tool_call>{"name": "f", "arguments": "Paris"}</tool_call>',
        "its arguments are not an object",
    ),
    (
        "null for arguments",
        '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        "its arguments are not an object",
    ),
    (
        "a key twice",
        '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>',
        "a key stands twice",
    ),
    ("NaN", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', "NaN is not JSON"),
    ("too large", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>', "too large"),
    (
        "half a character",
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        "half a surrogate pair",
    ),
    ("no object", "<tool_call>[1]</tool_call>", "it is no object"),
    ("an empty list", "<tool_call>[]</tool_call>", "the list of calls is empty"),
    ("the second one", HERMES + '\n<tool_call>{"name": ', "tool call 2: not valid JSON"),
    ("xml not closed", XML.removesuffix("\n</tool_call>"), "</tool_call> is missing"),
    ("xml function not closed", XML.replace("</function>", ""), "</function> is missing"),
    ("xml parameter not closed", XML.replace("</parameter>", ""), "</parameter> is missing"),
    ("xml without a name", "<tool_call><function=></function></tool_call>", "it has no name"),
    ("xml name cut off", "<tool_call>\n<function=get_wea", "> is missing"),
    (
        "xml parameter twice",
        "<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>",
        "a parameter is given twice",
    ),
    ("mistral cut off", '[TOOL_CALLS] [{"name": "f", "argu', "not valid JSON"),
    ("mistral without arguments", "[TOOL_CALLS]get_weather", "it is cut off"),
    ("mistral without a name", "[TOOL_CALLS][ARGS]{}", "not valid JSON"),
    ("mistral with nothing", "[TOOL_CALLS]", "it has no name"),
    ("llama's own tools", '<|python_tag|>brave_search.call(query="x")', "not valid JSON"),
    ("llama cut off", f'<|python_tag|>{LLAMA_WEATHER}; {{"name"', "tool call 2: not valid JSON"),
    ("deepseek cut off", DEEPSEEK[:-20], "is missing"),
    ("deepseek bad arguments", DEEPSEEK.replace("}", ""), "not valid JSON"),
    ("deepseek without a call", "<｜tool▁calls▁begin｜>function<｜tool▁calls▁end｜>", "is missing"),
    ("json with a bad name", '{"name": 1, "arguments": {}}', "it has no name"),
    ("json with bad arguments", '[{"name": "f", "arguments": 1}]', "not an object"),
    ("json with a key twice", '{"name": "f", "name": "g", "arguments": {}}', "a key stands twice"),
]  # fmt: skip

TEXTS = [
    "",
    "Paris",
    "It is 20 °C.\n\n- a\n- b",
    "{",
    "[1, 2]",
    "[]",
    "{}",
    '{"city": "Paris"}',
    '{"name": "Paris"}',
    '{"name": "f", "parameters": {invalid json}',
    f"{JSON_WEATHER} and more",
    f"See: {JSON_WEATHER}",
    "```python\nprint(1)\n```",
    '```json\n{"a": 1}\n```',
    f"```json\n{JSON_WEATHER}",
    f"```json\n{JSON_WEATHER}\n```\n```json\n{JSON_WEATHER}\n```",
    '{"tool_calls": []}',
    '{"tool_calls": null, "content": "x"}',
    "</tool_call>",
    "[ARGS]{}",
    "the <tool> is called",
]


def found(text: str) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in parse_tool_calls(text).calls]
    return [(function["name"], json.loads(function["arguments"])) for function in calls]


@pytest.mark.parametrize(
    ("text", "calls", "content"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD]
)
def test_what_a_family_prints(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse_tool_calls(text)
    assert parsed.error is None
    assert found(text) == calls
    assert parsed.content == content
    assert [call["type"] for call in parsed.calls] == ["function"] * len(calls)
    assert [call["id"] for call in parsed.calls] == [f"call_{n}" for n in range(len(calls))]


@pytest.mark.parametrize(
    ("text", "error"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_what_is_broken_is_told_and_the_text_kept(text: str, error: str) -> None:
    parsed = parse_tool_calls(text)
    assert parsed.error is not None and error in parsed.error
    assert parsed.error.startswith("tool call ") and "\n" not in parsed.error
    assert (parsed.calls, parsed.content) == ((), text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_without_calls_is_no_error(text: str) -> None:
    parsed = parse_tool_calls(text)
    assert (parsed.calls, parsed.content, parsed.error) == ((), text, None)


def test_a_call_has_the_shape_of_the_product() -> None:
    text = '<tool_call>{"name": "f",  "arguments": {"b":"é",   "a":1.0}}</tool_call>'
    (call,) = parse_tool_calls(text).calls
    function = {"name": "f", "arguments": '{"b": "é", "a": 1.0}'}
    assert call == {"id": "call_0", "type": "function", "function": function}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "VvvODy9mT"}]', ["VvvODy9mT"]),
        (
            "[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{}[TOOL_CALLS]g[ARGS]{}",
            ["a1b2c3d4e", "call_1"],
        ),
        ('{"id": "x", "function": {"name": "f", "arguments": "{}"}}', ["x"]),
        ('{"id": 3, "name": "f", "arguments": {}}', ["call_0"]),
    ],
)
def test_an_id_of_the_models_own_is_kept(text: str, ids: list[str]) -> None:
    assert [call["id"] for call in parse_tool_calls(text).calls] == ids


PROPERTIES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "ratio": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array"},
    "object": {"type": "object"},
    "perhaps": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "either": {"type": ["string", "integer"]},
    "free": {},
    "odd": 3,
}
TYPED = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}},
}


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("text", "42", "42"),
        ("count", "42", 42),
        ("count", "\n42\n", 42),
        ("count", "many", "many"),
        ("count", "4 2", "4 2"),
        ("ratio", "0.5", 0.5),
        ("ratio", "NaN", "NaN"),
        ("flag", "true", True),
        ("flag", "True", "True"),
        ("list", '["a", 1]', ["a", 1]),
        ("object", '{"a": {"b": null}}', {"a": {"b": None}}),
        ("perhaps", "null", None),
        ("perhaps", "7", 7),
        ("either", "7", "7"),
        ("free", "7", "7"),
        ("odd", "7", "7"),
        ("unknown", "7", "7"),
    ],
)
def test_a_value_without_quotes_has_the_type_of_its_schema(
    key: str, written: str, value: Any
) -> None:
    text = f"<tool_call><function=f><parameter={key}>{written}</parameter></function></tool_call>"
    (call,) = parse_tool_calls(text, [TYPED]).calls
    assert json.loads(call["function"]["arguments"]) == {key: value}
    assert found(text) == [("f", {key: written.strip("\n")})]


SIZE = 300_000
HOSTILE = {
    "opened again and again": "<tool_call>" * (SIZE // 11),
    "opened with braces": '<tool_call>{"a":' * (SIZE // 16),
    "many calls": '<tool_call>{"name":"f","arguments":{}}</tool_call>' * (SIZE // 50),
    "many functions": "<function=f></function>" * (SIZE // 23),
    "many parameters": "<function=f>" + "<parameter=a" * (SIZE // 12),
    "many marks of mistral": "[TOOL_CALLS]" * (SIZE // 12),
    "names of mistral": "[TOOL_CALLS]f" * (SIZE // 13),
    "blanks of mistral": "[TOOL_CALLS]" + " " * SIZE,
    "many tags": "<|python_tag|>" * (SIZE // 14),
    "semicolons": "<|python_tag|>{}" + ";" * SIZE,
    "many bars": "<|tool_call|>[]" * (SIZE // 15),
    "many marks of deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>" * (SIZE // 38),
    "deep": "<tool_call>" + "[" * SIZE,
    "deep objects": "<tool_call>" + '{"a":' * (SIZE // 5),
    "deep without a mark": "[" * SIZE + "]" * SIZE,
    "deep but closed": '<tool_call>{"name":"f","arguments":{"a":' + "[" * 900 + "]" * 900 + "}}",
    "deep arguments alone": '{"name":"f","arguments":{"a":' + "[" * 900 + "]" * 900 + "}}",
    "a long number": '<tool_call>{"name":"f","arguments":{"a":' + "9" * SIZE + "}}</tool_call>",
    "a long number alone": '{"name":"f","arguments":{"a":' + "9" * SIZE + "}}",
    "a long text": '<tool_call>{"name":"' + "x" * SIZE,
    "objects": "{}" * (SIZE // 2),
    "many objects": '{"name":"f","arguments":{}};' * (SIZE // 28),
    "fences": "```json\n" * (SIZE // 8),
    "backticks": "`" * SIZE,
    "fences and blanks": "``` " * (SIZE // 4),
    "escapes": '<tool_call>"' + "\\u" * (SIZE // 2),
    "lines": "\n" * SIZE,
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_is_slow_or_raises(text: str) -> None:
    began = time.process_time()
    parse_tool_calls(text, [TYPED])
    assert time.process_time() - began < 2  # a pass takes hundredths, a quadratic one minutes


def test_ids_are_never_shared() -> None:
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "call_1"}, {"name": "g", "arguments": {}}]'
    ids = [call["id"] for call in parse_tool_calls(text).calls]
    assert ids[0] == "call_1" and len(set(ids)) == 2
