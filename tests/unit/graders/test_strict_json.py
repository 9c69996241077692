"""What is JSON for a grader, and what is not."""

from typing import Any

import pytest

from rft.graders.strict_json import NotJson, read_json, read_json_at


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, null, true, "é"]}', {"a": [1, 2.5, None, True, "é"]}),
        (" \n7\t", 7),
        ('"x"', "x"),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('"\\ud83d\\ude00"', "😀"),
        ("-" + "9" * 299, -int("9" * 299)),
        ("[" * 64 + "]" * 64, None),
    ],
)
def test_json(text: str, value: Any) -> None:
    found = read_json(text)
    assert value is None or found == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not valid JSON: Expecting value at character 1"),
        ("Paris", "not valid JSON: Expecting value at character 1"),
        ('{"a": 1', "not valid JSON: Expecting ',' delimiter at character 8"),
        ("{} x", "text after the JSON at character 4"),
        ("{}{}", "text after the JSON at character 3"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "the number 1e999 is too large"),
        ("9" * 301, "a number has 301 digits"),
        ("9" * 100_000, "a number has 100000 digits"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('"\\ud800"', "a text holds half a surrogate pair"),
        ('{"\\udc00": 1}', "a text holds half a surrogate pair"),
    ],
)
def test_no_json(text: str, why: str) -> None:
    with pytest.raises(NotJson) as raised:
        read_json(text)
    assert str(raised.value) == why


def test_a_value_in_a_text_ends_where_it_ends() -> None:
    assert read_json_at('x {"a": "}"} y', 1) == ({"a": "}"}, 12)
    with pytest.raises(NotJson, match="a key stands twice"):
        read_json_at('{"a": {"b": 1, "b": 1}}', 0)
