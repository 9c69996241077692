"""The messages of a row, checked one by one."""

import json
from typing import Any

from rft.data.rows import RowError, kind
from rft.data.tools import check_tool_messages
from rft.types import Message

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_messages(messages: Any) -> tuple[Message, ...]:
    if isinstance(messages, str):
        remedy = "give a list of messages, or map the text with engine.data.fields.prompt"
        raise RowError("`messages` is text, not a list", remedy)
    if not isinstance(messages, list):
        raise RowError(f"`messages` is {kind(messages)}, not a list", "give a list of messages")
    if not messages:
        raise RowError("`messages` is empty", "give at least one user message")
    checked = tuple(_message(message, number) for number, message in enumerate(messages, 1))
    check_tool_messages(checked)
    last = checked[-1]
    if last["role"] not in ("user", "developer"):
        raise RowError(
            f"the last message is the {last['role']}'s",
            "end with the user's message: the model writes what follows",
            message=len(checked),
        )
    if not last["content"].strip():
        raise RowError("the last message is empty", "write the prompt", message=len(checked))
    return checked


def _message(message: Any, number: int) -> Message:
    """The message with its content as one text."""
    if not isinstance(message, dict):
        remedy = "write {role, content}"
        raise RowError(f"the message is {kind(message)}", remedy, message=number)
    if "role" not in message:
        raise RowError('the message is missing key "role"', "add it", message=number)
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        what = f"unknown role {json.dumps(role, default=str)[:40]}"
        raise RowError(what, f"legal: {', '.join(ROLES)}", message=number)
    content = message.get("content")
    if content is None:
        if role == "assistant" and message.get("tool_calls"):
            return {**message, "content": ""}
        raise RowError('the message is missing "content"', "add a text", message=number)
    return {**message, "content": _content(content, number)}


def _content(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        remedy = "give text, or a list of text parts"
        raise RowError(f"`content` is {kind(content)}", remedy, message=number)
    return "".join(_part(part, number) for part in content)


def _part(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("image_url", "input_image", "image", "input_audio", "audio", "file", "input_file"):
        what = f"content of type {kind} is not built yet"
        raise RowError(what, "keep to text", message=number, not_yet=True)
    text = part.get("text") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(text, str):
        return text
    remedy = 'a part is {"type": "text", "text": …}'
    raise RowError("a part of `content` is not text", remedy, message=number)
