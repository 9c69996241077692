"""A copy of a run goes on by itself, from one of its states."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rft.errors import DiskError, RunError
from rft.failpoints import VARIABLE, _visits
from rft.runs import disk
from rft.runs.documents import json_bytes
from rft.runs.folders import manifest_sha256, verify_folder, write_folder
from rft.runs.fork import fork_run, forked_after, was_never_taken_up
from rft.runs.layout import RunFolder, steps_in
from rft.runs.reader import Run
from rft.runs.requests import ask
from rft.runs.writer import RunWriter
from tests.statuses import bring_to


def take_step(writer: RunWriter, step: int) -> None:
    """What a run leaves of a step: lines, tables, a checkpoint, a state."""
    folder = writer.folder
    writer.metrics({"step": step})
    writer.results({"step": step})
    writer.samples(step, [])
    writer.evaluation(step, [])
    entry = {"step": step, "valid_reward_mean": step / 10}
    write_folder(
        folder.checkpoint(step), {"a": b"w%d" % step, "checkpoint.json": json_bytes(entry)}
    )
    files = {"adapter.safetensors": b"weights %d" % step, "progress.json": b"{}"}
    manifest = write_folder(folder.state_folder(step), files)
    disk.replace(folder.newest_state, json_bytes({"step": step, "manifest_sha256": manifest}))


@pytest.fixture
def source(tmp_path: Path) -> RunFolder:
    """capitals-3: 6 steps, paused, with the states of steps 5 and 6."""
    folder = RunFolder(tmp_path / "capitals-3")
    with RunWriter(folder.root, []) as writer:
        bring_to(writer, "running", message="Fine-tuning job started", total_steps=9)
        writer.document("job.yaml", "model: tiny\n")
        writer.document("job.resolved.yaml", "model: tiny\nseed: 0\n")
        for step in (5, 6):
            take_step(writer, step)
        best = {"step": 6, "valid_reward_mean": 0.6}
        writer.status("paused", "stopped by SIGTERM", step=6, best=best)
    return folder


def files_of(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def pointer_of(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.newest_state.read_text()))


def state_of(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.state.read_text()))


NOT_COPIED = {"lock", "reserve", "state.json"}


def test_a_run_with_two_states_is_copied_from_the_newest(source: RunFolder) -> None:
    before = files_of(source.root)
    fork = fork_run(source)
    assert fork.root == source.root.with_name("capitals-4")
    assert files_of(source.root) == before
    copied = files_of(fork.root)
    assert steps_in(fork.states) == [6]
    assert copied.keys() == {
        name for name in before if name not in NOT_COPIED and not name.startswith("states/step_5/")
    } | {"state.json", "fork.json"}
    differing = {name for name in copied if copied[name] != before.get(name)} - {"fork.json"}
    assert forked_after(fork) == 6 and forked_after(source) is None
    assert differing <= {"state.json", "states/latest.json"}
    assert verify_folder(fork.state_folder(6)) == []
    assert pointer_of(fork) == {
        "step": 6,
        "manifest_sha256": manifest_sha256(source.state_folder(6)),
    }
    state = state_of(fork)
    assert abs(state.pop("created_at") - source.root.stat().st_mtime) < 60
    assert state == {
        "status": "paused",
        "step": 6,
        "total_steps": 9,
        "pid": None,
        "host": None,
        "error": None,
        "best": None,
        "message": "forked from capitals-3 after step 6",
        "event": None,
    }


def test_a_fork_can_be_opened_and_forked_again(source: RunFolder) -> None:
    fork = fork_run(source)
    with RunWriter(fork.root, []) as writer:
        writer.status("validating_files", "Resuming after step 6")
        writer.status("queued")
    assert Run(fork).events()[-1]["message"] == "Resuming after step 6"
    assert fork_run(fork).root.name == "capitals-5"
    assert fork_run(source).root.name == "capitals-6"


def test_a_named_step(source: RunFolder) -> None:
    fork = fork_run(source, 5)
    assert steps_in(fork.states) == [5]
    assert pointer_of(fork)["step"] == state_of(fork)["step"] == 5
    assert pointer_of(fork)["manifest_sha256"] == manifest_sha256(source.state_folder(5))
    assert (fork.state_folder(5) / "adapter.safetensors").read_bytes() == b"weights 5"


def damage(source: RunFolder, step: int) -> None:
    file = source.state_folder(step) / "adapter.safetensors"
    file.write_bytes(b"weightz" + file.read_bytes()[7:])


def test_a_damaged_newest_state_is_passed_over(source: RunFolder) -> None:
    damage(source, 6)
    fork = fork_run(source)
    assert steps_in(fork.states) == [5]
    assert pointer_of(fork)["step"] == 5


@pytest.mark.parametrize(
    ("step", "damaged", "message", "remedy"),
    [
        (4, (), "the run keeps no whole state of step 4", "take one of the steps 5, 6"),
        (6, (6,), "the run keeps no whole state of step 6", "take one of the steps 5"),
        (None, (5, 6), "the run keeps no whole state", "it has none"),
        (5, (5, 6), "the run keeps no whole state of step 5", "it has none"),
    ],
)
def test_a_state_that_is_missing_is_refused_and_nothing_is_made(
    source: RunFolder, step: int | None, damaged: tuple[int, ...], message: str, remedy: str
) -> None:
    for number in damaged:
        damage(source, number)
    with pytest.raises(RunError) as refusal:
        fork_run(source, step)
    (problem,) = refusal.value.problems
    assert (problem.what, problem.where, problem.remedy) == (message, str(source.root), remedy)
    assert os.listdir(source.root.parent) == ["capitals-3"]


def test_a_run_without_states_is_refused(tmp_path: Path) -> None:
    RunWriter(tmp_path / "a-1", []).close()
    with pytest.raises(RunError, match="keeps no whole state"):
        fork_run(RunFolder(tmp_path / "a-1"))
    assert os.listdir(tmp_path) == ["a-1"]


def test_a_live_run_is_copied_and_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a-1")
    with RunWriter(folder.root, []) as writer:
        bring_to(writer, "running", total_steps=9)
        take_step(writer, 5)
        ask(folder, "cancel", "rft runs cancel")
        fork = fork_run(folder)
        assert not fork.lock.exists() and not fork.request.exists()
        assert (state_of(fork)["status"], state_of(fork)["pid"]) == ("paused", None)
        with RunWriter(fork.root, []) as other:
            other.status("validating_files")
        take_step(writer, 6)
        writer.status("running", step=6)
    assert state_of(folder)["status"] == "running"
    assert steps_in(fork.states) == steps_in(fork.checkpoints) == [5]


def test_checkpoints_that_are_damaged_or_not_yet_whole_are_left_out(source: RunFolder) -> None:
    (source.checkpoint(6) / "a").write_bytes(b"zz")
    half = disk.temporary_folder(source.checkpoint(7))
    (half / "a").write_bytes(b"half")
    fork = fork_run(source)
    assert [path.name for path in fork.checkpoints.iterdir()] == ["step_5"]


@pytest.mark.parametrize("failpoint", ["disk.write=ENOSPC", "disk.fsync#3=EIO", "disk.rename=EIO"])
def test_a_disk_that_refuses_leaves_no_copy(
    source: RunFolder, failpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(source.root)
    _visits.cache_clear()
    monkeypatch.setenv(VARIABLE, failpoint)
    with pytest.raises(DiskError, match="cannot write: "):
        fork_run(source)
    assert os.listdir(source.root.parent) == ["capitals-3"]
    assert files_of(source.root) == before


def refusing(source: Path, *_: object, **__: object) -> None:
    raise OSError(28, os.strerror(28), str(source))


def test_a_disk_that_is_full_on_the_way_leaves_no_copy(
    source: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def copy(origin: Any, target: Any) -> Any:
        if "checkpoints" in Path(origin).parts:
            return refusing(origin)
        return real(origin, target)

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(DiskError, match="cannot write: "):
        fork_run(source)
    assert os.listdir(source.root.parent) == ["capitals-3"]


def test_the_manifest_of_a_copy_is_its_own(source: RunFolder) -> None:
    fork = fork_run(source)
    content = (fork.state_folder(6) / "manifest.json").read_bytes()
    assert pointer_of(fork)["manifest_sha256"] == hashlib.sha256(content).hexdigest()


def test_only_a_document_that_says_so_proves_that_a_fork_was_never_taken_up(
    source: RunFolder,
) -> None:
    fork = fork_run(source)
    assert was_never_taken_up(fork) and not was_never_taken_up(source)
    for content in (b"", b"{}", b'{"status": "paused"}', b"\xff"):
        fork.state.write_bytes(content)
        assert not was_never_taken_up(fork)
