"""A folder is there whole or not at all, and damage is seen."""

import json
import os
from pathlib import Path

import pytest

from rft.errors import MachineError
from rft.runs.folders import (
    adopt,
    manifest_faults,
    remove_folder,
    sweep,
    temporary_folder,
    verify_folder,
    write_folder,
)

FILES = {"a.json": b'{"x": 1}', "inner/b.bin": bytes(range(256)), "empty": b""}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "step_3"
    write_folder(path, FILES)
    return path


def test_what_is_written_is_found_and_nothing_else(written: Path) -> None:
    assert {name: (written / name).read_bytes() for name in FILES} == FILES
    assert [entry.name for entry in written.parent.iterdir()] == ["step_3"]
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert [(entry["name"], entry["size"]) for entry in manifest["files"]] == [
        ("a.json", 8),
        ("empty", 0),
        ("inner/b.bin", 256),
    ]
    assert verify_folder(written) == []


def flip(path: Path) -> None:
    data = bytearray((path / "inner/b.bin").read_bytes())
    data[100] ^= 1
    (path / "inner/b.bin").write_bytes(data)


def rename_in_manifest(path: Path, name: str) -> None:
    text = (path / "manifest.json").read_text().replace("a.json", name)
    (path / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (flip, "inner/b.bin was changed since it was written"),
        (lambda path: (path / "a.json").unlink(), "a.json is missing"),
        (lambda path: os.truncate(path / "a.json", 3), "a.json has 3 bytes, not 8"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: os.truncate(path / "manifest.json", 40), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_bytes(b""), "manifest.json is damaged"),
        (lambda path: rename_in_manifest(path, "../up"), "manifest.json is damaged"),
        (lambda path: rename_in_manifest(path, "/etc/passwd"), "manifest.json is damaged"),
    ],
)
def test_damage_is_named(written: Path, damage, fault: str) -> None:
    damage(written)
    assert verify_folder(written) == [fault]


def test_a_changed_byte_is_beyond_the_quick_check(written: Path) -> None:
    flip(written)
    assert manifest_faults(written) == []


def test_writing_again_replaces_the_folder(written: Path) -> None:
    write_folder(written, {"c": b"new"})
    assert sorted(entry.name for entry in written.iterdir()) == ["c", "manifest.json"]
    assert [entry.name for entry in written.parent.iterdir()] == ["step_3"]


def test_a_folder_somebody_else_filled_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "step_3"
    folder = temporary_folder(path)
    (folder / "adapter.bin").write_bytes(b"weights")
    adopt(folder, path, {"note.txt": lambda file: file.write_text("hello") and None})
    assert (path / "note.txt").read_text() == "hello"
    assert verify_folder(path) == []
    assert not folder.exists()


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(28, "No space left on device"), MachineError),
        (RuntimeError("IoError: No space left on device (os error 28)"), MachineError),
        (ValueError("a bug"), ValueError),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(written: Path, failure, raised) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise failure

    with pytest.raises(raised):
        write_folder(written, {"a.json": b"other", "late": fail})
    assert verify_folder(written) == []
    assert (written / "a.json").read_bytes() == FILES["a.json"]
    assert [entry.name for entry in written.parent.iterdir()] == ["step_3"]


def test_sweep_takes_leftovers_only(written: Path) -> None:
    parent = written.parent
    temporary_folder(parent / "step_4")
    (parent / ".trash-step_1-x").mkdir()
    (parent / ".tmp-state.json").write_text("{")
    sweep(parent)
    assert [entry.name for entry in parent.iterdir()] == ["step_3"]
    sweep(parent / "missing")


def test_a_removed_folder_is_gone_and_may_be_gone_already(written: Path) -> None:
    remove_folder(written)
    remove_folder(written)
    assert list(written.parent.iterdir()) == []
