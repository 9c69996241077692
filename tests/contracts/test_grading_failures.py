"""What a person sees of graders that fail: `rft runs errors`, and a job that pauses on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rft.cli.main import main
from rft.cli.summary import program, summary_lines
from rft.runs.reader import open_run
from rft.runs.results import results_columns
from rft.runs.writer import RunWriter
from tests.jobs import write_job
from tests.launch import run_ranks
from tests.tiny import save_tiny_model

TRACEBACK = """\
Traceback (most recent call last):
  File "grader.py", line 2, in grade
    return 1 / int(sample["output_text"])
               ~~~^^^^^^^^^^^^^^^^^^^^^^^
ValueError: invalid literal for int() with base 10: '{text}'
output:
trying\x1b[2J {text}
"""
RUNTIME = "python_grader_runtime_error"


def row(number: int, errors: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    return {
        "row": number,
        "sample": 0,
        "prompt": "p",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "completion": f"answer {number}",
        "output_text": f"answer\x1b[31m {number}",
        "finish_reason": "stop",
        "num_tokens": 3,
        "reward": 0.25 if not errors else None,
        "sub_rewards": {},
        "errors": errors,
        "item": {"key": number},
    }


def broken(text: str) -> dict[str, dict[str, str]]:
    return {"code": {RUNTIME: TRACEBACK.format(text=text)}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a-1"
    with RunWriter(folder, [("both", "multi")]) as writer:
        formula = {"both": {"other_error": "calculate_output '1 / code': division by zero"}}
        writer.samples(1, [row(number, broken(f"x{number}")) for number in range(9)] + [row(9, {})])
        writer.evaluation(1, [row(0, formula), row(1, {}), row(2, {})])
    return folder


def test_a_cause_is_shown_once_with_its_cases(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "errors", "a-1"]) == 0
    assert (
        capsys.readouterr().out
        == """\
grading errors in 9 of 10 training completions and 1 of 3 validation completions

grader  kind                         train   rate  valid   rate
code    python_grader_runtime_error      9  90.0%      0   0.0%
both    other_error                      0   0.0%      1  33.3%

code: python_grader_runtime_error, 9 times
  step 1 train row 0 sample 0, ungraded
    prompt  question 0
    │ answer 0
    Traceback (most recent call last):
      File "grader.py", line 2, in grade
        return 1 / int(sample["output_text"])
                   ~~~^^^^^^^^^^^^^^^^^^^^^^^
    ValueError: invalid literal for int() with base 10: 'x0'
    output:
    trying x0
  step 1 train row 1 sample 0, ungraded
    prompt  question 1
    │ answer 1
    ValueError: invalid literal for int() with base 10: 'x1'
  step 1 train row 2 sample 0, ungraded
    prompt  question 2
    │ answer 2
    ValueError: invalid literal for int() with base 10: 'x2'
  6 more: step 1 train row 3 sample 0; step 1 train row 4 sample 0; step 1 train row 5 sample 0; \
step 1 train row 6 sample 0; step 1 train row 7 sample 0; …

both: other_error, once
  step 1 valid row 0 sample 0, ungraded
    prompt  question 0
    │ answer 0
    calculate_output '1 / code': division by zero
"""
    )


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["runs", "errors", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)  # type: ignore[no-any-return]


def test_a_program_gets_a_page_of_causes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = document(capsys, "a-1", "--limit", "1")
    assert (page["object"], page["has_more"]) == ("list", True)
    assert page["num_completions"] == {"train": 10, "valid": 3}
    assert page["summary"] == [
        {
            "grader": "code",
            "kind": RUNTIME,
            "train_count": 9,
            "valid_count": 0,
            "train_mean": 0.9,
            "valid_mean": 0.0,
        },
        {
            "grader": "both",
            "kind": "other_error",
            "train_count": 0,
            "valid_count": 1,
            "train_mean": 0.0,
            "valid_mean": 1 / 3,
        },
    ]
    (cause,) = page["data"]
    assert (cause["grader"], cause["kind"], cause["count"]) == ("code", RUNTIME, 9)
    assert len(cause["places"]) == 9 and len(cause["examples"]) == 3
    assert cause["places"][8] == {"step": 1, "split": "train", "row": 8, "sample": 0}
    example = cause["examples"][1]
    assert example["details"] == TRACEBACK.format(text="x1")
    assert (example["split"], example["row"], example["item"]) == ("train", 1, {"key": 1})
    assert example["completion"] == "answer 1"


def test_all_shows_every_failing_sample_in_full(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "\n".join(f"line {number}" for number in range(20))
    with RunWriter(run.parent / "b-1", [("both", "multi")]) as writer:
        writer.samples(1, [row(n, broken(f"x{n}")) | {"output_text": long} for n in range(5)])
    assert main(["runs", "errors", "b-1", "--all"]) == 0
    shown = capsys.readouterr().out
    samples = shown.split("\n\n")[2:]
    assert len(samples) == 5
    answer = "".join(f"    │ line {number}\n" for number in range(20))
    assert samples[4] == (
        "step 1 train row 4 sample 0, ungraded\n"
        '    item    {"key": 4}\n'
        "    prompt  question 4\n"
        f"{answer}"
        "  code: python_grader_runtime_error\n"
        "    Traceback (most recent call last):\n"
        '      File "grader.py", line 2, in grade\n'
        '        return 1 / int(sample["output_text"])\n'
        "                   ~~~^^^^^^^^^^^^^^^^^^^^^^^\n"
        "    ValueError: invalid literal for int() with base 10: 'x4'\n"
        "    output:\n"
        "    trying x4\n"
    )


def test_a_program_gets_every_failing_sample(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = document(capsys, "a-1", "--all", "--limit", "1")
    assert [(entry["split"], entry["row"]) for entry in page["data"]] == [
        *(("train", number) for number in range(9)),
        ("valid", 0),
    ]
    assert page["data"][8]["errors"] == broken("x8") and page["data"][8]["item"] == {"key": 8}
    assert page["has_more"] is False and page["num_completions"] == {"train": 10, "valid": 3}
    (entry,) = document(capsys, "a-1@1", "--all", "--kind", "other_error")["data"]
    assert (entry["split"], entry["completion"]) == ("valid", "answer 0")
    assert main(["runs", "errors", "a-1", "--all", "--step", "4"]) == 2


def test_one_kind_and_one_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cause,) = document(capsys, "a-1", "--kind", "other_error")["data"]
    assert cause["places"] == [{"step": 1, "split": "valid", "row": 0, "sample": 0}]
    assert len(document(capsys, "a-1@1")["data"]) == 2
    assert main(["runs", "errors", "a-1", "--kind", "sample_parse_error"]) == 0
    assert capsys.readouterr().out == (
        "sample_parse_error in 0 of 10 training completions and 0 of 3 validation completions\n"
    )
    assert main(["runs", "errors", "a-1", "--step", "4"]) == 2
    assert capsys.readouterr().err == (
        "error: the run keeps neither samples nor an evaluation of step 4 (runs/a-1) → "
        "take one of the steps 1\n"
    )


def test_a_run_that_keeps_nothing_yet(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter(tmp_path / "runs" / "b-1", []):
        pass
    assert main(["runs", "errors", "b-1"]) == 0
    assert capsys.readouterr().out == "the run keeps no completions yet\n"


GRADER = """\
      type: python
      name: letters
      source: |
        from pathlib import Path


        def grade(sample, item):
            bonus = float(Path({bonus!r}).read_text())
            text = sample["output_text"].lower()
            return bonus + sum(letter in "aeiou" for letter in text) / max(1, len(text))
"""
UNSAFE = "engine.grading.python.sandbox=unsafe-local"


def job_that_needs(bonus: Path, folder: Path) -> Path:
    """A job whose grader reads a file that may be missing."""
    job_file = write_job(folder, save_tiny_model(folder / "model"))
    text = job_file.read_text()
    start, end = text.index("      type: python"), text.index("    hyperparameters:")
    job_file.write_text(text[:start] + GRADER.format(bonus=str(bonus)) + text[end:])
    return job_file


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())  # type: ignore[no-any-return]


def last_event(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "events.jsonl").read_text().splitlines()[-1])  # type: ignore[no-any-return]


def test_a_job_that_fails_at_the_start_pauses_and_begins_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job_file, folder = job_that_needs(tmp_path / "bonus", tmp_path / "job"), Path("runs/tiny-1")
    assert main(["train", str(job_file), UNSAFE]) == 75
    shown = capsys.readouterr().out
    assert f"next\n  {program()} runs errors tiny-1\n  {program()} runs resume tiny-1\n" in shown

    state = state_of(folder)
    assert (state["status"], state["step"]) == ("paused", 0)
    reason, *offenders = state["message"].split("\nvalidation row ")
    assert reason == (
        "paused after step 0: 6 of 6 validation grades failed, more than "
        "engine.grading.error_pause_rate = 0.5 allows: 6 with python_grader_runtime_error in letters "
        "(runs/tiny-1) → look at `rft runs errors runs/tiny-1`, and resume once the grader has what "
        "it needs (the step is then done again; a changed grader takes a copy of the run, with --fork)"
    )
    assert [text.partition(":")[0] for text in offenders] == [f"{row} sample 0" for row in range(3)]
    for text in offenders:
        assert "\n  letters: python_grader_runtime_error\n" in text
        assert "FileNotFoundError: [Errno 2] No such file or directory:" in text
    assert last_event(folder)["message"] == state["message"]
    assert last_event(folder)["level"] == "warn"

    page = document(capsys, "tiny-1")
    assert [(entry["count"], entry["kind"]) for entry in page["data"]] == [(6, RUNTIME)]
    assert page["data"][0]["examples"][0]["details"].startswith(
        'Traceback (most recent call last):\n  File "grader.py", line 5, in grade\n'
        "    bonus = float(Path("
    )

    (tmp_path / "bonus").write_text("1")
    assert main(["train", str(job_file), UNSAFE, "--resume"]) == 0
    assert state_of(folder)["status"] == "succeeded"
    capsys.readouterr()
    assert document(capsys, "tiny-1")["data"] == []


def comparable(folder: Path) -> list[dict[str, Any]]:
    """The metrics without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith("timing/")}
        for line in lines
    ]


def test_a_step_whose_grading_failed_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bonus, folder = tmp_path / "bonus", Path("runs/tiny-1")
    job_file = job_that_needs(bonus, tmp_path / "job")
    arguments = ["train", str(job_file), UNSAFE, "engine.evaluation.at_start=false"]
    bonus.write_text("1")
    assert main([*arguments, "engine.budget.steps=2"]) == 75
    bonus.unlink()
    assert main([*arguments, "--resume"]) == 75
    state = state_of(folder)
    assert (state["status"], state["step"]) == ("paused", 2)
    assert state["message"].startswith("paused after step 3: 16 of 16 training grades failed, ")
    again = "(the step is then done again; a changed grader takes a copy of the run, with --fork)\n"
    assert again in state["message"]
    assert state["message"].count("FileNotFoundError") == 3
    failed = comparable(folder)[2]
    assert (failed["step"], failed[f"errors/train_{RUNTIME}_mean"]) == (3, 1.0)
    capsys.readouterr()
    (cause,) = document(capsys, "tiny-1")["data"]
    assert {place["step"] for place in cause["places"]} == {3} and cause["count"] == 16
    header, *_, last = (folder / "results.csv").read_text().splitlines()
    columns = dict(zip(header.split(","), last.split(","), strict=True))
    assert tuple(columns) == results_columns([("letters", "python")])
    prefix = f"errors/graders/python/letters/errors/train_{RUNTIME}"
    assert (columns[f"{prefix}_count"], columns[f"{prefix}_mean"]) == ("16", "1.0")

    bonus.write_text("1")
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--run-dir", "runs/never-paused"]) == 0
    assert comparable(folder) == comparable(Path("runs/never-paused"))
    assert not any(
        "runs errors" in line for line in summary_lines(open_run("tiny-1", Path("runs")))
    )


@pytest.mark.long
def test_two_ranks_pause_together(tmp_path: Path) -> None:
    job_file, folder = job_that_needs(tmp_path / "bonus", tmp_path / "job"), tmp_path / "run"
    done = run_ranks(
        2, "rft", "train", str(job_file), UNSAFE, "--run-dir", str(folder), cwd=tmp_path
    )
    assert done.returncode != 0
    state = state_of(folder)
    assert state["status"] == "paused", done.stderr[-2000:]
    assert "6 of 6 validation grades failed" in state["message"]
    assert "Traceback (most recent call last)" not in state["message"]
