"""The one writer: what stands in the files, and how it goes back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as parquet
import pytest

from rft.errors import DiskError, RunError
from rft.failpoints import VARIABLE, _visits
from rft.runs.layout import RunFolder, steps_in
from rft.runs.lock import is_held
from rft.runs.reader import open_run
from rft.runs.results import results_columns
from rft.runs.tables import EVALUATION_SCHEMA, SAMPLES_SCHEMA, read_table
from rft.runs.writer import RESERVE_BYTES, RunWriter, Status
from tests.statuses import bring_to

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
        "ends_in_thinking": False,
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


def state_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "state.json").read_text()))


def test_the_state_carries_over_what_is_not_given(folder: Path) -> None:
    best = {"step": 2, "valid_reward_mean": 0.5}
    with writer(folder) as run:
        bring_to(run, "running", step=3, total_steps=9, best=best)
        run.status("failed", "why", "error", error={"message": "no"})
        failed = state_of(folder)
        run.status("validating_files", step=4)
        assert run.state == state_of(folder)
    assert (failed["message"], failed["error"]) == ("why", {"message": "no"})
    state = state_of(folder)
    del state["pid"], state["host"]
    assert state == {
        "status": "validating_files",
        "step": 4,
        "total_steps": 9,
        "created_at": 1000,
        "error": None,
        "best": {"step": 2, "valid_reward_mean": 0.5},
        "message": None,
        "event": None,
    }


def test_a_message_stays_while_the_status_does(folder: Path) -> None:
    with writer(folder) as run:
        bring_to(run, "running", message="Fine-tuning job started")
        run.status("running", step=1)
        assert state_of(folder)["message"] == "Fine-tuning job started"
        run.status("pausing")
        assert state_of(folder)["message"] is None


BEGUN = ("validating_files", "queued", "running", "pausing")

MAY_FOLLOW: dict[str | None, tuple[str, ...]] = {
    None: ("validating_files",),
    "validating_files": (*BEGUN[:2], "paused", "failed", "cancelled"),
    "queued": ("validating_files", "running", "pausing", "paused", "failed", "cancelled"),
    "running": (
        *("validating_files", "running", "pausing"),
        *("paused", "succeeded", "failed", "cancelled"),
    ),
    "pausing": ("validating_files", "paused", "failed", "cancelled"),
    "paused": ("validating_files", "cancelled"),
    "failed": ("validating_files", "cancelled"),
    "succeeded": (),
    "cancelled": (),
}
"""From each status, to begin again after a process that died included."""


@pytest.mark.parametrize("after", get_args(Status))
@pytest.mark.parametrize("before", MAY_FOLLOW)
def test_which_status_may_follow_which(folder: Path, before: str | None, after: Status) -> None:
    folder.mkdir()
    if before:
        (folder / "state.json").write_text(json.dumps({"status": before}))
    with writer(folder) as run:
        if after in MAY_FOLLOW[before]:
            run.status(after, "so be it")
            assert (state_of(folder)["status"], run.state["status"]) == (after, after)
            return
        old = contents(folder)
        with pytest.raises(ValueError, match=rf"^a run that is {before} cannot become {after}$"):
            run.status(after, "never told")
        assert run.state.get("status") == before
        assert contents(folder) == old
        assert (folder / "state.json").exists() is bool(before)
        run.event("info", "the next")
    assert '"ftevent-1"' in (folder / "events.jsonl").read_text()


def test_a_job_that_nothing_interrupts_goes_through_all_of_it(folder: Path) -> None:
    with writer(folder) as run:
        bring_to(run, "succeeded", message="The job is done")
    assert state_of(folder)["status"] == "succeeded"


def test_a_status_with_a_message_is_an_event_of_the_same_write(folder: Path) -> None:
    with writer(folder) as run:
        run.status("validating_files", "Created fine-tuning job: a-1")
        run.status("queued")
        run.status("failed", "why", "error", error={"message": "why"})
    events = [json.loads(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]
    assert [(e["id"], e["level"], e["message"], e["type"], e["data"]) for e in events] == [
        (
            "ftevent-1", "info", "Created fine-tuning job: a-1", "message",
            {"status": "validating_files"},
        ),
        ("ftevent-2", "error", "why", "message", {"status": "failed"}),
    ]  # fmt: skip
    assert state_of(folder)["event"] == events[-1]


@pytest.mark.parametrize("is_torn", [False, True])
def test_an_event_that_only_the_state_has_is_shown_once_and_written_again(
    folder: Path, is_torn: bool
) -> None:
    """A kill between the two writes of a status, or in the middle of the second."""
    with writer(folder) as run:
        bring_to(run, "running", message="Fine-tuning job started")
        run.event("info", "step 1")
        before = (folder / "events.jsonl").stat().st_size
        run.status("pausing", "Pausing: stopped by SIGTERM")
    path = folder / "events.jsonl"
    whole = path.read_bytes()
    os.truncate(path, before + 20 if is_torn else before)

    def told() -> list[str]:
        return [event["message"] for event in open_run(str(folder), folder).events()]

    expected = ["Fine-tuning job started", "step 1", "Pausing: stopped by SIGTERM"]
    assert told() == expected
    for _ in range(2):
        writer(folder).close()
        assert path.read_bytes() == whole
        assert told() == expected
    with writer(folder) as run:
        run.status("paused", "stopped by SIGTERM")
    assert told() == [*expected, "stopped by SIGTERM"]
    ids = [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
    assert ids == ["ftevent-1", "ftevent-2", "ftevent-3", "ftevent-4"]


def test_a_status_whose_events_the_disk_refuses_is_there_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(folder) as run:
        bring_to(run, "running")
        _visits.cache_clear()
        monkeypatch.setenv(VARIABLE, "disk.write#2=ENOSPC")
        run.status("pausing", "Pausing: why")
        monkeypatch.delenv(VARIABLE)
        assert (folder / "events.jsonl").read_bytes() == b""
        assert [e["message"] for e in open_run(str(folder), folder).events()] == ["Pausing: why"]
    writer(folder).close()
    assert (folder / "events.jsonl").read_text().count("Pausing: why") == 1


@pytest.mark.parametrize("refusal", ["disk.fsync=EIO", "disk.write=ENOSPC", "disk.rename=EACCES"])
def test_a_status_that_the_disk_refuses_is_not_taken(
    folder: Path, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(folder) as run:
        bring_to(run, "running", step=3)
        before = state_of(folder)
        _visits.cache_clear()
        monkeypatch.setenv(VARIABLE, refusal)
        with pytest.raises(DiskError):
            run.status("succeeded", "The job is done")
        monkeypatch.delenv(VARIABLE)
        assert run.state == state_of(folder) == before
        run.status("paused", "cannot write", "error")
    assert state_of(folder)["status"] == "paused"


def test_a_last_status_is_final_though_its_line_of_events_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(folder) as run:
        bring_to(run, "running")
        _visits.cache_clear()
        monkeypatch.setenv(VARIABLE, "disk.write#2=ENOSPC")
        run.status("succeeded", "The job is done")  # state.json holds the event already
    assert state_of(folder)["status"] == "succeeded"


def test_space_is_held_until_it_is_given_back(folder: Path) -> None:
    with writer(folder) as run:
        assert (folder / "reserve").stat().st_size == RESERVE_BYTES == 65536
        run.free_reserve()
        run.free_reserve()
        assert not (folder / "reserve").exists()
    writer(folder).close()
    assert (folder / "reserve").stat().st_size == RESERVE_BYTES


def test_opening_a_run_forgets_what_was_asked_of_the_last_process(folder: Path) -> None:
    folder.mkdir()
    (folder / "request.json").write_text('{"action": "pause"}')
    writer(folder).close()
    assert not (folder / "request.json").exists()


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
        run.rewind(positions, 1)
        take_step(run, 2)
        take_step(run, 3)
    with writer(tmp_path / "straight") as run:
        for step in (1, 2, 3):
            take_step(run, step)
    assert contents(folder) == contents(tmp_path / "straight")


@pytest.mark.parametrize("is_from_nothing", [False, True])
def test_rewinding_keeps_the_events_that_tell_of_a_status(
    folder: Path, is_from_nothing: bool
) -> None:
    with writer(folder) as run:
        bring_to(run, "running", message="Fine-tuning job started")
        take_step(run, 1)
        positions = {} if is_from_nothing else run.positions()
        take_step(run, 2)
        run.event("info", "a figure", type="metrics", data={"step": 2})
        run.status("running", step=2)
        run.status("pausing", "Pausing: why")
        run.event("warn", "beware")
        run.status("paused", "paused after step 2")
    kept = ["Pausing: why", "paused after step 2"]
    with writer(folder) as run:
        run.rewind(positions, -1 if is_from_nothing else 1)
        assert run.positions()["events"] == (folder / "events.jsonl").stat().st_size
        run.event("info", "go on")
    events = open_run(str(folder), folder).events()
    before = ["Fine-tuning job started"] + ([] if is_from_nothing else ["step 1"])
    assert [event["message"] for event in events] == [*before, *kept, "go on"]
    numbers = [int(event["id"].removeprefix("ftevent-")) for event in events]
    assert numbers == sorted(set(numbers))
    with writer(folder) as run:
        run.rewind({"events": 0}, -1)
        assert [e["message"] for e in open_run(str(folder), folder).events()] == [
            "Fine-tuning job started", *kept,
        ]  # fmt: skip


def test_a_rewind_with_other_graders_may_begin_the_results_anew(folder: Path) -> None:
    with writer(folder) as run:
        take_step(run, 1)
        positions = run.positions()
    with RunWriter(folder, []) as run:
        run.rewind(positions, 1, keeps_results=False)
        assert (folder / "results.csv").read_text() == ",".join(results_columns([])) + "\n"
        assert run.positions()["results"] == (folder / "results.csv").stat().st_size
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    with writer(folder) as run:
        take_step(run, 2)
        before = (folder / "results.csv").read_bytes()
    with RunWriter(folder, []) as run:
        same = dict.fromkeys(("events", "metrics", "results"), len(before))
        run.rewind(same, 2, keeps_results=False)
        assert (folder / "results.csv").read_bytes() == before


def test_rewinding_to_nothing_allows_other_graders(folder: Path) -> None:
    with writer(folder) as run:
        take_step(run, 1)
    with RunWriter(folder, []) as run:
        run.rewind({}, -1)
        assert (folder / "results.csv").read_text() == ",".join(results_columns([])) + "\n"
        assert (folder / "metrics.jsonl").read_bytes() == b""
        assert steps_in(folder / "samples", ".parquet") == []


@pytest.mark.parametrize("damage", [b"\xff", b"", b"zzzz"])
def test_a_damaged_header_of_the_results_is_written_anew(folder: Path, damage: bytes) -> None:
    path = folder / "results.csv"
    with writer(folder) as run:
        take_step(run, 1)
        positions, whole = run.positions(), path.read_bytes()
    path.write_bytes(damage + whole[len(damage) :].replace(b"step", b"stfp", 1))
    with writer(folder) as run:
        run.rewind(positions, 1)
        assert path.read_bytes() == whole


def test_damaged_lines_of_metrics_cost_neither_samples_nor_evaluations(folder: Path) -> None:
    with writer(folder) as run:
        for step in (1, 2):
            take_step(run, step)
            run.evaluation(step, [])
        positions = run.positions()
    size = (folder / "metrics.jsonl").stat().st_size
    (folder / "metrics.jsonl").write_bytes(b"{}\n" + b"?" * (size - 4) + b"\n")
    with writer(folder) as run:
        run.rewind(positions, 2)
    assert steps_in(folder / "samples", ".parquet") == [1, 2]
    assert steps_in(folder / "evaluations", ".parquet") == [1, 2]


def test_events_that_the_disk_refused_come_before_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(folder) as run:
        bring_to(run, "running")
        _visits.cache_clear()
        monkeypatch.setenv(VARIABLE, "disk.write#2=ENOSPC")
        run.status("pausing", "Pausing: why")
        monkeypatch.delenv(VARIABLE)
        run.status("paused", "paused")
    told = [json.loads(line)["message"] for line in (folder / "events.jsonl").open()]
    assert told[-2:] == ["Pausing: why", "paused"]


def test_lines_lost_since_a_state_are_reported(folder: Path) -> None:
    with writer(folder) as run:
        take_step(run, 1)
        positions = run.positions()
    (folder / "metrics.jsonl").write_bytes(b"")
    with writer(folder) as run:
        run.rewind(positions, 1)
    assert "lines were lost from metrics" in (folder / "events.jsonl").read_text()


HOLD = """
import sys, time
from pathlib import Path
from rft.runs.writer import RESERVE_BYTES, RunWriter, Status
from tests.statuses import bring_to
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
