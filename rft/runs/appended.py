"""A file of lines that only grows, and stays whole when the disk or the process gives out."""

import contextlib
import os
from pathlib import Path

from rft.errors import DiskError
from rft.runs import disk


class AppendedFile:
    """A file of lines that grows at its end; a line torn by a crash is cut when it is opened."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = self._open()
        content = path.read_bytes()
        self.size = content.rfind(b"\n") + 1
        os.ftruncate(self._descriptor, self.size)

    def append(self, line: bytes) -> None:
        """Add one whole line; when the disk refuses, DiskError and the file as before."""
        try:
            disk.append(self._descriptor, line, self._path)
        except DiskError:
            with contextlib.suppress(OSError):  # what stands beyond is cut when it is opened again
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(line)

    def cut(self, size: int, kept: bytes = b"") -> None:
        """Drop what stands beyond `size` bytes, but for the lines `kept`, in one move."""
        self.size = min(self.size, size)
        if not kept:
            with disk.told_as_disk_error(self._path):
                os.ftruncate(self._descriptor, self.size)
            return
        self._replace(self._path.read_bytes()[: self.size] + kept)

    def first_line(self) -> bytes:
        """With its end; empty for an empty file."""
        with self._path.open("rb") as stream:
            return stream.readline()

    def replace_first_line(self, line: bytes) -> None:
        """In one move."""
        self._replace(line + self._path.read_bytes()[len(self.first_line()) : self.size])

    def beyond(self, size: int) -> bytes:
        """What stands beyond `size` bytes."""
        return self._path.read_bytes()[size : self.size]

    def _replace(self, content: bytes) -> None:
        disk.replace(self._path, content)
        self.close()
        self._descriptor = self._open()
        self.size = len(content)

    def sync(self) -> None:
        disk.sync(self._descriptor, self._path)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with disk.told_as_disk_error(self._path):
            return os.open(self._path, flags, 0o644)
