"""What a grading process gives up before it runs anything of the user's; Linux only, no root needed.

The worker that loads a source keeps the right to fork; the child that grades a sample does not, and
sees no folder but its own. Nothing here can be undone by the process it was done to, nor by those it
forks. Whatever cannot be given up raises, so that no source runs with less than was asked for.
"""

import ctypes
import errno
import os
import site
import socket
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rft.graders.landlock import landlock_abi, make_ruleset, restrict_self
from rft.graders.seccomp import (
    Architecture,
    child_filter,
    for_process,
    install_filter,
    this_architecture,
    worker_filter,
)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
SIGKILL = 9
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION_3 = 0x20080522
NUM_CAPABILITIES = 64
ABI_GUARDS_TRUNCATION = 3

SYSTEM_LIBRARIES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache",
)  # fmt: skip
SYSTEM_DATA = (
    "/etc/localtime", "/usr/share/zoneinfo", "/usr/share/nltk_data", "/usr/local/share/nltk_data",
    "/dev/zero", "/dev/urandom", "/dev/random",
)  # fmt: skip


class LockdownError(Exception):
    """A layer of the lock-down is not there or does not hold."""


class Lockdown(NamedTuple):
    """The second half, for each process that the locked worker forks."""

    libc: ctypes.CDLL
    ruleset: int
    """Descriptor of the Landlock rules that leave a process one folder to write in."""
    child_filter: bytes

    def enter(self) -> None:
        """Confines this process, a fresh child of the worker, for good."""
        restrict_self(self.libc, self.ruleset)
        os.close(self.ruleset)
        install_filter(self.libc, for_process(self.child_filter, os.getpid()))


class LockedWorker(NamedTuple):
    """A worker after the first half."""

    libc: ctypes.CDLL
    abi: int
    """Landlock's version."""
    architecture: Architecture

    def lockdown_of_children(self, readable: Sequence[str], scratch: str) -> Lockdown:
        """What a child is to enter that may write in `scratch` alone."""
        paths = [*readable_paths(), *readable]
        ruleset = make_ruleset(self.libc, self.abi, paths, [scratch, "/dev/null"])
        return Lockdown(self.libc, ruleset, child_filter(self.architecture))


def lock_worker(home: str) -> LockedWorker:
    """Confines this process and all it will fork to its home folder and the installed packages.

    Raises LockdownError.
    """
    problem, architecture = missing_layer(), this_architecture()
    if problem or architecture is None:
        raise LockdownError(problem)
    libc = c_library()
    abi = landlock_abi(libc)
    try:
        check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        drop_capabilities(libc)
        check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
        ruleset = make_ruleset(libc, abi, readable_paths(), [home, "/dev/null"])
        restrict_self(libc, ruleset)
        os.close(ruleset)
        lacks_truncation = abi < ABI_GUARDS_TRUNCATION
        install_filter(libc, worker_filter(architecture, guards_truncation=lacks_truncation))
    except OSError as error:
        raise LockdownError(str(error)) from None
    verify()
    return LockedWorker(libc, abi, architecture)


def missing_layer() -> str | None:
    """Why this machine cannot confine a grading process, or None when it can."""
    if not sys.platform.startswith("linux"):
        return f"Landlock and seccomp are parts of Linux, and this is {sys.platform}"
    if this_architecture() is None:
        return f"no system-call filter is written for {os.uname().machine}"
    libc = c_library()
    if landlock_abi(libc) == 0:
        return f"Linux {os.uname().release} has no Landlock, or it is switched off (5.13 has it)"
    # without a program the call fails: EFAULT where filters are there, EINVAL where they are not
    libc.prctl(22, 2, None, 0, 0)
    if ctypes.get_errno() not in (errno.EFAULT, errno.EACCES):
        return "seccomp filters are not there"
    return None


def verify() -> None:
    """Tries what must fail; raises LockdownError when it does not."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        if error.errno != errno.EACCES:
            raise LockdownError(f"a foreign folder answers {error.strerror}") from None
    else:
        raise LockdownError("foreign folders can still be opened")
    try:
        socket.socket().close()
    except OSError as error:
        if error.errno != errno.EPERM:
            raise LockdownError(f"a socket answers {error.strerror}") from None
    else:
        raise LockdownError("sockets can still be made")


def readable_paths() -> list[str]:
    """Python, its installed packages and what they need of the system; no folder of the user's."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    below = [os.path.join(prefix, part) for prefix in prefixes for part in ("lib", "nltk_data")]
    shared = [os.path.join(prefix, "share", "nltk_data") for prefix in prefixes]
    installed = [*(sysconfig.get_path(name) for name in names), *site.getsitepackages()]
    paths = [*installed, *below, *shared, *SYSTEM_LIBRARIES, *SYSTEM_DATA]
    return outermost({os.path.realpath(path) for path in paths if os.path.exists(path)})


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths without those that lie below another: each rule costs every child a little."""
    kept: list[str] = []
    for path in sorted(paths):
        if not kept or not path.startswith(kept[-1] + os.sep):
            kept.append(path)
    return kept


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without its powers; for any other user there is nothing to drop."""
    for capability in range(NUM_CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    check(libc.syscall(CAPSET[os.uname().machine], header, bytes(24)), "capset")


def die_with_parent(libc: ctypes.CDLL, parent: int) -> None:
    """Ends this process when `parent` ends, which may have happened already."""
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what} failed")
