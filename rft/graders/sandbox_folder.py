"""The folder that a sample may write in: emptied and measured whatever was made of it."""

import contextlib
import os


def empty_folder(path: str, max_entries: int | None = None) -> bool:
    """Removes all that is in a folder, following no link; False when it gave up after `max_entries`.

    Deep folders are lifted to the top one by one, so that neither paths nor calls grow with depth.
    """
    num_removed = 0
    prefix = os.urandom(8).hex()
    while names := listed(path):
        for name in names:
            entry = os.path.join(path, name)
            if not is_folder(entry):
                os.unlink(entry)
                num_removed += 1
                continue
            for inner in listed(entry):
                within = os.path.join(entry, inner)
                if is_folder(within):
                    make_accessible(within)
                    os.rename(within, os.path.join(path, f"{prefix}{num_removed}"))
                else:
                    os.unlink(within)
                num_removed += 1
                if max_entries is not None and num_removed > max_entries:
                    return False
            os.rmdir(entry)
            num_removed += 1
        if max_entries is not None and num_removed > max_entries:
            return not os.listdir(path)
    return True


def remove_folder(path: str) -> None:
    """Removes a folder with all that is in it; what resists is left."""
    with contextlib.suppress(OSError):
        make_accessible(path)
        empty_folder(path)
        os.rmdir(path)


def folder_bytes(path: str, max_entries: int) -> int:
    """Bytes on disk below a folder, of at most so many entries."""
    total = 0
    waiting = [path]
    num_seen = 0
    while waiting and num_seen < max_entries:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                num_seen += 1
                if num_seen > max_entries:
                    break
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total


def is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def listed(path: str) -> list[str]:
    """The names in a folder, which may have been closed to its owner."""
    try:
        return os.listdir(path)
    except PermissionError:
        make_accessible(path)
        return os.listdir(path)


def make_accessible(path: str) -> None:
    """Opens a folder to its owner; where that is refused, it was never closed."""
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
