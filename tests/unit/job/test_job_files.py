"""Job files: paths, dump, schema, and whatever text a person may hand in."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft.errors import JobError, Problem
from rft.job import dump_job, json_schema, load_job, parse_job
from rft.job.engine import Engine
from rft.job.schema import key_paths
from tests.unit.job.job_text import JOB, parse


def test_relative_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    text = JOB.replace("smollm2-135m-instruct", "base").replace("train.jsonl", "../train.jsonl")
    path = tmp_path / "job.yaml"
    path.write_text(text + "engine: {model: {chat_template: chat.jinja}}\n")
    job = load_job(path)
    assert job.model == str(tmp_path / "base")
    assert job.training_file == str(tmp_path.parent / "train.jsonl")
    assert job.validation_file == str(tmp_path / "valid.jsonl")
    assert job.engine.model.chat_template == str(tmp_path / "chat.jinja")


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("model=owner/name", "model", "owner/name"),
        ("model=run-1@20", "model", "run-1@20"),
        ("model=./base", "model", "/jobs/base"),
        ("model=/base", "model", "/base"),
        ("training_file=hf://a/b?split=train", "training_file", "hf://a/b?split=train"),
        ("training_file=/data/t.jsonl", "training_file", "/data/t.jsonl"),
    ],
)
def test_names_stay_names(override: str, field: str, value: str) -> None:
    assert getattr(parse(JOB, override), field) == value


def test_an_inline_chat_template_stays_text() -> None:
    job = parse(JOB + 'engine: {model: {chat_template: "{{ messages }}"}}')
    assert job.engine.model.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (None, "no such job file"),
        (b"", "the document is empty"),
        (b"\xff\xfem\x00", "the job file is not UTF-8: byte 0xff"),
        ("suffix: é".encode("latin-1"), "the job file is not UTF-8: byte 0xe9"),
        (b"a" * 9_000_000, "the job file has more than 8000000 bytes"),
    ],
)
def test_a_file_that_is_no_job_file(tmp_path: Path, data: bytes | None, what: str) -> None:
    path = tmp_path / "job.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(JobError, match=what) as raised:
        load_job(path)
    assert str(path) in raised.value.problems[0].where


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"a: 1\nb: \xe9", "2:4"),
        (b"\xef\xbb\xbfa: \xe9", "1:4"),
        ("a: éé".encode() + b"\xff", "1:6"),
        (b"a: 1\rb: 2\r\nc: \xe9", "3:4"),
    ],
)
def test_the_first_byte_that_is_not_utf8_is_told(tmp_path: Path, data: bytes, place: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    with pytest.raises(JobError, match=f"byte 0x{data[-1]:02x}") as raised:
        load_job(path)
    assert raised.value.problems[0].where == f"{path}:{place}"


def test_what_is_no_regular_file_is_no_job_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(JobError, match="the job file is not a regular file"):
            load_job(path)


def test_every_problem_has_a_place_and_is_one_short_line() -> None:
    long = "x" * 3_000_000
    odd_key = f'{JOB}engine: {{data: {{fields: {{"{chr(0xE000) * 400}": 3}}}}}}\n'
    for text in (long, odd_key, JOB + "".join(f"k{i}: 1\n" for i in range(30))):
        with pytest.raises(JobError) as raised:
            parse_job(text, name="a\nb.yaml", folder=Path())
        for problem in raised.value.problems:
            assert problem.where.startswith("a\\nb.yaml")
            for part in (problem.what, problem.where, problem.remedy):
                assert part.isprintable() and len(part) < 700


def test_a_fault_is_told_once_however_many_aliases_repeat_it() -> None:
    text = JOB + "metadata: &m {<<: 3}\nengine: {data: {fields: *m}, lora: *m}\n"
    with pytest.raises(JobError) as raised:
        parse(text)
    (problem,) = raised.value.problems
    assert problem.what == "`<<` merges something that is no mapping"


@pytest.mark.parametrize("key", ["model", "training_file", "engine.model.chat_template"])
def test_a_home_that_nobody_can_have_stays_as_it_is(key: str) -> None:
    assert "~a\\0b" in dump_job(parse(JOB, f'{key}="~a\\0b"'))


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="a folder stands where a job file is wanted"):
        load_job(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8-sig")
    assert load_job(tmp_path / "job.yaml").seed == 0


GRADERS = (
    *("StringCheck", "TextSimilarity", "Python", "Endpoint", "ScoreModel", "LabelModel", "Multi"),
    *("InputMessage", "TextBlock"),
)
ODD_TEXTS = [
    "no",
    "1e-5",
    "010",
    "~",
    "",
    " x ",
    "a: b",
    "- a",
    "\n",
    "a\n b\n",
    "\tx\n",
    "é\u2028",
    "\x85",
    "#",
    "0x1",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_dumped_text_loads_as_it_was(text: str) -> None:
    job = parse(JOB + f"metadata: {json.dumps({'k': text})}\n")
    assert job.metadata == {"k": text}
    assert parse(dump_job(job)) == job


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_a_dump(text: str) -> None:
    job = parse().model_copy(update={"metadata": {"k": text}})
    if all(character.isprintable() or character in "\n\t\x85\u2028" for character in text):
        assert parse(dump_job(job)) == job


def test_a_dump_keeps_the_order_of_the_document_and_of_the_graders() -> None:
    graders = "{b: {type: string_check, name: b, input: x, reference: y, operation: ne}, a: {type: python, name: a, "
    graders += 'source: "def grade(sample, item):\\n  return 1\\n"}}'
    grader = f"{{type: multi, graders: {graders}, calculate_output: a + b}}"
    job = parse(JOB, f"method.reinforcement.grader={grader}")
    text = dump_job(job)
    assert parse(text) == job and dump_job(parse(text)) == text
    top = [line.split(":")[0] for line in text.splitlines() if line[0] not in " -"]
    assert top == list(type(job).model_fields)
    assert text.index("b:\n") < text.index("a:\n          type: python")


@given(st.text(alphabet=st.sampled_from("ab:-{}[]&*!|>'\"%@#\n\t ,?.~\\0x<e1"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_job_or_told_what_it_lacks(text: str) -> None:
    with pytest.raises(JobError) as raised:
        parse(text)
    assert all(problem.what for problem in raised.value.problems)


@given(st.integers(0, len(JOB) - 1), st.sampled_from("x:{}[]&*!'\" \n\t0%@\x00é"))
@settings(max_examples=300, deadline=None)
def test_a_job_with_one_character_changed_loads_or_is_told_where_it_fails(
    at: int, new: str
) -> None:
    problems: Sequence[Problem] = ()
    try:
        parse(JOB[:at] + new + JOB[at + 1 :])
    except JobError as error:
        problems = error.problems
    assert all(problem.where.startswith("job.yaml:") for problem in problems)


def test_the_schema_describes_every_key_for_an_editor() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert schema["required"] == ["model", "training_file", "validation_file", "method"]
    assert schema["additionalProperties"] is False
    paths = set(key_paths(schema, schema))
    assert ("engine", "training", "learning_rate") in paths
    assert {path for path in paths if len(path) == 2 and path[0] == "engine"} == {
        ("engine", name) for name in Engine.model_fields
    }
    for name, definition in schema["$defs"].items():
        for field, inner in definition.get("properties", {}).items():
            target = schema["$defs"][inner["$ref"].split("/")[-1]] if "$ref" in inner else inner
            assert "description" in target or name in GRADERS, f"{name}.{field}"
