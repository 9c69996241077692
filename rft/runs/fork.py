"""A copy of a run that goes on by itself, from one of its states."""

import contextlib
import shutil
import time
from pathlib import Path

from rft.errors import RunError
from rft.runs import disk
from rft.runs.documents import json_bytes, read_document
from rft.runs.folders import manifest_sha256, verify_folder
from rft.runs.layout import RunFolder, new_run_folder, numbered_name, steps_in


def fork_run(source: RunFolder, step: int | None = None) -> RunFolder:
    """Copy a run, which may be running, to the next free number beside it, as paused after a state of its:
    that of `step`, or the newest whole one.

    Raises RunError when there is no such state, DiskError when the disk refuses.
    """
    chosen = _state_to_copy(source, step)
    parent = source.root.absolute().parent
    target = RunFolder(new_run_folder(numbered_name(source.root.absolute().name), parent))
    try:
        with disk.told_as_disk_error(target.root):
            _copy(source, target, chosen)
    except BaseException:
        shutil.rmtree(target.root, ignore_errors=True)
        raise
    return target


def forked_after(folder: RunFolder) -> int | None:
    """The step whose state a run was begun with as a copy; None for a run of its own."""
    step = read_document(folder.fork).get("step")
    return step if isinstance(step, int) else None


def was_never_taken_up(fork: RunFolder) -> bool:
    """Whether no process has begun to go on with a fork."""
    state = read_document(fork.state)
    # only a document that says so is proof; one that cannot be read is none
    return state.get("status") == "paused" and state.get("pid", 0) is None


def _state_to_copy(source: RunFolder, step: int | None) -> int:
    steps = steps_in(source.states)
    whole = [found for found in steps if not verify_folder(source.state_folder(found))]
    if not whole or (step is not None and step not in whole):
        kept = f"take one of the steps {', '.join(map(str, whole))}" if whole else "it has none"
        wanted = "whole state" if step is None else f"whole state of step {step}"
        raise RunError(f"the run keeps no {wanted}", where=str(source.root), remedy=kept)
    return whole[-1] if step is None else step


def _copy(source: RunFolder, target: RunFolder, step: int) -> None:
    """The state first: whatever else a running job writes meanwhile lies beyond it."""
    _copy_folder(source.state_folder(step), target.state_folder(step))
    if faults := verify_folder(target.state_folder(step)):
        raise RunError(
            f"the state of step {step} went while it was copied: {'; '.join(faults)}",
            where=str(source.root),
            remedy="try again, or pause the run first",
        )
    pointer = {"step": step, "manifest_sha256": manifest_sha256(target.state_folder(step))}
    disk.replace(target.newest_state, json_bytes(pointer) + b"\n")
    for name in ("job.yaml", "job.resolved.yaml", "events.jsonl", "metrics.jsonl", "results.csv"):
        _copy_file(source.root / name, target.root / name)
    for folder in ("samples", "evaluations", "checkpoints"):
        (target.root / folder).mkdir()
        for entry in sorted((source.root / folder).glob("step_*")):
            copy = _copy_folder if entry.is_dir() else _copy_file
            copy(entry, target.root / folder / entry.name)
    if source.start_adapter.is_dir():
        _copy_folder(source.start_adapter, target.start_adapter)
    for number in steps_in(target.checkpoints):
        if verify_folder(target.checkpoint(number)):
            shutil.rmtree(target.checkpoint(number))
    disk.replace(target.fork, json_bytes({"run": source.root.name, "step": step}) + b"\n")
    before = read_document(source.state)
    state = {
        "status": "paused",
        "step": step,
        "total_steps": before.get("total_steps"),
        "created_at": int(time.time()),
        "pid": None,
        "host": None,
        "error": None,
        "best": None,
        "message": f"forked from {source.root.name} after step {step}",
        "event": None,
    }
    disk.replace(target.state, json_bytes(state, indent=1) + b"\n")


def _copy_folder(source: Path, target: Path) -> None:
    """What is missing afterwards, its manifest tells."""
    target.mkdir(parents=True)
    for entry in sorted(source.iterdir()) if source.is_dir() else ():
        _copy_file(entry, target / entry.name)


def _copy_file(source: Path, target: Path) -> None:
    """A running job may drop what it no longer keeps at any moment."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(source, target)
