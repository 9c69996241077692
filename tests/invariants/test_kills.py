"""Invariant: a run that is killed anywhere and resumed ends with the bytes of one that never was."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rft.runs.layout import RunFolder
from rft.runs.reader import open_run
from tests.killing import (
    Command,
    assert_readable,
    differences,
    ranks_of,
    run,
    traces,
    write_moving_job,
)

POINTS = [
    "rollout.sampled#70",
    "rollout.graded#4",
    "update.backward#3",
    "update.gradients#5",
    "update.stepped#2",
    "evaluation.begun#1",
    "evaluation.begun#3",
    "evaluation.ended#4",
    "save.recorded#6",
    "save.begun#4",
    "save.written#6",
    "save.sealed#3",
    "save.renamed#7",
    "save.pointed#5",
    "retention.begun#1",
    "retention.renamed#2",
    "disk.fsync#100",
    "disk.rename#60",
]
"""Where a run of the job below is killed: in each phase, some in the middle of a step, some at a border."""

KEEP = "engine.checkpoints.keep=2"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moving_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = run(start(job, folder), folder.with_name("log"))
    assert ended.code == 0, ended.output
    return folder


def start(job: Path, folder: Path) -> list[str]:
    return ["train", str(job), KEEP, "--run-dir", str(folder)]


def go_on(job: Path, folder: Path, log: Path) -> None:
    """Resume to the end; a run that was killed before its folder was made is begun."""
    ended = run([*start(job, folder), *(["--resume"] if folder.exists() else [])], log)
    assert ended.code == 0, ended.output


def test_the_same_job_twice_is_the_same_bytes(job: Path, whole: Path, tmp_path: Path) -> None:
    ended = run(start(job, tmp_path / "run"), tmp_path / "log")
    assert ended.code == 0, ended.output
    found = traces(tmp_path / "run")
    assert differences(found, traces(whole)) == []
    assert len(found["metrics"]) == 9
    assert {"states/step_7/optimizer.safetensors", "samples/step_1.parquet"} <= found.keys()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point(job: Path, whole: Path, tmp_path: Path, point: str) -> None:
    folder = tmp_path / "run"
    ended = run(start(job, folder), tmp_path / "log", f"{point}=kill")
    assert ended.code == -signal.SIGKILL, ended.output
    assert assert_readable(folder) <= 1
    go_on(job, folder, tmp_path / "log")
    assert differences(traces(folder), traces(whole)) == []


@pytest.mark.parametrize("point", ["pause.begun", "pause.checkpointed", "pause.saved"])
def test_killed_while_it_pauses(job: Path, whole: Path, tmp_path: Path, point: str) -> None:
    folder = tmp_path / "run"
    budget = "engine.budget.steps=3"
    ended = run([*start(job, folder), budget], tmp_path / "log", f"{point}=kill")
    assert ended.code == -signal.SIGKILL, ended.output
    assert assert_readable(folder) == 0
    assert open_run(str(folder), tmp_path).status().process_ended
    go_on(job, folder, tmp_path / "log")
    assert differences(traces(folder), traces(whole)) == []


@pytest.mark.parametrize(
    "num_kills", [4, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_killed_at_random_moments(job: Path, whole: Path, tmp_path: Path, num_kills: int) -> None:
    expected = traces(whole)
    dice = random.Random(11)
    timed = run(start(job, tmp_path / "timed"), tmp_path / "log")
    for number in range(num_kills):
        folder = tmp_path / f"run-{number}"
        command = Command(start(job, folder), tmp_path / f"log-{number}")
        command.kill_after(dice.uniform(0.2, 1.0) * timed.seconds)
        assert assert_readable(folder) <= 1
        go_on(job, folder, tmp_path / f"log-{number}")
        assert differences(traces(folder), expected) == [], number


def test_killed_again_and_again(job: Path, whole: Path, tmp_path: Path) -> None:
    """Each attempt is killed at its third update: one step, perhaps two, is all that it gains."""
    folder = tmp_path / "run"
    attempts = 0
    while attempts < 12:
        arguments = [*start(job, folder), *(["--resume"] if folder.exists() else [])]
        ended = run(arguments, tmp_path / "log", "update.gradients#3=kill")
        attempts += 1
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.output
    assert attempts == 4
    assert differences(traces(folder), traces(whole)) == []
    levels = [event["level"] for event in open_run(str(folder), tmp_path).events()]
    assert levels.count("warn") >= 3


@pytest.mark.parametrize(
    "num_kills", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_two_processes_killed_at_random_moments(job: Path, tmp_path: Path, num_kills: int) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish_ranks(start(job, whole), tmp_path / "log", 29611)
    seconds = time.monotonic() - began
    facts = json.loads((whole / "env.json").read_text())
    assert (facts["world_size"], facts["backend"]) == (2, "gloo")
    dice = random.Random(12)
    for number in range(num_kills):
        folder, log = tmp_path / f"run-{number}", tmp_path / f"log-{number}"
        commands = ranks_of(start(job, folder), log, 2, 29620 + 2 * number)
        time.sleep(dice.uniform(0.3, 1.0) * seconds)
        for command in dice.sample(commands, 2):
            command.send(signal.SIGKILL)
        for command in commands:
            command.wait()
        assert assert_readable(folder) <= 1
        resumed = [*start(job, folder), *(["--resume"] if folder.exists() else [])]
        finish_ranks(resumed, log, 29621 + 2 * number)
        assert differences(traces(folder), traces(whole)) == [], number


def finish_ranks(arguments: list[str], log: Path, port: int) -> None:
    endings: list[Any] = [command.wait() for command in ranks_of(arguments, log, 2, port)]
    assert [ended.code for ended in endings] == [0, 0], endings


def test_a_run_that_was_killed_frees_its_lock_and_is_seen_as_paused(
    job: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(start(job, folder), tmp_path / "log", "update.gradients#2=kill")
    status = open_run(str(folder), tmp_path).status()
    assert (status.status, status.process_ended) == ("paused", True)
    assert json.loads(RunFolder(folder).state.read_text())["status"] == "running"
