"""Folders that are there whole or not at all: temp folder, fsync, manifest with hashes, rename.

A folder without a valid `manifest.json` does not exist for readers.
"""

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from rft.failpoints import reach
from rft.runs import disk
from rft.runs.documents import json_bytes, read_document

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


def write_folder(path: Path, files: Mapping[str, disk.Content]) -> str:
    """Write a folder of files at once; what stood there before is replaced. Gives the SHA-256 of its
    manifest, which says all of the folder.

    Raises DiskError when the disk refuses; nothing is left behind then.
    """
    folder = disk.temporary_folder(path)
    try:
        reach("save.begun")
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
            entries = [
                hashing.submit(_entry_of, name, content) for name, content in sorted(files.items())
            ]
            for name, content in sorted(files.items()):
                disk.make_folder((folder / name).parent)
                disk.write(folder / name, content)
        reach("save.written")
        return _seal(folder, path, [entry.result() for entry in entries])
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def adopt(folder: Path, path: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Make a filled folder from `disk.temporary_folder(path)` durable under its final name, with `files`
    added.

    Raises DiskError when the disk refuses; the folder is gone then.
    """
    try:
        for name, content in (files or {}).items():
            disk.write(folder / name, content)
        entries = []
        for name in _names(folder):
            disk.sync_file(folder / name)
            entries.append(_entry(name, (folder / name).stat().st_size, _sha256(folder / name)))
        _seal(folder, path, entries)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
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
    # any byte that differs from how it is written, and still is JSON, is damage too
    if _manifest_bytes(entries) != (path / MANIFEST).read_bytes():
        return [f"{MANIFEST} is damaged"]
    return [fault for entry in entries for fault in _size_faults(path, entry)]


def manifest_sha256(path: Path) -> str | None:
    """What `write_folder` gave when it wrote the folder; None without a manifest."""
    manifest = path / MANIFEST
    return _sha256(manifest) if manifest.is_file() else None


def _seal(folder: Path, path: Path, entries: list[dict[str, Any]]) -> str:
    """Write the manifest of a temporary folder and give the folder its name."""
    content = _manifest_bytes(entries)
    disk.write(folder / MANIFEST, content)
    for inner in sorted({(folder / entry["name"]).parent for entry in entries} | {folder}):
        disk.sync_folder(inner)
    reach("save.sealed")
    if path.exists():
        disk.remove_folder(path)
    disk.rename(folder, path)
    reach("save.renamed")
    return hashlib.sha256(content).hexdigest()


def _manifest_bytes(entries: list[dict[str, Any]]) -> bytes:
    return json_bytes({"schema_version": SCHEMA_VERSION, "files": entries}, indent=1)


def _entry(name: str, size: int, sha256: str) -> dict[str, Any]:
    return {"name": name, "size": size, "sha256": sha256}


def _entry_of(name: str, content: disk.Content) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for part in disk.parts_of(content):
        digest.update(part)
        size += len(part)
    return _entry(name, size, digest.hexdigest())


def _names(folder: Path) -> list[str]:
    """The files below a folder, as relative posix paths in order."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


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
