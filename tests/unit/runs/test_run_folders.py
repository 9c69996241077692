"""A folder is there whole or not at all, and damage is seen."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rft.errors import DiskError
from rft.failpoints import VARIABLE, _visits
from rft.runs import disk
from rft.runs.disk import remove_folder, sweep, temporary_folder
from rft.runs.folders import (
    adopt,
    manifest_faults,
    manifest_sha256,
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


def test_the_hash_of_the_manifest_says_all_of_a_folder(tmp_path: Path) -> None:
    given = [write_folder(tmp_path / name, FILES) for name in ("a", "b")]
    content = (tmp_path / "a/manifest.json").read_bytes()
    assert given == [hashlib.sha256(content).hexdigest()] * 2
    assert manifest_sha256(tmp_path / "a") == given[0]
    assert write_folder(tmp_path / "c", {**FILES, "empty": b"x"}) != given[0]
    assert manifest_sha256(tmp_path / "missing") is None


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
        # still the same JSON, but not the bytes that were written
        (lambda path: rename_in_manifest(path, r"\u0061.json"), "manifest.json is damaged"),
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


def filled(path: Path) -> Path:
    """A temporary folder for `path` with a file in it."""
    folder = temporary_folder(path)
    (folder / "adapter.bin").write_bytes(b"weights")
    return folder


def test_a_folder_somebody_else_filled_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "step_3"
    folder = filled(path)
    adopt(folder, path, {"note.txt": b"hello"})
    assert (path / "note.txt").read_text() == "hello"
    assert (path / "adapter.bin").read_bytes() == b"weights"
    assert verify_folder(path) == []
    assert not folder.exists()


Write = Callable[[Path, bytes], None]


def half_written(failure: Exception) -> Write:
    """Writes half of every file, and then fails."""

    def fail(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise failure

    return fail


def save(path: Path) -> None:
    write_folder(path, {"a.json": b"other", "late": b"more"})


def adopt_another(path: Path) -> None:
    adopt(filled(path), path, {"a.json": b"other"})


@pytest.mark.parametrize("change", [save, adopt_another])
@pytest.mark.parametrize("failure", [DiskError("the disk is full"), ValueError("a bug")])
def test_a_write_that_fails_leaves_what_was_there(
    written: Path, failure: Exception, change: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", half_written(failure))
        with pytest.raises(type(failure)):
            change(written)
    assert verify_folder(written) == []
    assert (written / "a.json").read_bytes() == FILES["a.json"]
    assert [entry.name for entry in written.parent.iterdir()] == ["step_3"]


REFUSALS = [
    f"disk.{operation}#{number}={code}"
    for operation, count in (("write", 3), ("fsync", 4), ("rename", 1))
    for number in range(1, count + 1)
    for code in ("ENOSPC", "EIO")
]
"""Every operation until the old folder goes, in which the disk refuses."""


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_disk_that_refuses_leaves_what_was_there_and_is_told(
    written: Path, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _visits.cache_clear()
    monkeypatch.setenv(VARIABLE, refusal)
    code = getattr(errno, refusal.rpartition("=")[2])
    with pytest.raises(DiskError) as failure:
        save(written)
    (problem,) = failure.value.problems
    assert problem.what == f"cannot write: {os.strerror(code)}"
    assert problem.where.startswith(str(written.parent))
    assert ("free some space" in problem.remedy) is (code == errno.ENOSPC)
    assert verify_folder(written) == []
    assert (written / "a.json").read_bytes() == FILES["a.json"]
    assert [entry.name for entry in written.parent.iterdir()] == ["step_3"]


def test_a_replaced_file_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    disk.replace(path, b"old")
    for refusal in ("disk.write=ENOSPC", "disk.fsync=EIO", "disk.rename=EACCES"):
        _visits.cache_clear()
        monkeypatch.setenv(VARIABLE, refusal)
        with pytest.raises(DiskError):
            disk.replace(path, b"new")
        assert path.read_bytes() == b"old"
    monkeypatch.delenv(VARIABLE)
    disk.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


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
