"""The folder that a sample may write in: emptied and measured whatever was made of it.

Everything goes through descriptors of folders that were opened without following links, never through
paths: a sample may have put a link to anywhere in the place of anything.
"""

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterator

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


MAX_DEPTH = 32


class ScratchFolder:
    """A new folder at a path, held by its descriptor."""

    def __init__(self, path: str):
        os.mkdir(path, 0o700)
        self.path = path
        self.fd = os.open(path, OPEN_FOLDER)

    def is_emptied(self, max_entries: int | None = None) -> bool:
        """Removes all that is in it; False when that fails, goes on too long or another has its place."""
        try:
            at_path, held = os.stat(self.path, follow_symlinks=False), os.fstat(self.fd)
            is_same = (at_path.st_dev, at_path.st_ino) == (held.st_dev, held.st_ino)
            return is_same and empty(self.fd, max_entries)
        except OSError:
            return False

    def num_bytes(self, max_entries: int) -> float:
        """Bytes on disk of what is in it; infinite when there are more entries than so many."""
        return tree_bytes(self.fd, max_entries)


def remove_folder(path: str) -> None:
    """Removes a folder with all that is in it, but no link; what resists is left."""
    with contextlib.suppress(OSError):
        fd = os.open(path, OPEN_FOLDER)
        try:
            empty(fd, None)
        finally:
            os.close(fd)
        os.rmdir(path)


def empty(top: int, max_entries: int | None) -> bool:
    """Removes all that is in a folder; False when it gave up after `max_entries`. Raises OSError.

    What lies in a folder's folders is lifted to the top, so that neither names nor calls grow with depth.
    """
    with contextlib.suppress(OSError):  # where it is refused, nothing could have closed the folder
        os.fchmod(top, 0o700)
    num_removed = 0
    prefix = os.urandom(8).hex()
    while names := os.listdir(top):
        for name in names:
            if max_entries is not None and num_removed > max_entries:
                return False
            if is_folder(name, top):
                num_removed += lift_folders(name, top, f"{prefix}-{num_removed}")
                os.rmdir(name, dir_fd=top)
            else:
                os.unlink(name, dir_fd=top)
            num_removed += 1
    return True


def lift_folders(name: str, top: int, prefix: str) -> int:
    """Empties a folder in `top`: its files go, its folders move up; gives how many there were."""
    folder = open_folder(name, top)
    try:
        entries = os.listdir(folder)
        for index, entry in enumerate(entries):
            if is_folder(entry, folder):
                os.close(open_folder(entry, folder))  # a closed folder cannot be moved
                lift(entry, folder, f"{prefix}-{index}", top)
            else:
                os.unlink(entry, dir_fd=folder)
    finally:
        os.close(folder)
    return len(entries)


def lift(name: str, folder: int, new_name: str, top: int) -> None:
    """Moves a folder up, or removes it where it is where Landlock (before Linux 5.19) forbids that."""
    try:
        os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=top)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        import shutil  # seldom needed, and every fork would pay for it

        shutil.rmtree(name, dir_fd=folder)


def open_folder(name: str, parent: int) -> int:
    """A folder's descriptor, opened first to its owner when it was closed to him."""
    try:
        return os.open(name, OPEN_FOLDER, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, OPEN_FOLDER, dir_fd=parent)


def tree_bytes(folder: int, max_entries: int) -> float:
    """Bytes on disk below a folder; infinite where it is larger or deeper than can be measured."""
    total = 0.0
    for number, size in enumerate(sizes_below(folder, MAX_DEPTH)):
        if number == max_entries:
            return math.inf
        total += size
    return total


def sizes_below(folder: int, depth: int) -> Iterator[float]:
    """Bytes on disk of each entry; infinite for what lies deeper than `depth`."""
    if depth == 0:
        yield math.inf
        return
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
        yield math.inf
    for name in names:
        try:
            entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
            is_inner = stat.S_ISDIR(entry.st_mode)
            inner = os.open(name, OPEN_FOLDER, dir_fd=folder) if is_inner else None
        except FileNotFoundError:  # it is gone already
            continue
        except OSError:  # nobody can look into it
            yield math.inf
            return
        yield entry.st_blocks * 512
        if inner is not None:
            try:
                yield from sizes_below(inner, depth - 1)
            finally:
                os.close(inner)


def is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
