"""Every change that a run makes on disk; what the disk refuses becomes a DiskError that says what to do."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rft.errors import DiskError
from rft.failpoints import reach

TEMPORARY = ".tmp-"
TRASH = ".trash-"
"""Names that begin so were left by writes and deletions that broke off."""


@contextmanager
def told_as_disk_error(path: Path) -> Iterator[None]:
    """Turns an OSError into a DiskError about `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> DiskError:
    """A refusal of the disk in words a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space; what was saved before is untouched"
    else:
        remedy = "check that the folder may be written and its disk is sound"
    return DiskError(f"cannot write: {error.strerror or error}", where=str(path), remedy=remedy)


Content = bytes | Sequence[bytes | memoryview]
"""What a file is to hold, perhaps in parts."""


def parts_of(content: Content) -> Sequence[bytes | memoryview]:
    return (content,) if isinstance(content, bytes) else content


def write(path: Path, content: Content) -> None:
    """A file with that content, durable but for its name (see `sync_folder`)."""
    with told_as_disk_error(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for part in parts_of(content):
                _write_all(descriptor, part)
            _sync(descriptor)
        finally:
            os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part; durable."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    write(temporary, content)
    rename(temporary, path)


def append(descriptor: int, line: bytes, path: Path) -> None:
    """Add bytes to an open file; the caller knows what to cut when the disk refuses."""
    with told_as_disk_error(path):
        _write_all(descriptor, line)


def sync(descriptor: int, path: Path) -> None:
    """Make an open file's content durable."""
    with told_as_disk_error(path):
        _sync(descriptor)


def sync_file(path: Path) -> None:
    with told_as_disk_error(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with told_as_disk_error(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder its name in the same parent, in place of a file that had it; durable."""
    with told_as_disk_error(target):
        reach("disk.rename")
        os.replace(source, target)
    sync_folder(target.parent)


def make_folder(path: Path) -> None:
    """A folder and those above it, unless they are there."""
    with told_as_disk_error(path):
        path.mkdir(parents=True, exist_ok=True)


def temporary_folder(path: Path) -> Path:
    """An empty folder beside `path`, to be filled and renamed."""
    folder = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}"
    make_folder(folder)
    return folder


def remove_file(path: Path) -> None:
    """Delete a file, which may be gone already."""
    with told_as_disk_error(path):
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder so that no reader ever sees half of it; it may be gone already."""
    trash = path.parent / f"{TRASH}{path.name}-{uuid.uuid4().hex}"
    with told_as_disk_error(path):
        reach("disk.rename")
        try:
            path.rename(trash)
        except FileNotFoundError:
            return
    reach("retention.renamed")
    shutil.rmtree(trash, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Delete what broken-off writes and deletions left in a folder; only for the one writer."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        if not entry.name.startswith((TEMPORARY, TRASH)):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            remove_file(entry)


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    """A write may end early: at 2 GiB, or before the one that says why the disk is full."""
    reach("disk.write")
    view = memoryview(content)
    while len(view):
        view = view[os.write(descriptor, view) :]


def _sync(descriptor: int) -> None:
    reach("disk.fsync")
    os.fsync(descriptor)
