"""Invariant: a disk that refuses pauses the run, harms nothing that was saved, and costs no byte of the result."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rft.runs.layout import RunFolder
from rft.runs.reader import Run, open_run
from rft.training.states import StateStore
from tests.killing import Command, differences, run, traces, write_moving_job

SHORT = [
    "disk.write#60=ENOSPC",
    "disk.fsync#75=EIO",
    "disk.rename#33=EDQUOT",
    "disk.write#41=EACCES",
]
"""Refusals in the middle of the run below: in samples, a state, a checkpoint, a line of events."""

LONG = [
    f"disk.{operation}#{number}=ENOSPC"
    for operation, numbers in (("write", (70, 95)), ("fsync", (85, 120)), ("rename", (35, 48)))
    for number in range(*numbers)
]
"""Every operation of two whole steps with an evaluation and a checkpoint, and a part of the next."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moving_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = run(["train", str(job), "--run-dir", str(folder)], folder.with_name("log"))
    assert ended.code == 0, ended.output
    return folder


@pytest.mark.parametrize(
    "failpoint", [*SHORT, *(pytest.param(p, marks=pytest.mark.long) for p in LONG)]
)
def test_a_refused_write_pauses_the_run_which_then_goes_on(
    job: Path, whole: Path, tmp_path: Path, failpoint: str
) -> None:
    folder = tmp_path / "run"
    ended = run(["train", str(job), "--run-dir", str(folder)], tmp_path / "log", failpoint)
    assert ended.code == 75, ended.output
    assert "cannot write: " in ended.output and "Traceback" not in ended.output
    run_folder = open_run(str(folder), tmp_path)
    assert run_folder.status().status == "paused"
    assert "cannot write: " in (run_folder.status().message or "")
    assert run_folder.events()[-1]["level"] == "error"
    state, faults = StateStore(RunFolder(folder)).newest()
    assert state is not None and faults == []
    resumed = run(["runs", "resume", str(folder)], tmp_path / "log")
    assert resumed.code == 0, resumed.output
    assert differences(traces(folder), traces(whole)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_and_is_cleared(
    job: Path, whole: Path, tmp_path: Path, small_disk: Path
) -> None:
    folder = small_disk / "run"
    command = Command(["train", str(job), "--run-dir", str(folder)], tmp_path / "log")
    give_up_at = time.monotonic() + 60
    while Run(RunFolder(folder)).status().step < 2:
        assert time.monotonic() < give_up_at and command.is_running
        time.sleep(0.01)
    ballast = small_disk / "ballast"
    fill_disk(ballast)
    ended = command.wait()
    assert ended.code == 75, ended.output
    status = open_run(str(folder), small_disk).status()
    assert (status.status, status.process_ended) == ("paused", False)
    assert "No space left on device" in (status.message or "")
    refused = run(["runs", "resume", str(folder)], tmp_path / "refused")
    assert refused.code == 3 and "cannot write: No space left" in refused.output, refused.output
    ballast.unlink()
    resumed = run(["runs", "resume", str(folder)], tmp_path / "log")
    assert resumed.code == 0, resumed.output
    assert differences(traces(folder), traces(whole)) == []


def fill_disk(ballast: Path) -> None:
    try:
        with ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
    except OSError:
        return


def test_too_small_a_disk_is_told_before_the_start(
    job: Path, tmp_path: Path, small_disk: Path
) -> None:
    with (small_disk / "ballast").open("wb") as stream:
        stream.write(b"x" * (11 * 1024 * 1024 + 512 * 1024))
    ended = run(["train", str(job), "--run-dir", str(small_disk / "run")], tmp_path / "log")
    assert ended.code == 3 and "MB are needed" in ended.output, ended.output
    assert json.loads((small_disk / "run/state.json").read_text())["status"] == "paused"
