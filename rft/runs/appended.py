"""A file of lines that only grows, and stays whole when the disk or the process gives out."""

import os
from pathlib import Path

from rft.runs.folders import disk_error


class AppendedFile:
    """A file of lines that grows at its end; a line torn by a crash is cut when it is opened."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        self.size = content.rfind(b"\n") + 1
        os.ftruncate(self._descriptor, self.size)

    def append(self, line: bytes) -> None:
        """Add one whole line; when the disk refuses, MachineError and the file as before."""
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                # only a full disk or a quota ends a write early; the second write says which
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, self.size)
            raise disk_error(error, self._path) from error
        self.size += written

    def cut(self, size: int) -> None:
        """Drop what stands beyond `size` bytes."""
        self.size = min(self.size, size)
        os.ftruncate(self._descriptor, self.size)

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise disk_error(error, self._path) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
