"""System-call filters for grading processes: seccomp-BPF, for Linux on x86-64 and arm64.

A filter refuses what it knows to be harmful (EPERM) and all calls younger than itself (ENOSYS), so that
a newer kernel opens no door. It imports little: whatever a grading process holds, each fork pays for.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

HIGHEST_KNOWN = 462
"""Calls above this number are answered as a kernel that lacks them would."""

DENIED: Mapping[str, tuple[int | None, int | None]] = {
    # the network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # other processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "setsid": (112, 157), "setpgid": (109, 154),
    # attributes of files, which Landlock does not guard; watching and locking files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88),
    "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13), "flock": (73, 32),
    "mknod": (133, None), "mknodat": (259, 33), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # memory and queues that outlive a process
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # who the process is
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "setgroups": (116, 159), "capset": (126, 91),
    "personality": (135, 92),
    # the kernel and the machine
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428),
    "mount_setattr": (442, 442), "statmount": (457, 457), "listmount": (458, 458),
    "lsm_get_self_attr": (459, 459), "lsm_set_self_attr": (460, 460),
    "lsm_list_modules": (461, 461), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, None), "acct": (163, 89), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "syslog": (103, 116),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "vhangup": (153, 58), "_sysctl": (156, None), "uselib": (134, None), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_secret": (447, 447),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "seccomp": (317, 277),
}  # fmt: skip
"""Refused in every grading process: the call, its number on x86-64 and on arm64."""

NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131),
    "prctl": (157, 167), "ioctl": (16, 29), "fcntl": (72, 25), "socketpair": (53, 199),
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "truncate": (76, 45),
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437),
    "memfd_create": (319, 279),
}  # fmt: skip
"""Calls that depend on their arguments, or are answered as if they did not exist."""

OF_ANY_PROCESS = (
    "prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr",
)  # fmt: skip
"""Calls whose first argument names a process or thread, 0 being the caller."""
ITSELF = 0
SIGKILL = 9
NO_CALL = 0xFFFFFFFF
OWN_PID = 0x7FFFFFFF
"""Stands for the process a filter is for until `for_process` puts its number there; no pid is so high."""

X32_BIT = 0x40000000
"""Set in the numbers of the x32 ABI, a second door to the calls of x86-64."""

LOAD, AND, RETURN = 0x20, 0x54, 0x06
EQUAL, GREATER, GREATER_OR_EQUAL, ANY_BIT = 0x15, 0x25, 0x35, 0x45
ALLOW, KILL_PROCESS, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16

CLONE_THREAD = 0x00010000
CLONE_APART = 0x7E028080
"""CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, and CLONE_PARENT: a
process that is not the child of the one that made it."""
AF_UNIX, SOCK_STREAM, SOCK_TYPE = 1, 1, 0xF
O_TRUNC, O_ACCMODE = 0o1000, 0o3
HARMLESS_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS (is it a terminal), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Others type into a
terminal, aim signals at a process, or change files that are open for reading only."""
HARMLESS_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)
"""Copies, flags, locks, sizes of pipes, seals. Others send a descriptor's signals to any process."""
HARMLESS_PRCTL = (2, 3, 15, 16, 21, 22, 27, 29, 30, 38, 39, 0x53564D41)
"""Reading settings, thread names, timer slack, further filters, names of memory areas."""
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


class Architecture(NamedTuple):
    """A machine the filters are written for."""

    column: int
    """Of the tables of numbers."""
    audit: int
    """What the kernel calls it in a filter."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(0, 0xC000003E),
    "aarch64": Architecture(1, 0xC00000B7),
}


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def this_architecture() -> Architecture | None:
    """The machine's, or None when no filter is written for it."""
    # a 32-bit Python on a 64-bit kernel makes 32-bit calls
    return ARCHITECTURES.get(os.uname().machine) if struct.calcsize("P") == 8 else None


def worker_filter(architecture: Architecture, *, guards_truncation: bool) -> bytes:
    """The filter of a process that may fork and end its children, and of all that it forks.

    `guards_truncation` closes what Landlock before Linux 6.2 leaves open.
    """
    rules = {
        "clone": clone_rule(may_fork=True),
        "ioctl": only(1, HARMLESS_IOCTL),
        "fcntl": only(1, HARMLESS_FCNTL),
        "socketpair": socketpair_rule(),
        **{name: only(0, [ITSELF]) for name in OF_ANY_PROCESS},
    }
    if guards_truncation:
        rules["truncate"] = [verdict(False)]
        rules["open"], rules["openat"] = truncation_rule(1), truncation_rule(2)
    program = [
        *when(GREATER_OR_EQUAL, X32_BIT, errno.ENOSYS),
        *when(GREATER, HIGHEST_KNOWN, errno.ENOSYS),
    ]
    for name in ("clone3", "openat2"):  # their arguments stand in memory, out of a filter's sight
        program += when(EQUAL, number_of(NUMBERS, name, architecture), errno.ENOSYS)
    for name in DENIED:
        program += when(EQUAL, number_of(DENIED, name, architecture), errno.EPERM)
    return assemble(architecture, program, rules)


def child_filter(architecture: Architecture) -> bytes:
    """What a child adds to the worker's filter: no forks, and signals to `OWN_PID` alone."""
    rules = {
        "clone": clone_rule(may_fork=False),
        "kill": own_signal_rule(1),
        "tgkill": own_signal_rule(2),
        "prctl": only(0, HARMLESS_PRCTL),
    }
    memory_outside_limits = number_of(NUMBERS, "memfd_create", architecture)
    return assemble(architecture, when(EQUAL, memory_outside_limits, errno.EPERM), rules)


def assemble(
    architecture: Architecture,
    by_number: Sequence[Instruction],
    by_arguments: Mapping[str, Sequence[Instruction]],
) -> bytes:
    """A program for one architecture: verdicts on numbers, then on the arguments of some calls."""
    program = [
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (EQUAL, 1, 0, architecture.audit),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER_OFFSET),
        *by_number,
    ]
    for name, rule in by_arguments.items():
        program += [(EQUAL, 0, len(rule), number_of(NUMBERS, name, architecture)), *rule]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def number_of(
    table: Mapping[str, tuple[int | None, int | None]], name: str, architecture: Architecture
) -> int:
    """A call's number; one that no kernel has where the architecture lacks the call."""
    number = table[name][architecture.column]
    return NO_CALL if number is None else number


def when(comparison: int, operand: int, error: int) -> list[Instruction]:
    """Refuses with an error where the call's number compares so."""
    return [(comparison, 0, 1, operand), (RETURN, 0, 0, REFUSE | error)]


def only(argument: int, values: Sequence[int]) -> list[Instruction]:
    """Allows just those values of an argument; the kernel, too, reads its lower 32 bits."""
    tests = [(EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [load(argument), *tests, verdict(False), verdict(True)]


def own_signal_rule(signal_argument: int) -> list[Instruction]:
    """Allows signals to itself but the one by which the kernel ends those that take too much memory."""
    return [
        load(0),
        (EQUAL, 0, 3, OWN_PID),
        load(signal_argument),
        (EQUAL, 1, 0, SIGKILL),
        verdict(True),
        verdict(False),
    ]


def socketpair_rule() -> list[Instruction]:
    """Allows streams alone: a pair of datagram sockets reaches any other by its address."""
    return [
        load(0),
        (EQUAL, 0, 4, AF_UNIX),
        load(1),
        (AND, 0, 0, SOCK_TYPE),
        (EQUAL, 0, 1, SOCK_STREAM),
        verdict(True),
        verdict(False),
    ]


def clone_rule(may_fork: bool) -> list[Instruction]:
    """Threads always, processes where forking is allowed, new namespaces and foster parents never."""
    needed = [] if may_fork else [(ANY_BIT, 0, 1, CLONE_THREAD)]
    to_refusal = len(needed) + 1
    return [
        load(0),
        (ANY_BIT, to_refusal, 0, CLONE_APART),
        *needed,
        verdict(True),
        verdict(False),
    ]


def truncation_rule(argument: int) -> list[Instruction]:
    """Refuses to truncate by opening for reading only, which old Landlock takes for reading."""
    return [
        load(argument),
        (ANY_BIT, 0, 2, O_TRUNC),
        (AND, 0, 0, O_ACCMODE),
        (EQUAL, 1, 0, 0),
        verdict(True),
        verdict(False),
    ]


def load(argument: int) -> Instruction:
    return (LOAD, 0, 0, ARGUMENTS_OFFSET + 8 * argument)


def verdict(is_allowed: bool) -> Instruction:
    return (RETURN, 0, 0, ALLOW if is_allowed else REFUSE | errno.EPERM)


def for_process(program: bytes, pid: int) -> bytes:
    """A child's filter with its own number in it."""
    return program.replace(struct.pack("I", OWN_PID), struct.pack("I", pid))


def install_filter(libc: ctypes.CDLL, program: bytes) -> None:
    """Puts the process and all it forks under the filter, for good; raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = FilterProgram(len(program) // 8, ctypes.addressof(instructions))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp refused the filter: {errno.errorcode.get(number, number)}")
