"""Landlock: a process gives up all files, TCP and foreign processes but what it lists, for good.

Kernel documentation: userspace-api/landlock. ABI 1 guards files (Linux 5.13), 2 renames across folders
(5.19), 3 truncation (6.2), 4 TCP (6.7), 6 signals and abstract sockets (6.12).
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The same numbers on every architecture."""
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
TRUNCATE = 1 << 14
OF_FILES = 1 | WRITE_FILE | READ_FILE | TRUNCATE
"""Rights that a rule on a file, not a folder, may give; the first is EXECUTE."""
NUM_RIGHTS_BY_ABI = (13, 14, 15, 15, 16)
"""File rights that ABI 1, 2, … knows; the last entry counts for all later ones."""
NEVER = 1 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 15
"""EXECUTE, MAKE_CHAR, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, IOCTL_DEV: given nowhere."""
BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def landlock_abi(libc: ctypes.CDLL) -> int:
    """What this kernel knows of Landlock; 0 where it is absent or switched off."""
    version: int = libc.syscall(
        CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION)
    )
    return max(version, 0)


def make_ruleset(
    libc: ctypes.CDLL, abi: int, readable: Iterable[str], writable: Iterable[str]
) -> int:
    """A descriptor of the rules: below `readable` one may read, below `writable` also change.

    Paths that do not exist are left out. Raises OSError.
    """
    rights = (1 << NUM_RIGHTS_BY_ABI[min(abi, len(NUM_RIGHTS_BY_ABI)) - 1]) - 1
    fields = [rights]
    if abi >= 4:
        fields.append(BIND_AND_CONNECT_TCP)
    if abi >= 6:
        fields.append(ABSTRACT_SOCKETS_AND_SIGNALS)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = checked(
        libc.syscall(
            CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
        )
    )
    for path in readable:
        add_rule(libc, ruleset, path, READ_FILE | READ_DIR)
    for path in writable:
        add_rule(libc, ruleset, path, rights & ~NEVER)
    return ruleset


def add_rule(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Gives rights below a path, or on a file."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= OF_FILES
        rule = struct.pack("=Qi", rights, place)
        checked(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)))
    finally:
        os.close(place)


def restrict_self(libc: ctypes.CDLL, ruleset: int) -> None:
    """Puts the process and all it forks under the rules; raises OSError."""
    checked(libc.syscall(RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock failed: {errno.errorcode.get(number, number)}")
    return result
