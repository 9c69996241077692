"""The one writer: what stands in the files, and how it goes back."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from rft.errors import RunError
from rft.runs.layout import RunFolder, steps_in
from rft.runs.lock import is_held
from rft.runs.results import results_columns
from rft.runs.tables import EVALUATION_SCHEMA, SAMPLES_SCHEMA, read_table
from rft.runs.writer import RunWriter

PARTS = [("all", "multi"), ("code", "python")]


def completion(**fields: object) -> dict[str, object]:
    return {
        "row": 0,
        "sample": 0,
        "prompt": "<user>hi",
        "messages": [{"role": "user", "content": "hi"}],
        "completion": " hello",
        "output_text": "hello",
        "finish_reason": "stop",
        "num_tokens": 2,
        "reward": 0.5,
        "sub_rewards": {"code": None},
        "errors": {"code": {"other_error": "why"}},
        "item": {"answer": 1},
    } | fields


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a-1"


def writer(folder: Path) -> RunWriter:
    return RunWriter(folder, PARTS, clock=lambda: 1000.9)


def test_events_have_the_shape_of_the_product(folder: Path) -> None:
    with writer(folder) as run:
        run.event("info", "Created\nfine-tuning job")
        run.event("warn", "lone \ud800", type="metrics", data={"step": 1, "x": float("nan")})
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]
    assert lines == [
        {
            "object": "fine_tuning.job.event",
            "id": "ftevent-1",
            "created_at": 1000,
            "level": "info",
            "message": "Created\nfine-tuning job",
            "type": "message",
            "data": None,
        },
        {
            "object": "fine_tuning.job.event",
            "id": "ftevent-2",
            "created_at": 1000,
            "level": "warn",
            "message": "lone \ud800",
            "type": "metrics",
            "data": {"step": 1, "x": None},
        },
    ]
    with writer(folder) as run:
        run.event("info", "again")
    assert '"ftevent-3"' in (folder / "events.jsonl").read_text().splitlines()[2]


def test_metrics_never_hold_nan(folder: Path) -> None:
    with writer(folder) as run:
        run.metrics({"step": 0, "a": float("inf"), "b": [1.5, float("nan")]})
        with pytest.raises(ValueError, match="needs its step"):
            run.metrics({"a": 1})
    assert (folder / "metrics.jsonl").read_text() == '{"step": 0, "a": null, "b": [1.5, null]}\n'


def test_the_columns_of_the_results() -> None:
    columns = results_columns(PARTS)
    assert columns[:3] == ("step", "train_mean_reward", "full_valid_mean_reward")
    assert columns[12:17] == (
        "total_duration",
        "scores/graders/multi/all/train_reward_mean",
        "scores/graders/multi/all/valid_reward_mean",
        "scores/graders/python/code/train_reward_mean",
        "scores/graders/python/code/valid_reward_mean",
    )
    errors = columns[17:]
    assert len(errors) == 4 * 3 + 4 * 5
    assert errors[0] == "errors/graders/multi/all/errors/train_sample_parse_error_mean"
    assert errors[-1] == "errors/graders/python/code/errors/valid_python_grader_runtime_error_count"


def test_results_are_blank_where_nothing_was_measured(folder: Path) -> None:
    with RunWriter(folder, []) as run:
        run.results({"step": 1, "train_mean_reward": 0.25, "pg_loss_sum": float("nan")})
        with pytest.raises(ValueError, match="'train_reward'"):
            run.results({"step": 1, "train_reward": 0.25})
    header, line = (folder / "results.csv").read_text().splitlines()
    assert header == ",".join(results_columns([]))
    assert line == "1,0.25" + "," * 11


def test_samples_and_evaluations_are_parquet_with_a_fixed_schema(folder: Path) -> None:
    with writer(folder) as run:
        row = completion(ordinal=7, advantage=None, reward=float("nan"), output_text="a\ud800b\x00")
        run.samples(3, [row])
        run.evaluation(0, [])
        with pytest.raises(ValueError, match="'speed'"):
            run.samples(4, [completion(speed=1)])
    path = RunFolder(folder).samples_file(3)
    assert parquet.read_schema(path).equals(SAMPLES_SCHEMA)
    assert parquet.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    (read,) = read_table(path)
    assert read == row | {"step": 3, "reward": None, "output_text": "a\ufffd\ufffd\ufffdb\x00"}
    evaluation = RunFolder(folder).evaluation_file(0)
    assert parquet.read_schema(evaluation).equals(EVALUATION_SCHEMA)
    assert read_table(evaluation) == []


def test_only_the_newest_samples_are_kept(folder: Path) -> None:
    with writer(folder) as run:
        for step in range(1, 204):
            run.samples(step, [])
    assert steps_in(folder / "samples", ".parquet") == list(range(4, 204))


def test_evaluations_are_bounded_but_for_the_first_and_the_kept(folder: Path) -> None:
    with writer(folder) as run:
        for step in range(103):
            run.evaluation(step, [], keep={2, 3})
    assert steps_in(folder / "evaluations", ".parquet") == [0, 2, 3, *range(6, 103)]


def test_the_state_carries_over_what_is_not_given(folder: Path) -> None:
    with writer(folder) as run:
        run.status("running", step=3, total_steps=9, best={"step": 2, "valid_reward_mean": 0.5})
        run.status("failed", error={"message": "no"}, message="why")
        run.status("running", step=4)
    state = json.loads((folder / "state.json").read_text())
    del state["pid"], state["host"]
    assert state == {
        "status": "running",
        "step": 4,
        "total_steps": 9,
        "created_at": 1000,
        "error": None,
        "best": {"step": 2, "valid_reward_mean": 0.5},
        "message": None,
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", "state.json")
    }


def take_step(run: RunWriter, step: int) -> None:
    run.event("info", f"step {step}")
    run.samples(step, [completion(row=step)])
    run.evaluation(step, [completion(row=step)])
    run.metrics({"step": step, "train_reward_mean": step / 7})
    run.results({"step": step})


def test_rewinding_gives_the_files_of_a_run_never_interrupted(folder: Path, tmp_path: Path) -> None:
    with writer(folder) as run:
        take_step(run, 1)
        positions = run.positions()
        take_step(run, 2)
        run.samples(3, [])
    # a crash in the middle of a line
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 3, "tra')
    (folder / "samples" / ".tmp-step_4.parquet").write_bytes(b"half")
    with writer(folder) as run:
        run.rewind(positions)
        take_step(run, 2)
        take_step(run, 3)
    with writer(tmp_path / "straight") as run:
        for step in (1, 2, 3):
            take_step(run, step)
    assert contents(folder) == contents(tmp_path / "straight")


def test_rewinding_to_nothing_allows_other_graders(folder: Path) -> None:
    with writer(folder) as run:
        take_step(run, 1)
        positions = run.positions()
    with RunWriter(folder, []) as run, pytest.raises(RunError, match="other graders"):
        run.rewind(positions)
    with RunWriter(folder, []) as run:
        run.rewind({})
        assert (folder / "results.csv").read_text() == ",".join(results_columns([])) + "\n"
        assert (folder / "metrics.jsonl").read_bytes() == b""
        assert steps_in(folder / "samples", ".parquet") == []


def test_lines_lost_since_a_state_are_reported(folder: Path) -> None:
    with writer(folder) as run:
        take_step(run, 1)
        positions = run.positions()
    (folder / "metrics.jsonl").write_bytes(b"")
    with writer(folder) as run:
        run.rewind(positions)
    assert "lines were lost from metrics" in (folder / "events.jsonl").read_text()


HOLD = """
import sys, time
from pathlib import Path
from rft.runs.writer import RunWriter
with RunWriter(Path(sys.argv[1]), []):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(folder: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"in use by process {holder.pid} on \S+ since \d{{4}}"):
            writer(folder)
        assert is_held(folder / "lock")
    finally:
        holder.kill()
        holder.wait()
    assert not is_held(folder / "lock")
    writer(folder).close()
