"""Tools for a chat template that knows none: told in a message, called and answered in tags.

The form is that of Hermes, which many families are trained on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rft.types import Message, Tool

EXPLANATION = """\
# Tools

You may call these functions, given as one JSON object per line between <tools> and </tools>:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and its arguments between <tool_call> and </tool_call>, \
once for each call:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>"""
"""What the model is told; `{tools}` becomes the tools."""


def explain_tools(
    messages: Sequence[Message], tools: Sequence[Tool], has_system: bool
) -> list[Message]:
    """The conversation with the tools explained in its system message.

    Without one it gets one, or, where the template has no place for it, the user's first message begins
    with it.
    """
    text = EXPLANATION.format(tools="\n".join(_json(tool) for tool in tools))
    first = messages[0]
    if first["role"] in ("system", "developer"):
        return [with_content(first, _joined(first["content"], text)), *messages[1:]]
    if has_system:
        return [{"role": "system", "content": text}, *messages]
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    index = users[0] if users else len(messages) - 1
    user = with_content(messages[index], _joined(text, messages[index]["content"]))
    return [*messages[:index], user, *messages[index + 1 :]]


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation with calls in `<tool_call>` tags, and results in `<tool_response>` tags of a user's
    message; one that follows them joins it, so that user and assistant still take turns."""
    made: list[Message] = []
    runs = groupby(messages, key=lambda message: message["role"] == "tool")
    for is_results, run in runs:
        if is_results:
            content = "\n".join(_tagged("tool_response", result["content"]) for result in run)
            made.append({"role": "user", "content": content})
            continue
        first, *rest = map(_without_calls, run)
        if made and first["role"] == "user":
            made[-1] = with_content(made[-1], _joined(made[-1]["content"], first["content"]))
        else:
            made.append(first)
        made += rest
    return made


def with_arguments(messages: Sequence[Message], form: type) -> list[Message]:
    """The conversation with the arguments of its calls as objects (`dict`) or as JSON text (`str`)."""
    return [
        {**message, "tool_calls": [_with_arguments(call, form) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def with_content(message: Message, content: str) -> Message:
    return {**message, "content": content}


def _with_arguments(call: Mapping[str, Any], form: type) -> Mapping[str, Any]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, form):
        arguments = _json(arguments) if form is str else json.loads(arguments)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _without_calls(message: Message) -> Message:
    calls = message.get("tool_calls")
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    if not calls:
        return kept
    return with_content(kept, "\n".join(filter(None, [message["content"], *_call_texts(calls)])))


def _call_texts(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for call in calls:
        function = _with_arguments(call, dict)["function"]
        yield _tagged(
            "tool_call", _json({"name": function["name"], "arguments": function["arguments"]})
        )


def _tagged(tag: str, text: str) -> str:
    return f"<{tag}>\n{text}\n</{tag}>"


def _joined(first: str, second: str) -> str:
    return "\n\n".join(filter(None, [first, second]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
