"""YAML and JSON text → values and places."""

import json

import pytest

from rft.job.marked import read_marked
from rft.job.values import MAX_DEPTH, MAX_VALUES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("3.", 3.0),
        ("-2", -2),
        ("+2", 2),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("yes", "yes"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("0o10", "0o10"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ('"8"', "8"),
        ("'true'", "true"),
        ("!!str 5", "5"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_marked(f"key: {text}", "f")
    assert read.faults == ()
    assert read.value == {"key": value} and type(read.value["key"]) is type(value)


def test_every_key_and_value_has_its_line_and_column() -> None:
    read = read_marked("a:\n  - x\n  - {b: 1}\n", "f")
    assert {path: str(place) for path, place in read.keys.items()} == {
        ("a",): "f:1:1",
        ("a", 1, "b"): "f:3:6",
    }
    assert {path: str(place) for path, place in read.values.items()} == {
        (): "f:1:1",
        ("a",): "f:2:3",
        ("a", 0): "f:2:5",
        ("a", 1): "f:3:5",
        ("a", 1, "b"): "f:3:9",
    }


def test_merge_keys_give_way_to_own_keys_and_to_earlier_mappings() -> None:
    text = "p: &p {a: 1, b: 1, c: 1}\nq: &q {a: 2, d: 2}\nr: {<<: [*p, *q], b: 3}\n"
    read = read_marked(text, "f")
    assert read.value["r"] == {"b": 3, "a": 1, "c": 1, "d": 2}
    assert str(read.keys["r", "d"]) == "f:2:14"


def test_an_anchored_value_is_told_where_it_was_written() -> None:
    read = read_marked("a: &x {k: 1}\nb: *x\n", "f")
    assert read.value == {"a": {"k": 1}, "b": {"k": 1}}
    assert str(read.keys["b", "k"]) == "f:1:8"


BOMB = "a: &a [1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)
MERGED = "? &a0 {k: 1}\n: 1\n" + "".join(f"? &a{i} {{<<: *a{i - 1}}}\n: 1\n" for i in range(1, 900))
MERGED += "z: *a899\n"
"""Mappings that merge one another, and are no values themselves."""


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("a: 1\nb: 2\na: 3", "`a` stands twice, first at line 1, column 1", "f:3:1"),
        ("x: {a: 1, a: 2}", "`a` stands twice, first at line 1, column 5", "f:1:11"),
        ("a: .nan", ".nan is not a finite number", "f:1:4"),
        ("a: [-.inf]", "-.inf is not a finite number", "f:1:5"),
        ("a: 1e999", "1e999 is not a finite number", "f:1:4"),
        ("a: 9223372036854775808", "the number 9223372036854775808… does not fit", "f:1:4"),
        ("1: x", "the key 1 is not text", "f:1:1"),
        ("a: {{ b }}", "a mapping or list stands where a key is wanted", "f:1:5"),
        ("a: !!python/name:os.system x", "the tag !!python/name:os.system", "f:1:4"),
        ("a: !!int x", "the tag !!int does not fit here", "f:1:4"),
        ("a: &a [*a]", "an alias stands inside its own anchor", "f:1:4"),
        ("a: {<<: 3}", "`<<` merges something that is no mapping", "f:1:9"),
        ('a: "\\ud800"', "the text holds half a surrogate pair", "f:1:4"),
        ('{"a": "\udc80"}', "the text holds half a surrogate pair", "f:1:7"),
        ('{"\udc80": 1}', "the text holds half a surrogate pair", "f:1:2"),
        (
            MERGED,
            f"the aliases expand to more than {MAX_VALUES} values or {MAX_DEPTH} levels",
            "f:",
        ),
        (BOMB, f"the aliases expand to more than {MAX_VALUES} values", "f:5:1"),
        ("[" * 100, f"not valid YAML: nested deeper than {MAX_DEPTH}", f"f:1:{MAX_DEPTH + 1}"),
        ("[" + "1," * 30_000 + "1]", f"not valid YAML: more than {MAX_VALUES}", "f:1:40000"),
        ("", "the document is empty", "f:1:1"),
        ("# nothing", "the document is empty", "f:1:1"),
        ("---\n", "the document is empty", "f:1:1"),
        ("a: 1\n---\nb: 2", "a second document starts here", "f:2:1"),
        ("a:\n\tb: 1", "not valid YAML: found character '\\t'", "f:2:1"),
        ("a: 1\nb: \x00", "the character U+0000 cannot stand in YAML", "f:2:4"),
        ("a: 1\rb: 2\r\nc: \x00", "the character U+0000 cannot stand in YAML", "f:3:4"),
        ('a: "\\U99999999"', "not valid YAML: this escape stands for no character", "f:1:"),
        ("a: *b", "not valid YAML: found undefined alias 'b'", "f:1:4"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, what: str, place: str) -> None:
    (fault,) = read_marked(text, "f").faults
    assert fault.what.startswith(what)
    assert str(fault.place).startswith(place)
    assert fault.remedy


def test_every_duplicate_is_told_at_once() -> None:
    read = read_marked("a: 1\na: 2\nb: {c: 1, c: 2}\n", "f")
    assert [fault.path for fault in read.faults] == [("a",), ("b", "c")]
    assert read.value == {"a": 1, "b": {"c": 1}}


ODD = {"a\u2028b": ["\x7f\x85", "\ufeff", "\U0001f600", "/", "tab\there", {"k": 1e-7, "n": None}]}


@pytest.mark.parametrize("indent", [None, 2, "\t"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_is_read_as_json(indent: int | str | None, ascii_only: bool) -> None:
    read = read_marked(json.dumps(ODD, indent=indent, ensure_ascii=ascii_only), "f")
    assert read.faults == ()
    assert read.value == ODD
