"""Folders that are there whole or not at all: temp folder, fsync, manifest with hashes, rename.

A folder without a valid `manifest.json` does not exist for readers.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rft.errors import MachineError
from rft.runs.documents import json_bytes, read_document, sync_folder

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1

FileContent = bytes | Callable[[Path], None]
"""What a file is to hold, or a function that writes it to a path."""


def write_folder(path: Path, files: Mapping[str, FileContent]) -> None:
    """Write a folder of files at once; what stood there before is replaced.

    Raises MachineError when the disk refuses; nothing is left behind then.
    """
    adopt(temporary_folder(path), path, files)


def temporary_folder(path: Path) -> Path:
    """Create an empty folder beside `path`, to be filled and handed to `adopt`."""
    folder = path.parent / f".tmp-{path.name}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise disk_error(error, path) from error
    return folder


def adopt(folder: Path, path: Path, files: Mapping[str, FileContent] | None = None) -> None:
    """Make a folder from `temporary_folder(path)` durable under its final name, with `files` added.

    Raises MachineError when the disk refuses, and whatever else a writing function raises; the
    folder is gone then.
    """
    try:
        for name, content in (files or {}).items():
            _write(folder / name, content)
        names = _names(folder)
        entries = [_sealed(folder, name) for name in names]
        manifest = {"schema_version": SCHEMA_VERSION, "files": entries}
        _write(folder / MANIFEST, json_bytes(manifest, indent=1))
        _sync(folder / MANIFEST)
        for inner in sorted({(folder / name).parent for name in names} | {folder}):
            sync_folder(inner)
        if path.exists():
            remove_folder(path)
        folder.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise disk_error(error, path) from error
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # safetensors reports a full disk as an error of its own
        if "no space left" in str(error).lower():
            raise disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path) from error
        raise


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a written folder, by its manifest and the hash of every file."""
    faults = manifest_faults(path)
    if faults:
        return faults
    return [
        f"{entry['name']} was changed since it was written"
        for entry in read_document(path / MANIFEST)["files"]
        if _sha256(path / entry["name"]) != entry["sha256"]
    ]


def manifest_faults(path: Path) -> list[str]:
    """What is wrong with a written folder, by its manifest and the sizes of its files alone."""
    if not (path / MANIFEST).is_file():
        return [f"{MANIFEST} is missing"]
    manifest = read_document(path / MANIFEST)
    entries = manifest.get("files")
    if not isinstance(entries, list) or not entries or not all(map(_is_entry, entries)):
        return [f"{MANIFEST} is damaged"]
    if manifest.get("schema_version") != SCHEMA_VERSION:
        return [f"{MANIFEST} has schema version {manifest.get('schema_version')!r}, not 1"]
    return [fault for entry in entries for fault in _size_faults(path, entry)]


def remove_folder(path: Path) -> None:
    """Delete a folder so that no reader ever sees half of it."""
    trash = path.parent / f".trash-{path.name}-{uuid.uuid4().hex}"
    try:
        path.rename(trash)
    except FileNotFoundError:
        return
    shutil.rmtree(trash, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Delete what broken-off writes and deletions left in a folder; only for the one writer."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        if entry.name.startswith((".tmp-", ".trash-")):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def disk_error(error: OSError, path: Path) -> MachineError:
    """A refusal of the disk in words a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space; what was saved before is untouched"
    else:
        remedy = "check that the folder may be written"
    return MachineError(f"cannot write: {error.strerror or error}", where=str(path), remedy=remedy)


def _write(path: Path, content: FileContent) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)


def _names(folder: Path) -> list[str]:
    """The files below a folder, as relative posix paths in order."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _sealed(folder: Path, name: str) -> dict[str, Any]:
    """The manifest entry of a file, once the file is durable."""
    path = folder / name
    _sync(path)
    return {"name": name, "size": path.stat().st_size, "sha256": _sha256(path)}


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_entry(entry: Any) -> bool:
    """Whether a manifest entry is well-formed and stays inside its folder."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    name = PurePosixPath(entry["name"])
    is_inside = not name.is_absolute() and ".." not in name.parts and entry["name"] != ""
    return is_inside and type(entry.get("size")) is int and isinstance(entry.get("sha256"), str)


def _size_faults(path: Path, entry: Mapping[str, Any]) -> list[str]:
    file = path / entry["name"]
    if not file.is_file():
        return [f"{entry['name']} is missing"]
    if file.stat().st_size != entry["size"]:
        return [f"{entry['name']} has {file.stat().st_size} bytes, not {entry['size']}"]
    return []
