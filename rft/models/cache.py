"""Converted models are made once, kept in a folder of their own, and made again when damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from rft.errors import MachineError
from rft.runs import disk
from rft.runs.folders import adopt, manifest_faults

SOURCE = "source.json"
FORMAT = 1
"""Raised when conversion changes what it writes, so that older folders are made again."""


def models_cache() -> Path:
    """The folder `models` below RFT_CACHE, else below XDG_CACHE_HOME/rft or ~/.cache/rft."""
    if chosen := os.environ.get("RFT_CACHE"):
        return Path(chosen).expanduser().absolute() / "models"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "rft" / "models"


def make_once(folder: Path, make: Callable[[Path], None], source_sha256: str) -> Path:
    """The folder as `make` fills it; made when it is missing, damaged or of another source.

    Two processes that ask at once make it once. Raises MachineError when the disk refuses.
    """
    if is_made(folder, source_sha256):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            if not is_made(folder, source_sha256):
                disk.sweep(folder.parent)  # what a killed process left; nobody else writes now
                _make(folder, make, source_sha256)
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"cannot write the model cache: {getattr(error, 'strerror', None) or error}",
            where=str(folder),
            remedy="make room there, or set RFT_CACHE to another folder",
        ) from error
    return folder


def is_made(folder: Path, source_sha256: str) -> bool:
    """Whether the folder is whole, by names and sizes, and made from that source."""
    try:
        return not manifest_faults(folder) and (folder / SOURCE).read_text() == _stamp(
            source_sha256
        )
    except OSError:
        return False


def _make(folder: Path, make: Callable[[Path], None], source_sha256: str) -> None:
    temporary = disk.temporary_folder(folder)
    try:
        make(temporary)
    except BaseException:
        disk.remove_folder(temporary)
        raise
    adopt(temporary, folder, {SOURCE: _stamp(source_sha256).encode()})


def _stamp(source_sha256: str) -> str:
    return json.dumps({"format": FORMAT, "sha256": source_sha256}) + "\n"
