"""`reasoning_effort` → what a chat template offers for it."""

import re
from collections.abc import Mapping
from typing import Any

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates have a model think or not (Qwen 3, SmolLM 3; Granite, DeepSeek)."""


def effort_kwargs(template: str, effort: str) -> dict[str, Any]:
    """The template's variables for an effort: `reasoning_effort` itself where the template reads it, else its
    switch, off at `low`; none at `default`, or where it offers neither."""
    if effort == "default":
        return {}
    if _reads(template, "reasoning_effort"):
        return {"reasoning_effort": effort}
    switch = next((name for name in SWITCHES if _reads(template, name)), None)
    return {switch: effort != "low"} if switch else {}


def effort_words(effort: str, kwargs: Mapping[str, Any], max_completion_tokens: int) -> str:
    """What an effort comes to, for a person."""
    limit = f"completions are cut at {max_completion_tokens} tokens"
    if not kwargs:
        return f"reasoning_effort {effort}: the chat template offers nothing for it; {limit}"
    settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in kwargs.items())
    return f"reasoning_effort {effort}: the chat template gets {settings}; {limit}"


def _reads(template: str, variable: str) -> bool:
    """Whether a tag of the template reads a variable: more than texts in it and assignments name it."""
    tags = re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL)
    bare = [re.sub(r"'[^']*'|\"[^\"]*\"", "''", tag) for tag in tags]
    return any(re.search(rf"(?<![\w.])(?<!set ){variable}(?!\w)", tag) for tag in bare)
