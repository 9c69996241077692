"""Ways to damage a JSONL file: one of its lines, or the file as a whole."""

import bz2
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from tests.mutations.trees import TREE_CHANGES, at, places, with_value

MEGABYTE = 1_000_000
_RAW = "<raw>"

RICH_ROWS: tuple[Any, ...] = (
    {"messages": [{"role": "user", "content": "Name a colour."}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "\u05e9\u05dc\U0001f469\u200d\U0001f680 e\u0301 \u65e5\u672c\tx"},
            {"role": "assistant", "content": "\u2026"},
            {"role": "user", "content": "And now?", "name": "J\u00fcrgen"},
        ],
        "answer": {"de": "Stra\u00dfe", "list": [1, 2.5e-3, None, True, {"k": []}]},
    },
    {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Use the tool."}]},
            {"role": "user", "content": [{"type": "input_text", "text": "6*7"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "times", "arguments": '{"a": 6, "b": 7}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "user", "content": "So?"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "times", "description": "a b", "parameters": {"type": "object"}},
            },
            {"type": "function", "name": "plus", "strict": True},
        ],
        "answer": "42",
        "tags": ["a", "b"],
    },
)  # fmt: skip

RAW_VALUES: Mapping[str, Callable[[Random], str]] = {
    "not a number": lambda dice: dice.choice(("NaN", "Infinity", "-Infinity", "1e400", "-1e999999")),
    "a huge whole number": lambda dice: "9" * dice.choice((299, 301, 4_299, 4_301, 5_001, 60_000)),
    "a huge exponent": lambda dice: f"1e{'1' * dice.choice((3, 300, 5_001))}",
    "deep lists": lambda dice: _nested(dice, "[", "1", "]"),
    "deep objects": lambda dice: _nested(dice, '{"a":', "1", "}"),
    "deep and open": lambda dice: "[" * dice.choice((70, 900, 5_000, 100_000)),
    "half a surrogate pair": lambda dice: dice.choice(
        ('"\\ud800"', '"\\udc00\\ud800"', '{"\\udfff": 1}', '"\\ud83d\\ude0"', '"x\\ud83d"')
    ),
    "a key twice": lambda dice: dice.choice(('{"k": 1, "k": 2}', '{"\\u006b": 1, "k": 1}')),
    "no JSON": lambda dice: dice.choice(
        ("undefined", "None", "'x'", "01", "+1", ".5", "1.", "0x1", "tru", "", "/**/1", "1 2", "…")
    ),
    "a bad text": lambda dice: dice.choice(
        ('"\t"', '"\x00"', '"\\x41"', '"\\u12"', '"\\', '"', '"\x7f\x85\u2028"', '"\x1b[2J"')
    ),
    "a long text": lambda dice: f'"{"x" * dice.choice((70_000, MEGABYTE, 9 * MEGABYTE))}"',
    "many values": lambda dice: "[" + dice.choice(("1,", "[],", '"",')) * 50_000 + "0]",
}  # fmt: skip
"""Texts that stand where a value is wanted."""


@dataclass(frozen=True)
class DamagedRows:
    """A data file, and where it is damaged."""

    content: bytes
    line: int | None
    """The only line whose row may be at fault; None when it may be any."""
    intact: tuple[bytes, ...] = ()
    """The other lines, which are legal rows."""


def damaged_rows(mutation: str, seed: int, sources: Sequence[Sequence[bytes]]) -> DamagedRows:
    """Lines of one of the sources, damaged; a pure function of its arguments."""
    dice = Random(f"{mutation} {seed}")
    lines = [*dice.choice(sources)]
    if mutation in FILE_MUTATIONS:
        return DamagedRows(FILE_MUTATIONS[mutation](dice, lines), None)
    number = dice.randrange(len(lines))
    damaged = LINE_MUTATIONS[mutation](dice, lines[number]).replace(b"\n", b" ")
    content = b"\n".join([*lines[:number], damaged, *lines[number + 1 :]])
    return DamagedRows(content, number + 1, (*lines[:number], *lines[number + 1 :]))


def _nested(dice: Random, opening: str, inner: str, closing: str) -> str:
    depth = dice.choice((60, 61, 62, 63, 64, 65, 500, 990, 1_000, 5_000, 100_000))
    return opening * depth + inner + closing * depth


# One line


def _with_raw_value(raw: Callable[[Random], str], dice: Random, line: bytes) -> bytes:
    row = json.loads(line)
    changed = json.dumps(with_value(row, dice.choice([*places(row)]), _RAW), ensure_ascii=False)
    return changed.replace(json.dumps(_RAW), raw(dice)).encode()


def _with_changed_tree(change: Callable[[Random, Any], Any], dice: Random, line: bytes) -> bytes:
    changed = change(dice, json.loads(line))
    text = json.dumps(changed, ensure_ascii=dice.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _with_odd_message(dice: Random, line: bytes) -> bytes:
    row = json.loads(line)
    message = dice.choice(
        (
            {"role": "user"},
            {"content": "x"},
            {"role": "human", "content": "x"},
            {"role": ["user"], "content": "x"},
            {"role": {}, "content": "x"},
            {"role": "user", "content": 3},
            {"role": "user", "content": []},
            {"role": "user", "content": [3]},
            {"role": "user", "content": [{"type": ["text"], "text": "x"}]},
            {"role": "user", "content": [{"type": "text", "text": None}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            {"role": "user", "content": " \n"},
            {"role": "assistant", "content": None, "tool_calls": 3},
            {"role": "assistant", "content": "x"},
            "x",
            None,
            [],
        )
    )
    at_end = dice.random() < 0.5
    return json.dumps(
        {**row, "messages": [*row["messages"], message] if at_end else [message]}
    ).encode()


def _cut(dice: Random, line: bytes) -> bytes:
    return line[: dice.randrange(len(line))] or b"{"


def flipped(dice: Random, line: bytes) -> bytes:
    """The bytes with a few bits changed."""
    changed = bytearray(line)
    for _ in range(dice.choice((1, 1, 2, 20))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _inserted(pieces: Sequence[bytes], dice: Random, line: bytes) -> bytes:
    for _ in range(dice.choice((1, 1, 1, 5))):
        at_byte = dice.randrange(len(line) + 1)
        line = line[:at_byte] + dice.choice(pieces) + line[at_byte:]
    return line


def _with_key_twice(dice: Random, line: bytes) -> bytes:
    row = json.loads(line)
    path = dice.choice(
        [p for p in places(row) if isinstance(at(row, p), dict) and at(row, p)] or [()]
    )
    key, value = dice.choice([*at(row, path).items()])
    marked = with_value(row, path, {**at(row, path), _RAW: value})
    return json.dumps(marked).replace(json.dumps(_RAW), json.dumps(key)).encode()


def _with_long_key(dice: Random, line: bytes) -> bytes:
    key = dice.choice("kß") * dice.choice((2_000, 2 * MEGABYTE))
    return json.dumps({key: 1, **json.loads(line)}).encode()


NOT_UTF8 = (
    b"\xff",
    b"\xc0\xaf",
    b"\xe9",
    b"\xed\xa0\x80",
    b"\xf5\x80\x80\x80",
    b"\xf0\x9f",
    b"\x80",
)
CONTROLS = (b"\0", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1b", b"\x1e", b"\x7f", b"\r", b"\t")
SEPARATORS = tuple(c.encode() for c in "\x85\u2028\u2029\ufeff\u00a0\u200b\ufffe\u202e")
SYNTAX = tuple(bytes([c]) for c in b'{}[]:,"\\0e-')

LINE_MUTATIONS: Mapping[str, Callable[[Random, bytes], bytes]] = {
    **{f"value: {name}": partial(_with_raw_value, raw) for name, raw in RAW_VALUES.items()},
    **{f"tree: {n}": partial(_with_changed_tree, change) for n, change in TREE_CHANGES.items()},
    "an odd message": _with_odd_message,
    "a line cut": _cut,
    "bits of a line": flipped,
    "not UTF-8": partial(_inserted, NOT_UTF8),
    "control characters": partial(_inserted, CONTROLS),
    "separators": partial(_inserted, SEPARATORS),
    "syntax": partial(_inserted, SYNTAX),
    "a key of a line twice": _with_key_twice,
    "a long key": _with_long_key,
    "tools": lambda dice, line: json.dumps(
        {**json.loads(line), "tools": dice.choice(([{"type": "function"}], "x", {"a": 1}, 3, True))}
    ).encode(),
    "another kind of row": lambda dice, line: dice.choice(
        (b"null", b"3", b'"x"', b"[]", b"{}", b"true", b"[" + line + b"]", line + line, line + b",")
    ),
    "a long line": lambda dice, line: line + b" " * dice.choice((MEGABYTE, 9 * MEGABYTE)),
}


# The whole file


def _joined(lines: Sequence[bytes], ending: bytes = b"\n") -> bytes:
    return ending.join(lines) + ending


def _recoded(dice: Random, lines: list[bytes]) -> bytes:
    """The rows in another encoding, with or without its mark."""
    name = dice.choice(
        ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-7", "cp500")
    )
    mark = b"\x00\x00\xfe\xff" if name == "utf-32-be" and dice.random() < 0.5 else b""
    mark = b"\xfe\xff" if name == "utf-16-be" and dice.random() < 0.5 else mark
    return mark + _joined(lines).decode().encode(name, "replace")


def _rearranged(dice: Random, lines: list[bytes]) -> bytes:
    """Lines deleted, repeated, swapped, run together, or with blank ones between."""
    for _ in range(dice.choice((1, 3, 10))):
        a, b = dice.randrange(len(lines)), dice.randrange(len(lines))
        kind = dice.randrange(5)
        if kind == 0 and len(lines) > 1:
            lines = lines[:a] + lines[a + 1 :]
        elif kind == 1:
            lines = [*lines[:a], lines[a], *lines[a:]]
        elif kind == 2:
            lines[a], lines[b] = lines[b], lines[a]
        elif kind == 3:
            lines = [*lines[:a], lines[a] + lines[b], *lines[a + 1 :]]
        else:
            lines = [*lines[:a], dice.choice((b"", b" \t", b"\r", b"\x0c")), *lines[a:]]
    return _joined(lines)


def _marked(dice: Random, lines: list[bytes]) -> bytes:
    """A byte order mark at the start, twice, or before another line."""
    mark = b"\xef\xbb\xbf"
    at_line = dice.choice((0, 0, dice.randrange(len(lines))))
    lines[at_line] = mark * dice.choice((1, 1, 2)) + lines[at_line]
    return _joined(lines, dice.choice((b"\n", b"\r\n")))


def _as_other_json(dice: Random, lines: list[bytes]) -> bytes:
    """A JSON array, pretty JSON, or rows between brackets."""
    rows = [json.loads(line) for line in lines]
    indent = dice.choice((None, 1, "\t"))
    whole = dice.choice((rows, {"data": rows}, rows[0]))
    if dice.random() < 0.3:
        return b"[\n" + b",\n".join(lines) + b"\n]"
    return json.dumps(whole, indent=indent).encode()


def _of_another_kind(dice: Random, lines: list[bytes]) -> bytes:
    """What people and servers hand over in place of rows."""
    return dice.choice(
        (
            b"",
            b"\n" * dice.choice((1, 1_000)),
            b" \t \r\n" * 50,
            b"\xef\xbb\xbf",
            b"\0" * dice.choice((1, 4_096)),
            b"\xff\xfe",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
            b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
            b"question,answer\n1,2\n",
            b"PAR1" + _joined(lines) + b"PAR1",
            b"SQLite format 3\0" + b"\0" * 100,
            repr([json.loads(line) for line in lines]).encode(),
            b"# rows\n" + _joined(lines),
            b"<<<<<<< HEAD\n" + lines[0] + b"\n=======\n" + lines[-1] + b"\n>>>>>>> x\n",
            _joined([line.replace(b'"', b"'") for line in lines]),
            _joined([line.replace(b'"', "\u201c".encode()) for line in lines]),
            _joined([line + b"," for line in lines]),
        )
    )


def _compressed(dice: Random, lines: list[bytes]) -> bytes:
    whole = gzip.compress(_joined(lines), mtime=0)
    cut = whole[: dice.randrange(1, len(whole))]
    return dice.choice((whole, whole, cut, bz2.compress(_joined(lines))))


FILE_MUTATIONS: Mapping[str, Callable[[Random, list[bytes]], bytes]] = {
    "line ends": lambda dice, lines: _joined(lines, dice.choice((b"\r\n", b"\r", b"\n\r", b"\r\r\n"))),
    "byte order marks": _marked,
    "another encoding": _recoded,
    "lines rearranged": _rearranged,
    "JSON, not JSONL": _as_other_json,
    "no rows at all": _of_another_kind,
    "compressed": _compressed,
    "cut at a byte": lambda dice, lines: _cut(dice, _joined(lines)),
    "bits of the file": lambda dice, lines: flipped(dice, flipped(dice, _joined(lines))),
    "bytes put in": lambda dice, lines: _inserted(
        (*NOT_UTF8, *CONTROLS, *SEPARATORS, b"\n"), dice, _joined(lines)
    ),
    "every line damaged": lambda dice, lines: _joined(
        [dice.choice((_cut, flipped, _with_odd_message))(dice, line) for line in lines * 4]
    ),
    "random bytes": lambda dice, lines: dice.randbytes(dice.choice((3, 300, 30_000))),
    "random characters": lambda dice, lines: "".join(
        dice.choices('{}[]":,\\ \n\t0123456789.eE-truefalsnumgco\u2028é', k=dice.choice((9, 900)))
    ).encode(),
}  # fmt: skip

MUTATIONS = (*LINE_MUTATIONS, *FILE_MUTATIONS)
