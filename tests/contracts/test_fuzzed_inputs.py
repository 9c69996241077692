"""Whatever stands in a data file or a job document, it loads, or each fault is told with its place.

5,000 damaged data files and 2,000 damaged job documents with `scripts/test --long`, a few of each kind
otherwise. A case is a pure function of a mutation's name and a seed, which a failure tells.
"""

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from random import Random
from typing import TypeVar

import pyarrow.csv
import pyarrow.parquet
import pytest

from rft.cli.main import main
from rft.data import load_sound_job
from rft.data.examples import readable_examples
from rft.errors import MachineError, Problem, UserError
from rft.job import DataSettings, dump_job, load_job, parse_job
from rft.types import Example
from tests.mutations import documents, rows
from tests.mutations.rows import DamagedRows, flipped

ROOT = Path(__file__).parents[2]
NUM_DATA_FILES, NUM_JOB_DOCUMENTS = 5_000, 2_000
NUM_FEW = 3
"""Cases of each mutation in the short form."""
MAX_SECONDS = 2.0
"""CPU time of loading one damaged file."""
MAX_CHARACTERS = 700
"""Of each part of a problem, however long what it speaks of."""

ROW = {
    "messages": [{"role": "user", "content": "Q?"}],
    "question": "Q?",
    "country": "A",
    "capital": "B",
    "sum": 3,
    "answer": "#### 4",
}
SETTINGS = (
    DataSettings(),
    DataSettings(system="Be brief."),
    DataSettings(fields={"prompt": "{{ messages[0].role }}: {{messages}}", "copy": "{{messages}}"}),
)

Loaded = TypeVar("Loaded")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a job and data for it."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(capitals())
    for name in ("train.jsonl", "valid.jsonl"):
        Path(name).write_text("\n".join([json.dumps(ROW)] * 10))
    return tmp_path


# What is asked of every answer


def answer_of(
    load: Callable[[], Loaded],
) -> tuple[Loaded | None, Sequence[Problem], list[str]]:
    """What was loaded, the problems told, and what should not have been."""
    loaded, problems, wrong = None, (), []
    started = time.process_time()
    try:
        loaded = load()
    except (UserError, MachineError) as error:
        problems = error.problems
        wrong = [] if problems else ["an error without a problem"]
    except Exception as crash:
        wrong = [f"{type(crash).__name__}: {crash}"[:300]]
    seconds = time.process_time() - started
    if seconds > MAX_SECONDS:
        wrong.append(f"{seconds:.1f} s of CPU time")
    return loaded, problems, wrong + ill_told(problems)


def ill_told(problems: Sequence[Problem]) -> list[str]:
    """Problems that lack a part, are told twice, or would not be one line on a terminal."""
    wrong = []
    for problem, count in Counter(problems).items():
        is_count = problem.what.startswith("and ") or "more rows" in problem.what
        if not problem.what or not problem.where or not (problem.remedy or is_count):
            wrong.append(f"no what, where or remedy: {problem!r:.300}")
        texts = (problem.what, problem.where, problem.remedy)
        if not all(text.isprintable() and len(text) <= MAX_CHARACTERS for text in texts):
            wrong.append(f"not one short line: {problem!r:.300}")
        if count > 1 and not problem.where.startswith("override "):  # it may have been given twice
            wrong.append(f"told {count} times: {problem!r:.300}")
    return wrong


def assert_nothing_is_wrong(found: Iterable[tuple[int, list[str]]]) -> None:
    """Takes the seed of each case and what was wrong with its answer."""
    assert [f"seed {seed}: {line}" for seed, wrong in found for line in wrong][:5] == []


def seeds(total: int, mutations: Sequence[str]) -> range:
    """The cases of each mutation that make a total."""
    return range(-(-total // len(mutations)))


# Data files


def legal_rows() -> list[tuple[bytes, ...]]:
    """The lines to damage: of the worked examples, and some with all that a row may have."""
    examples = [
        (ROOT / f"configs/{name}/train.jsonl").read_bytes().splitlines()[:12]
        for name in ("arithmetic", "capitals", "smoke")
    ]
    rich = [json.dumps(row, ensure_ascii=False).encode() for row in rows.RICH_ROWS]
    escaped = [json.dumps(row).encode() for row in rows.RICH_ROWS]
    return [tuple(lines) for lines in (*examples, rich, [*escaped, *rich, *escaped])]


def wrong_with_rows(case: DamagedRows, settings: DataSettings) -> list[str]:
    """What is wrong with the answer to one damaged data file."""
    Path("train.jsonl").write_bytes(case.content)
    read, problems, wrong = answer_of(
        lambda: readable_examples("train.jsonl", settings, field="training_file", minimum=1)
    )
    examples, error = read or ([], None)
    if error is not None:
        problems, wrong = error.problems, wrong + ill_told(error.problems)
    wrong += [f"no JSON: row {made.row + 1}" for made in examples if not is_json(made)]
    num_lines = case.content.count(b"\n") + 1
    places = range(1, num_lines + 1) if case.line is None else [case.line]
    wrong += [
        f"not in its line: {problem}" for problem in problems if not stands_in(problem, places)
    ]
    if read is not None and case.line is not None:
        intact, found = intact_examples(case.intact, settings), rows_of(examples)
        if intact not in (found, found[: case.line - 1] + found[case.line :]):
            wrong.append("an intact row is missing or changed")
    return wrong


def rows_of(examples: Sequence[Example]) -> list[object]:
    """What examples hold, wherever they stood."""
    return [(example.messages, example.item) for example in examples]


def is_json(example: Example) -> bool:
    """Whether an example can be written as JSON in UTF-8."""
    value = [*example.messages, example.item]
    try:
        return bool(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        return False


def intact_examples(lines: Sequence[bytes], settings: DataSettings) -> list[object]:
    Path("intact.jsonl").write_bytes(b"\n".join(lines))
    found, error = readable_examples("intact.jsonl", settings, field="training_file", minimum=1)
    assert error is None
    return rows_of(found)


def stands_in(problem: Problem, lines: Iterable[int]) -> bool:
    """Whether a problem of the data is told at one of the lines, or is one of the whole file."""
    place = re.fullmatch(r"train\.jsonl(?::(\d+)(?: message \d+)?)?", problem.where)
    if place is None:
        return False
    if place[1] is None:
        return problem.what.startswith(("training_file", "and "))
    return int(place[1]) in lines


def check_data_files(mutation: str, chosen: Iterable[int]) -> None:
    sources = legal_rows()
    assert_nothing_is_wrong(
        (
            seed,
            wrong_with_rows(rows.damaged_rows(mutation, seed, sources), SETTINGS[seed % len(SETTINGS)]),
        )
        for seed in chosen
    )  # fmt: skip


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mutation", rows.MUTATIONS)
def test_a_damaged_data_file_loads_or_is_told_where_it_is_damaged(mutation: str) -> None:
    check_data_files(mutation, range(NUM_FEW))


@pytest.mark.long
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mutation", rows.MUTATIONS)
def test_five_thousand_damaged_data_files(mutation: str) -> None:
    check_data_files(mutation, seeds(NUM_DATA_FILES, rows.MUTATIONS))


# Tables


def write_table(kind: str) -> bytes:
    """The rows as a file of that kind."""
    table = pyarrow.Table.from_pylist([{**ROW, "day": date(2020, 1, 31)}] * 50)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, "table.parquet")
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ",")
        pyarrow.csv.write_csv(table.drop_columns("messages"), f"table.{kind}", options)
    return Path(f"table.{kind}").read_bytes()


def check_tables(kind: str, chosen: Iterable[int]) -> None:
    whole, name = write_table(kind), f"damaged.{kind}"
    settings = DataSettings(fields={"prompt": "{{ question }}"})

    def wrong_with_table(seed: int) -> list[str]:
        dice = Random(f"{kind} {seed}")
        damaged = flipped(dice, flipped(dice, whole))
        Path(name).write_bytes(damaged[: dice.choice((len(whole), len(whole), 300))])
        read, problems, wrong = answer_of(
            lambda: readable_examples(name, settings, field="training_file", minimum=1)
        )
        error = read[1] if read else None
        told = [*problems, *(error.problems if error else ())]
        return [*wrong, *ill_told(told), *(f"nowhere: {p}" for p in told if name not in p.where)]

    assert_nothing_is_wrong((seed, wrong_with_table(seed)) for seed in chosen)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_damaged_table_loads_or_is_told_where_it_is_damaged(kind: str) -> None:
    check_tables(kind, range(20))


@pytest.mark.long
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_thousand_damaged_tables(kind: str) -> None:
    check_tables(kind, range(334))


# Job documents


def capitals() -> str:
    return (ROOT / "configs/capitals/job.yaml").read_text()


def legal_jobs() -> list[str]:
    """The documents to damage: the worked examples, one as JSON, and one that leaves no key out."""
    examples = [path.read_text() for path in sorted((ROOT / "configs").glob("*/job.yaml"))]
    local = [re.sub(r"hf://\S*", "train.jsonl", text) for text in examples]
    job = parse_job(capitals(), name="capitals", folder=Path())
    whole = dump_job(
        job.model_copy(update={"metadata": {"note": "é"}, "training_file": "train.jsonl"})
    )
    return [*local, json.dumps(job.model_dump(mode="json"), indent=1), whole, whole]


def wrong_with_job(case: documents.DamagedJob) -> list[str]:
    """What is wrong with the answers to one damaged job."""
    path = Path("job.yaml")
    path.write_bytes(case.content)
    job, problems, wrong = answer_of(lambda: load_job(path, case.overrides))
    lines = re.split(b"\r\n|[\r\n]|\xc2\x85|\xe2\x80[\xa8\xa9]", case.content)
    wrong += [f"nowhere: {problem}" for problem in problems if not stands_in_job(problem, lines)]
    if job is not None and parse_job(dump_job(job), name="dump", folder=Path()) != job:
        wrong.append("the dump of the job is another job")
    return wrong + answer_of(lambda: load_sound_job(path, case.overrides))[2]


def stands_in_job(problem: Problem, lines: Sequence[bytes]) -> bool:
    """Whether a problem of a document is told at a character of it, at an override, or is one of all of it."""
    if problem.where == "job.yaml" or problem.where.startswith("override "):
        return True
    place = re.fullmatch(r"job\.yaml:(\d+):(\d+)", problem.where)
    if place is None or not 1 <= int(place[1]) <= len(lines) + 1:
        return False
    line = b"".join(lines[int(place[1]) - 1 : int(place[1])])
    is_widened = (
        line.strip()[:1] == b"{" and not line.isascii()
    )  # odd characters of JSON are escaped
    return 1 <= int(place[2]) <= len(line) + 2 or is_widened


def check_job_documents(mutation: str, chosen: Iterable[int]) -> None:
    sources = legal_jobs()
    assert_nothing_is_wrong(
        (seed, wrong_with_job(documents.damaged_job(mutation, seed, sources))) for seed in chosen
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mutation", documents.MUTATIONS)
def test_a_damaged_job_loads_or_is_told_where_it_is_damaged(mutation: str) -> None:
    check_job_documents(mutation, range(NUM_FEW))


@pytest.mark.long
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mutation", documents.MUTATIONS)
def test_two_thousand_damaged_jobs(mutation: str) -> None:
    check_job_documents(mutation, seeds(NUM_JOB_DOCUMENTS, documents.MUTATIONS))


@pytest.mark.usefixtures("folder")
def test_what_is_damaged_is_legal_before() -> None:
    for text in legal_jobs():
        assert wrong_with_job(documents.DamagedJob(text.encode())) == []
        load_job(Path("job.yaml"))
    for settings in SETTINGS:
        assert all(intact_examples(lines, settings) for lines in legal_rows())


# What is no file


def make_odd(kind: str) -> str:
    """The path of something odd that stands where a file is wanted."""
    if kind == "a folder":
        os.mkdir("odd")
    elif kind == "a pipe":
        os.mkfifo("odd")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("odd")
    elif kind == "a loop of links":
        os.symlink("odd", "odd")
    elif kind == "a folder that must not be searched":
        os.mkdir("odd", mode=0o000)
    elif kind == "a file that must not be read":
        os.close(os.open("odd", os.O_CREAT, 0o000))
    paths = {
        "a device": "/dev/zero",
        "memory that cannot be read": "/proc/self/mem",
        "a NUL in the name": "a\0b",
        "a NUL in a home's name": "~a\0b",
        "a home of nobody": "~nobody-here/x",
        "a line break in the name": "a\n\x1b[31mb",
        "bytes that are no UTF-8 in the name": "a\udc80b",
        "a name that is too long": "a" * 5_000,
        "a path that is too long": "a/" * 50_000,
    }
    return paths.get(kind, "odd")


ODD_FILES = (
    "a folder",
    "a pipe",
    "a socket",
    "a device",
    "a loop of links",
    "memory that cannot be read",
    "a folder that must not be searched",
    "a file that must not be read",
    "a NUL in the name",
    "a NUL in a home's name",
    "a home of nobody",
    "a line break in the name",
    "bytes that are no UTF-8 in the name",
    "a name that is too long",
    "a path that is too long",
)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_data_file_is_told(kind: str) -> None:
    path = make_odd(kind)
    _, problems, wrong = answer_of(
        lambda: readable_examples(path, DataSettings(), field="training_file", minimum=1)
    )
    assert wrong == [] and len(problems) == 1
    assert problems[0].what.startswith("training_file: ")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_job_file_is_told(kind: str) -> None:
    path = make_odd(kind)
    _, problems, wrong = answer_of(lambda: load_sound_job(Path(path)))
    assert wrong == [] and len(problems) == 1


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("key", ["training_file", "model", "engine.model.chat_template"])
def test_what_is_no_file_may_stand_in_a_job(kind: str, key: str) -> None:
    path = json.dumps(make_odd(kind))
    assert wrong_with_job(documents.DamagedJob(capitals().encode(), (f"{key}={path}",))) == []


# The command


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mutation", [*rows.MUTATIONS[::2], *documents.MUTATIONS])
def test_the_command_tells_it_in_lines_and_exits_with_2(
    mutation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides: tuple[str, ...] = ()
    if mutation in rows.MUTATIONS:
        content = rows.damaged_rows(mutation, 0, legal_rows()).content
        Path("train.jsonl").write_bytes(content)
    else:
        case = documents.damaged_job(mutation, 0, legal_jobs())
        Path("job.yaml").write_bytes(case.content)
        overrides = case.overrides
    # a fault more, so that nothing is sound and no model is loaded
    assert main(["validate", "--json", "job.yaml", "--", *overrides, "sede=1"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["problems"]
    assert "Traceback" not in told.err
    assert all(line.startswith("error: ") for line in told.err.split("\n")[:-1])
