"""A job whose every fault is told at once: document, grader, rows, and templates between them."""

import json
from pathlib import Path

import pytest

from rft.cli.main import main
from rft.data import job_warnings, load_all_rows, load_sound_job
from rft.errors import DataError, JobError, NotYetError, UserError
from rft.job import load_job, read_job

JOB = """\
model: m
training_file: train.jsonl
validation_file: valid.jsonl
method:
  type: reinforcement
  reinforcement:
    grader:
      type: multi
      graders:
        exact:
          type: string_check
          name: exact
          input: "{{ sample.output_text }}"
          reference: "{{ item.answer }}"
          operation: eq
        code:
          type: python
          source: "def grade(sample, item): return 1.0"
      calculate_output: "exact + code"
"""
ROW = {"messages": [{"role": "user", "content": "2+2?"}], "answer": "4"}


def write(folder: Path, job: str = JOB, train: str = "", valid: str = "") -> Path:
    (folder / "train.jsonl").write_text(train or "\n".join([json.dumps(ROW)] * 10))
    (folder / "valid.jsonl").write_text(valid or json.dumps(ROW))
    (folder / "job.yaml").write_text(job)
    return folder / "job.yaml"


def changed(*changes: tuple[str, str]) -> str:
    job = JOB
    for old, new in changes:
        assert job.count(old) == 1, old
        job = job.replace(old, new)
    return job


def told(path: Path, *overrides: str) -> list[str]:
    """The problems without the path of the job's folder and without remedies."""
    with pytest.raises(UserError) as raised:
        load_sound_job(path, overrides)
    problems = raised.value.problems
    assert all(problem.where for problem in problems)
    return [f"{p.what} ({p.where})".replace(f"{path.parent}/", "") for p in problems]


def test_a_sound_job_is_the_job(tmp_path: Path) -> None:
    path = write(tmp_path)
    job = load_sound_job(path, ["seed=3"])
    assert job == load_job(path, ["seed=3"])
    train, valid = load_all_rows(job)
    assert (len(train), len(valid)) == (10, 1)


GRADER = "method.reinforcement.grader"


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    job = changed(
        ("model: m", "model: m\nsede: 3"),
        ("operation: eq", "operation: equals"),
        ("{{ sample.output_text }}", "{{ sample.output_text"),
        ("item.answer", "item.answr"),
        ("def grade(sample, item): return 1.0", "import no_such"),
        ("exact + code", "exact + cod"),
    )
    path = write(tmp_path, job, train="\n".join([*[json.dumps(ROW)] * 10, "{"]), valid="[]")
    assert told(path, "engine.rollout.top_p=2") == [
        "unknown key `sede` (job.yaml:2:1)",
        f"{GRADER}.graders.exact.input: `{{{{ sample.output_text` without `}}}}` is not a template "
        "expression (job.yaml:14:18)",
        f"{GRADER}.graders.exact.operation is the text 'equals' (job.yaml:16:22)",
        f"{GRADER}.graders.code.source: the source defines no function grade at its top level "
        "(job.yaml:19:19)",
        f"{GRADER}.graders.code.source: line 1: the package no_such is not installed "
        "(job.yaml:19:19)",
        f"{GRADER}.calculate_output: 'cod' at column 9 is not one of the graders (job.yaml:20:25)",
        "engine.rollout.top_p is 2 (override engine.rollout.top_p=2)",
        "not valid JSON: Expecting property name enclosed in double quotes at column 2 "
        "(train.jsonl:11)",
        *(
            f"{{{{ item.answr }}}} of {GRADER}.graders.exact.reference: item has no 'answr', "
            f"did you mean 'answer'? (train.jsonl row {row})"
            for row in (1, 2, 3)
        ),
        f"{{{{ item.answr }}}} is missing from 7 more rows ({GRADER}.graders.exact.reference)",
        "the row is a list (valid.jsonl:1)",
    ]


def test_the_command_line_tells_them_in_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = changed(("item.answer", "item.answr"), ("exact + code", "exact +"))
    path = write(tmp_path, job)
    for command in (["validate", str(path)], ["train", str(path)], ["evaluate", "base", str(path)]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert len(lines) == 6 and "Traceback" not in captured.err
        assert "unexpected end at column 8 of 'exact +'" in lines[0]
        assert all("item has no 'answr'" in line for line in (*lines[1:4], lines[5]))


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        # what stands in for a fault makes none of its own
        ((("type: string_check", "type: string_chek"),), 0),
        ((("          operation: eq\n", ""),), 0),
        ((("          name: exact\n", ""),), 0),
        ((("calculate_output", "calculate_outpt"),), 1),
        ((("      graders:", "      gradrs:"),), 1),
        ((("      type: multi", "      type: [multi]"),), 0),
        (
            (
                (
                    "        exact:\n          type: string_check",
                    "        exact:\n          type: multi",
                ),
            ),
            0,
        ),
        ((("training_file: train", "training_fil: train"),), 1),
        ((("validation_file: valid.jsonl\n", ""),), 0),
        ((("  type: reinforcement\n", "  type: dpo\n"),), 0),
        ((('source: "def grade(sample, item): return 1.0"', "source: 3"),), 0),
        ((("      calculate_output", "      x: 1\n      calculate_output"),), 0),
        ((("    grader:\n", "    grader: []\n    grader_:\n"),), 1),
    ],
)
def test_a_fault_of_the_document_makes_no_others(
    changes: tuple[tuple[str, str], ...], more: int, tmp_path: Path
) -> None:
    assert len(told(write(tmp_path, changed(*changes)))) == 1 + more


def test_faults_of_parts_that_remain_are_told_beside_a_part_of_unknown_type(tmp_path: Path) -> None:
    job = changed(("type: python", "type: pyton"), ("item.answer", "item.b"), ("+ code", "+ coed"))
    assert told(write(tmp_path, job, train=json.dumps(ROW)))[:3] == [
        f"{GRADER}.graders.code.type is the text 'pyton', which is no grader type here "
        "(job.yaml:17:17)",
        f"{GRADER}.calculate_output: 'coed' at column 9 is not one of the graders (job.yaml:19:25)",
        "training_file has 1 example(s), but must have at least 10 (train.jsonl)",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        # each leaves the template to be checked against the rows
        (("calculate_output", "calculate_outpt"),),
        (('"exact + code"', "3"),),
        (("operation: eq", "operation: [eq]"),),
        (("          name: exact\n", "          name: 3\n"),),
        (('input: "{{ sample.output_text }}"', "inputt: x"),),
        (("type: python", "type: endpoint"), ("source:", "headers:")),
        (("type: python", "typ: python"),),
        (('source: "def grade(sample, item): return 1.0"', "source: [1]"),),
        (
            ("string_check", "text_similarity"),
            ("operation: eq", "evaluation_metric: rouge"),
        ),
    ],
)
def test_what_is_whole_is_checked_beside_what_is_not(
    changes: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    path = write(tmp_path, changed(("item.answer", "item.answr"), *changes))
    *_, last = told(path)
    assert last.startswith(f"{{{{ item.answr }}}} of {GRADER}.graders.exact.reference: item has no")
    assert last.endswith("(valid.jsonl row 1)")


@pytest.mark.parametrize(
    "job",
    [
        JOB[: JOB.index("method:")],
        JOB[: JOB.index("  reinforcement:\n")],
        JOB[: JOB.index("    grader:")],
    ],
)
def test_the_rows_are_checked_where_there_is_no_grader(job: str, tmp_path: Path) -> None:
    missing, row = told(write(tmp_path, job, valid="[]"))
    assert "` is missing (job.yaml" in missing or "is empty (null)" in missing
    assert row == "the row is a list (valid.jsonl:1)"


def test_data_are_left_alone_when_the_document_does_not_say_how_to_read_them(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, train="{}", valid="{}")
    for override in (
        "engine.data.mesages=x",
        "engine.data.messages=3",
        "engine.data=3",
        "engine=3",
    ):
        assert len(told(path, override)) == 1
    assert len(told(path, "seed=-1")) == 3
    assert len(told(path, "training_file=3")) == 2


def test_files_that_are_missing_are_told_beside_faults_of_the_document(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert told(path, "seed=-1") == [
        "seed is -1 (override seed=-1)",
        "training_file: no such file (train.jsonl)",
    ]


def test_what_is_only_not_built_is_a_not_yet_error(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(NotYetError):
        load_sound_job(path, ["engine.model.dtype=float16"])
    with pytest.raises(JobError) as raised:
        load_sound_job(path, ["engine.model.dtype=float16", "validation_file=no.jsonl"])
    assert not isinstance(raised.value, NotYetError)


def test_output_json_is_legal_for_a_grader_and_refused_for_a_job(tmp_path: Path) -> None:
    job = load_sound_job(write(tmp_path, changed(("output_text", "output_json.x"))))
    with pytest.raises(JobError, match="only with a response_format that asks for JSON"):
        load_all_rows(job)


def test_all_faults_of_the_data_are_told_at_once(tmp_path: Path) -> None:
    rows = "\n".join([*[json.dumps(ROW)] * 10, "{}", json.dumps({**ROW, "answer": 3}), "x"])
    other = json.dumps({"messages": ROW["messages"]})
    with pytest.raises(DataError) as raised:
        load_all_rows(load_job(write(tmp_path, train=rows, valid=other)))
    problems = [problem.where.replace(f"{tmp_path}/", "") for problem in raised.value.problems]
    assert problems == ["train.jsonl:11", "train.jsonl:13", "valid.jsonl row 1"]


def test_what_both_files_have_in_common_is_told_once(tmp_path: Path) -> None:
    path = write(tmp_path, valid=json.dumps(ROW), train="\n".join([json.dumps(ROW)] * 10 + ["x"]))
    template = "engine.data.fields.prompt={{ a"
    assert len(told(path, "seed=-1", template)) == 2
    assert len(told(path, "seed=-1", "validation_file=train.jsonl")) == 2
    with pytest.raises(DataError) as raised:
        load_all_rows(load_job(path, ["validation_file=train.jsonl"]))
    assert len(raised.value.problems) == 1


def test_a_document_that_cannot_be_read_has_no_reading(tmp_path: Path) -> None:
    for text in ("", "- a", "a: b: c", "\tx"):
        with pytest.raises(JobError):
            read_job(write(tmp_path, text))


def test_a_reading_says_what_the_document_does_not_say(tmp_path: Path) -> None:
    reading = read_job(write(tmp_path), ["engine.data.messages=3", "seed=-1"])
    assert reading.job is not None and reading.job.seed == 0
    assert not reading.says("engine", "data") and not reading.says("seed")
    assert reading.says("training_file") and reading.says("engine", "rollout")


def test_a_similarity_model_is_found_from_the_folder_of_the_job(tmp_path: Path) -> None:
    cosine = ("string_check", "text_similarity"), ("operation: eq", "evaluation_metric: cosine")
    path = write(tmp_path, changed(*cosine))
    override = "engine.grading.similarity_model"
    for name in ("./embedder", "embedder"):
        (tmp_path / "embedder").mkdir(exist_ok=True)
        problems = [line for line in told(path, f"{override}={name}") if "similarity" in line]
        place = f"{override}: the similarity model 'embedder' holds no model (override"
        assert problems == [f"{place} {override}={name})"]
    (tmp_path / "embedder" / "modules.json").write_text("[]")
    reading = read_job(path, [f"{override}=embedder"])
    assert reading.job is not None
    assert reading.job.grading_settings.similarity_model == str(tmp_path / "embedder")


def test_warnings_of_rows_and_of_the_grader_stand_together(tmp_path: Path) -> None:
    job = load_sound_job(
        write(
            tmp_path,
            changed(("return 1.0", "return eval(sample['output_text'])")),
            valid=json.dumps({"messages": [{"role": "user", "content": "other"}], "answer": None}),
        )
    )
    train, valid = load_all_rows(job)
    repeated, runs_text, null = job_warnings(job, train, valid)
    assert repeated == "training_file repeats 9 prompt(s)"
    assert runs_text.startswith("code: source line 1: eval(…) runs text inside grade")
    assert null == (
        "{{ item.answer }} of grader.graders.exact.reference is null in 1 of 11 rows, "
        "where it is rendered as `null`"
    )


def test_a_grader_of_calls_needs_rows_with_tools(tmp_path: Path) -> None:
    reads = changed(("sample.output_text", "sample.output_tools[0].function.name"))
    tooled = {**ROW, "tools": [{"type": "function", "function": {"name": "f"}}]}
    for valid, expected in ((ROW, 1), (tooled, 0)):
        job = load_sound_job(write(tmp_path, reads, valid=json.dumps(valid)))
        warnings = [text for text in job_warnings(job, *load_all_rows(job)) if "tools" in text]
        assert len(warnings) == expected
    job = load_sound_job(write(tmp_path))
    assert not [text for text in job_warnings(job, *load_all_rows(job)) if "tools" in text]
