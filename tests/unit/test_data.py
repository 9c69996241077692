"""Data sources → Examples, and the stream of prompts."""

import gzip
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rft.data import PromptStream, data_warnings, load_examples, row_place
from rft.data.json_lines import MAX_LINE_BYTES
from rft.errors import DataError, NotYetError, Problem
from rft.job import DataSettings
from rft.types import Example

CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ROW = {"messages": [{"role": "user", "content": "Capital of France?"}], "answer": "Paris"}


def settings(**keys: Any) -> DataSettings:
    return DataSettings.model_validate(keys)


def load(
    path: Path | str, data_settings: DataSettings | None = None, minimum: int = 1
) -> list[Example]:
    return load_examples(
        str(path), data_settings or settings(), field="training_file", minimum=minimum
    )


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "train.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def problems(path: Path | str, error: type = DataError, **keys: Any) -> list[Problem]:
    with pytest.raises(error) as raised:
        load(path, settings(**keys))
    return list(raised.value.problems)


# Rows


def test_a_row_becomes_an_example(tmp_path: Path) -> None:
    (example,) = load(write(tmp_path, ROW))
    assert example == Example(row=0, messages=tuple(ROW["messages"]), item=ROW)


def test_blank_lines_are_skipped_and_rows_counted_without_them(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + json.dumps(ROW), "", "  ", ROW, "")
    examples = load(path)
    assert [example.row for example in examples] == [0, 1]
    assert row_place(str(path), examples[1]) == f"{path} row 2"


def test_crlf_and_line_separators_inside_texts_are_no_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    line = json.dumps({**ROW, "answer": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_bytes(f"{line}\r\n{line}\r\n".encode())
    assert [example.item["answer"] for example in load(path)] == ["a\u2028b\x85c"] * 2


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("messages", "contents"),
    [
        ([user("hi")], ["hi"]),
        ([{"role": "system", "content": ""}, user("hi")], ["", "hi"]),
        ([{"role": "developer", "content": "write"}], ["write"]),
        ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], ["ab"]),
        (
            [user("a"), {"role": "assistant", "content": "b", "weight": 0}, user("c")],
            ["a", "b", "c"],
        ),
        (
            [
                user("a"),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "3", "tool_call_id": "x"},
                user("b"),
            ],
            ["a", "", "3", "b"],
        ),
    ],
)
def test_legal_conversations(tmp_path: Path, messages: Any, contents: list[str]) -> None:
    (example,) = load(write(tmp_path, {"messages": messages, "tools": []}))
    assert [message["content"] for message in example.messages] == contents
    assert example.item["messages"] == messages


@pytest.mark.parametrize(
    ("line", "what", "message"),
    [
        ("{", "not valid JSON", None),
        ("{'messages': []}", "not valid JSON: Expecting property name", None),
        ("[1]", "the row is a list", None),
        ('"text"', "the row is text", None),
        ("null", "the row is null", None),
        ('{"a": 1, "a": 2}', 'the key "a" stands twice', None),
        ('{"messages": [{"role": "user", "role": "user"}]}', 'the key "role" stands twice', None),
        ('{"a": NaN}', "NaN is not JSON", None),
        ('{"a": -Infinity}', "-Infinity is not JSON", None),
        ('{"a": 1e999}', "the number 1e999 is too large", None),
        ('{"a": ' + "1" * 5000 + "}", "a number has 5000 digits", None),
        ('{"a": "\\ud800"}', "a text holds half a surrogate pair", None),
        ('{"\\udc00": 1}', "a text holds half a surrogate pair", None),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested too deeply", None),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply", None),
        ("{}", 'the row is missing key "messages"', None),
        ({"messages": []}, "`messages` is empty", None),
        ({"messages": None}, "`messages` is null, not a list", None),
        ({"messages": "hi"}, "`messages` is text, not a list", None),
        ({"messages": ["hi"]}, "the message is text", 1),
        ({"messages": [{"content": "x"}]}, 'the message is missing key "role"', 1),
        ({"messages": [{"role": "human", "content": "x"}]}, 'unknown role "human"', 1),
        ({"messages": [user("a"), {"role": ["user"], "content": "x"}]}, 'unknown role ["user"]', 2),
        ({"messages": [{"role": "user"}]}, 'the message is missing "content"', 1),
        ({"messages": [user(None)]}, 'the message is missing "content"', 1),
        ({"messages": [user(5)]}, "`content` is a number", 1),
        ({"messages": [user([])]}, "`content` is a list", 1),
        ({"messages": [user(["x"])]}, "a part of `content` is not text", 1),
        ({"messages": [user("  ")]}, "the last message is empty", 1),
        (
            {"messages": [user("a"), {"role": "assistant", "content": "b"}]},
            "the last message is the assistant's",
            2,
        ),
    ],
)
def test_a_bad_row_is_told_with_line_and_message(
    tmp_path: Path, line: Any, what: str, message: int | None
) -> None:
    path = write(tmp_path, ROW, line)
    (problem,) = problems(path)
    assert problem.what.startswith(what)
    assert problem.where == f"{path}:2" + (f" message {message}" if message else "")
    assert problem.remedy


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            {"messages": [user([{"type": "image_url", "image_url": {}}])]},
            "content of type image_url is not built yet",
        ),
    ],
)
def test_what_is_not_built_is_named(tmp_path: Path, row: Any, what: str) -> None:
    path = write(tmp_path, row)
    (problem,) = problems(path, NotYetError)
    assert problem.what == what
    assert [p.where for p in problems(write(tmp_path, row, "{}"))] == [
        problem.where,
        f"{path}:2",
    ]


def test_all_bad_rows_are_told_at_once_twenty_of_them_in_words(tmp_path: Path) -> None:
    path = write(tmp_path, *(["{}"] * 3), ROW, *(["nope"] * 30))
    found = problems(path)
    assert [problem.where for problem in found[:4]] == [f"{path}:{n}" for n in (1, 2, 3, 5)]
    assert len(found) == 21 and found[-1].what == "and 13 more bad rows"


def test_a_line_that_is_not_utf8_or_too_long_is_told_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = json.dumps(ROW).encode()
    long = b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}'
    path.write_bytes(b"\n".join([good, b'{"a": "\xe9"}', good, long, b"{}"]))
    found = problems(path)
    assert [problem.where for problem in found] == [f"{path}:{n}" for n in (2, 4, 5)]
    assert found[0].what == "not UTF-8: byte 0xe9 at column 8"
    assert found[1].what == f"the line is longer than {MAX_LINE_BYTES} bytes"


def test_control_characters_of_the_data_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, '{"\\u001b[31m": 1}'))
    assert "\\x1b[31m" in problem.remedy and "\x1b" not in str(problem)


# Files


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (None, "training_file: no such file"),
        (b"", "training_file: the file is empty"),
        (b"\xff\xfe{\x00", "training_file: the file is UTF-16"),
        ("{}".encode("utf-32"), "training_file: the file is UTF-32"),
        (b"\x00\x00\xfe\xff", "training_file: the file is UTF-32"),
        (gzip.compress(b"{}", mtime=0), "training_file: the file is compressed"),
        (b"PK\x03\x04", "training_file: the file is an archive"),
        (b"\n\n", "training_file has 0 example(s), but must have at least 1"),
        (b'[{"messages": []}]', "the file is JSON, not JSONL"),
        (b'{\n  "messages": []\n}', "the file is JSON, not JSONL"),
    ],
)
def test_a_file_that_holds_no_rows(tmp_path: Path, data: bytes | None, what: str) -> None:
    path = tmp_path / "train.jsonl"
    if data is not None:
        path.write_bytes(data)
    (problem,) = problems(path)
    assert problem.what == what and problem.where.startswith(str(path)) and problem.remedy


def test_a_folder_and_a_file_id_are_no_files(tmp_path: Path) -> None:
    assert problems(tmp_path)[0].what == "training_file: a folder, not a file"
    assert "file id of the hosted product" in problems(tmp_path / "file-abc123")[0].remedy
    for odd in ("a\0b", "~a\0b", "a\n\x1b[31m\0", "a\0" * 2_000):
        (problem,) = problems(odd)
        assert problem.what.startswith("training_file: cannot read it")
        assert problem.where.isprintable() and len(problem.where) < 700


def test_a_faulty_row_is_not_kept_in_memory(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    for rows in ([f'{{"{long}": 1}}'] * 30, [f"{long}"] * 30, [f'"{long}"'] * 30):
        path = write(tmp_path, *rows)
        tracemalloc.start()
        assert len(problems(path)) == 21
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load(write(tmp_path, ROW, ROW), minimum=10)
    (problem,) = raised.value.problems
    assert problem.what == "training_file has 2 example(s), but must have at least 10"


def test_csv_rows_are_texts_and_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('question,answer\n"two\nlines, 1",007\n2+2?,4\n')
    first, second = load(path, settings(fields={"prompt": "Q: {{ question }}"}))
    assert first.messages == ({"role": "user", "content": "Q: two\nlines, 1"},)
    assert first.item["answer"] == "007" and second.item["answer"] == "4"
    path.write_text("question,answer\na,b\na,b,c\n")
    (problem,) = problems(path, fields={"prompt": "{{ question }}"})
    assert (problem.where, problem.what) == (f"{path}:3", "the row has 3 values, the header 2")
    path.write_text("a,a\n1,2\n")
    assert problems(path)[0].what == "training_file: two columns have the same name"


def test_a_long_text_of_a_csv_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("question,answer\n" + "word " * 40_000 + ",4\n")
    (example,) = load(path, settings(fields={"prompt": "{{ question }}"}))
    assert len(example.messages[0]["content"]) == 200_000


@pytest.mark.parametrize(
    ("data", "what", "line"),
    [
        (b"a,b\n1,2\n1,\xe9\n", "not UTF-8: byte 0xe9 at column 3", 3),
        (b'a,b\n1,2\n1,"x"y\n1,2\n', "training_file: not a CSV file", 3),
        (b'a,b\n1,"2\n1,2\n', "training_file: not a CSV file", 3),
    ],
)
def test_a_csv_file_is_told_where_it_cannot_be_read(
    tmp_path: Path, data: bytes, what: str, line: int
) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(data)
    (problem,) = problems(path)
    assert problem.what.startswith(what) and problem.where == f"{path}:{line}" and problem.remedy


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    rows = [{"q": "a", "n": 3, "x": float("nan"), "l": ["u", "v"]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (example,) = load(path, settings(fields={"prompt": "{{ q }}"}))
    assert (example.item["n"], example.item["x"], example.item["l"]) == (3, None, ["u", "v"])
    path.write_bytes(b"PAR1 nothing")
    assert problems(path)[0].what.startswith("training_file: not a Parquet file")


def test_tools_of_a_parquet_file_have_no_other_tools_parameters(tmp_path: Path) -> None:
    """A column's structs have the keys of all its rows, null where a row has them not."""

    def tool(name: str, parameter: str) -> dict[str, Any]:
        properties = {parameter: {"type": "string", "enum": ["a", None]}}
        parameters = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    def call(name: str, parameter: str) -> dict[str, Any]:
        arguments = {parameter: "a"}
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    path = tmp_path / "train.parquet"
    tools = [tool("weather", "city"), tool("read", "path")]
    messages = [
        *({"role": "user", "content": "?"}, call("weather", "city"), call("read", "path")),
        {"role": "user", "content": "?"},
    ]
    rows = [{"messages": messages, "tools": tools, "other": {"city": None}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (example,) = load(path)
    assert list(example.tools) == example.item["tools"] == tools
    calls = [message["tool_calls"][0]["function"] for message in example.messages[1:3]]
    assert [one["arguments"] for one in calls] == [{"city": "a"}, {"path": "a"}]
    assert example.item["other"] == {"city": None}


def test_a_date_that_no_calendar_has_is_told(tmp_path: Path) -> None:
    table = pyarrow.table({"day": pyarrow.array([0, 10**7], pyarrow.int32()).cast("date32")})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    (problem,) = problems(tmp_path / "train.parquet")
    assert problem.what == "training_file: not a Parquet file: date value out of range"
    (problem,) = problems(tmp_path / "saved", fields={"prompt": "{{ day }}"})
    assert problem.what == "training_file: cannot read the row: date value out of range"
    assert problem.where == f"{tmp_path / 'saved'} row 2"


def test_a_damaged_folder_of_rows_is_told(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"question": "2+2?"}]).save_to_disk(tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    data = file.read_bytes()
    at = data.index(b"2+2?")
    offsets = data.rindex((4).to_bytes(4, "little"), 0, at)
    file.write_bytes(data[:offsets] + (2**31 - 1).to_bytes(4, "little") + data[offsets + 4 :])
    (problem,) = problems(tmp_path)
    assert problem.what.startswith("training_file: not a saved data set: ")


def test_bytes_have_no_json_form(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"q": b"a"}]), path)
    (problem,) = problems(path)
    assert problem.what == "column `q` holds bytes, which graders cannot read"
    assert problem.where == f"{path} row 1"


@pytest.mark.parametrize(
    ("source", "field", "what"),
    [
        ("hf://", "training_file", "training_file: no name of a data set"),
        ("hf://a/b/c?split=train", "training_file", "training_file: no name of a data set"),
        ("hf://a/b?splt=train", "training_file", "training_file: unknown option `splt`"),
        ("hf://a/b?config=main", "validation_file", "validation_file: no split is named"),
    ],
)
def test_a_wrong_hub_address(source: str, field: str, what: str) -> None:
    with pytest.raises(DataError) as raised:
        load_examples(source, settings(), field=field, minimum=1)
    (problem,) = raised.value.problems
    assert (problem.what, problem.where) == (what, source) and problem.remedy


# Columns


TABLE_ROW = {"question": "2+2?", "answer": {"value": 4, "steps": ["a", "b"]}, "odd name": None}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ question }}", "2+2?"),
        ("{{question}} Think.", "2+2? Think."),
        ("{{ answer.value }}", 4),
        ("{{ answer.steps }}", ["a", "b"]),
        ("{{ answer.steps[1] }}", "b"),
        ("{{ answer.value }}{{ answer.value }}", "44"),
        ("{{ answer }}!", '{"value": 4, "steps": ["a", "b"]}!'),
        ("{{ odd name }}", None),
    ],
)
def test_fields_add_to_the_item(tmp_path: Path, template: str, value: Any) -> None:
    mapping = settings(fields={"prompt": "{{ question }}", "extra": template})
    (example,) = load(write(tmp_path, TABLE_ROW), mapping)
    assert example.item == {
        **TABLE_ROW,
        "extra": value,
        "messages": [{"role": "user", "content": "2+2?"}],
    }


def test_another_column_may_hold_the_messages(tmp_path: Path) -> None:
    path = write(tmp_path, {"conversation": ROW["messages"]})
    (example,) = load(path, settings(messages="conversation"))
    assert example.messages == tuple(ROW["messages"])
    assert example.item["messages"] == ROW["messages"]


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ([user("a")], ["system", "user"]),
        ([{"role": "system", "content": "b"}, user("a")], ["system", "user"]),
        ([{"role": "developer", "content": "b"}, user("a")], ["developer", "user"]),
    ],
)
def test_a_system_message_is_put_before_conversations_without_one(
    tmp_path: Path, messages: Any, roles: list[str]
) -> None:
    (example,) = load(write(tmp_path, {"messages": messages}), settings(system="Be brief."))
    assert [message["role"] for message in example.messages] == roles
    assert example.item["messages"] == messages


@pytest.mark.parametrize(
    ("fields", "what", "where"),
    [
        ({"prompt": "{{ q }}"}, "the row has no `q`", "train.jsonl:1"),
        ({"prompt": "{{ answer.steps[2] }}"}, "the row has no `answer.steps[2]`", "train.jsonl:1"),
        ({"prompt": "{{ question.x }}"}, "the row has no `question.x`", "train.jsonl:1"),
        (
            {"prompt": "question"},
            "the template 'question' names no column",
            "engine.data.fields.prompt",
        ),
        (
            {"prompt": "{{ question"},
            "the template '{{ question' is malformed",
            "engine.data.fields",
        ),
        ({"prompt": "{{ }}"}, "the template '{{ }}' is malformed", "engine.data.fields"),
        (
            {"prompt": "{{ question {{ answer }}"},
            "the template '{{ question {{ answer }}' is malformed",
            "engine.data.fields",
        ),
        (
            {"prompt": "{{" + "x" * 5_000},
            f"the template '{{{{{'x' * 98}…' is malformed",
            "engine.data.fields",
        ),
        (
            {"a\n" + "b" * 5_000: "{{"},
            "the template '{{' is malformed",
            "engine.data.fields.a\\nbbb",
        ),
        ({"messages": "{{ question }}"}, "`messages` is no field", "engine.data.fields.messages"),
    ],
)
def test_a_wrong_template_is_told(
    tmp_path: Path, fields: Mapping[str, str], what: str, where: str
) -> None:
    (problem,) = problems(write(tmp_path, TABLE_ROW), fields=fields)
    assert problem.what.startswith(what) and where in problem.where and problem.remedy


# Warnings


def test_warnings_name_what_is_likely_a_mistake(tmp_path: Path) -> None:
    rows = [{"messages": [user(text)]} for text in "abcb"]
    train = load(write(tmp_path, *rows))
    assert data_warnings(train[:3], load(write(tmp_path, {"messages": [user("z")]}))) == []
    repeats, shared = data_warnings(train, train[2:3])
    assert repeats == "training_file repeats 1 prompt(s)"
    assert shared.startswith("1 validation prompt(s) are also trained on")
    assert shared.endswith("validation row 3 is training row 3")
    many = [Example(n, ({"role": "user", "content": str(n)},), {}) for n in range(1001)]
    assert data_warnings(train[:3], many) == [
        "validation_file has 1001 rows; the hosted product takes at most 1000"
    ]


# The stream


def test_every_epoch_is_a_permutation_and_they_differ() -> None:
    drawn = PromptStream(7, seed=3).take(21)
    assert [ordinal for ordinal, _ in drawn] == list(range(21))
    epochs = [[row for _, row in drawn[start : start + 7]] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_order_is_the_one_of_the_formula() -> None:
    bits = np.random.Philox(np.random.SeedSequence([3, 1])).random_raw(7)
    expected = np.argsort(bits, kind="stable").tolist()
    assert [row for _, row in PromptStream(7, seed=3, cursor=7).take(7)] == expected
    assert PromptStream(10, seed=42).take(10) == list(enumerate(ORDER_OF_SEED_42))


ORDER_OF_SEED_42 = [0, 1, 4, 2, 6, 8, 5, 9, 7, 3]


def test_a_stream_that_is_not_shuffled_keeps_to_the_file() -> None:
    drawn = PromptStream(3, seed=42, cursor=2, is_shuffled=False).take(5)
    assert drawn == [(2, 2), (3, 0), (4, 1), (5, 2), (6, 0)]


def test_a_stream_goes_on_from_a_cursor_wherever_it_was_cut() -> None:
    whole = PromptStream(5, seed=1).take(40)
    stream = PromptStream(5, seed=1)
    assert [*stream.take(3), *stream.take(0), *stream.take(9)] == whole[:12]
    assert stream.cursor == 12
    assert PromptStream(5, seed=1, cursor=stream.cursor).take(28) == whole[12:]
    assert PromptStream(5, seed=2).take(40) != whole
