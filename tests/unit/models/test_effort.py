"""What a reasoning effort comes to under templates of several families."""

import pytest

from rft.models.effort import effort_kwargs, effort_words

GPT_OSS = (
    '{%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}'
)
QWEN = (
    "{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{%- endif %}"
)
GRANITE = "{%- if thinking %}Think first.{%- endif %}"
PLAIN = "{{ messages[0].thinking }} reasoning_effort {{ 'enable_thinking' }}"


@pytest.mark.parametrize(
    ("template", "effort", "expected"),
    [
        (GPT_OSS, "low", {"reasoning_effort": "low"}),
        (GPT_OSS, "default", {}),
        (GPT_OSS + QWEN, "high", {"reasoning_effort": "high"}),
        (QWEN, "low", {"enable_thinking": False}),
        (QWEN, "medium", {"enable_thinking": True}),
        (QWEN, "default", {}),
        (GRANITE, "high", {"thinking": True}),
        (PLAIN, "high", {}),
        ("{{- '<|system|>You are a deep thinking assistant.' }}", "high", {}),
        ("{%- set thinking = false %}", "high", {}),
    ],
)
def test_the_template_says_what_it_offers(template: str, effort: str, expected: dict) -> None:
    assert effort_kwargs(template, effort) == expected


def test_words() -> None:
    assert effort_words("low", {"enable_thinking": False}, 128) == (
        "reasoning_effort low: the chat template gets enable_thinking: false; "
        "completions are cut at 128 tokens"
    )
    assert "offers nothing for it" in effort_words("high", {}, 512)
