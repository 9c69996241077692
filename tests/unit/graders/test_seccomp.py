"""The system-call filters, run by an interpreter of their instructions: for arm64 too."""

import errno
import os
import struct

import pytest

from rft.graders.seccomp import (
    ALLOW,
    ARCHITECTURES,
    DENIED,
    KILL_PROCESS,
    NUMBERS,
    REFUSE,
    child_filter,
    for_process,
    worker_filter,
)

EPERM, ENOSYS = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
READ = {"x86_64": 0, "aarch64": 63}
SIGCHLD = 17
THREAD = 0x003D0F00
"""The flags with which glibc starts a thread."""


def verdict(program, machine, number, *arguments, audit=None):
    """What the kernel would answer: `struct seccomp_data` through a program of classic BPF."""
    audit = ARCHITECTURES[machine].audit if audit is None else audit
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, audit, 0, *[a & (2**64 - 1) for a in padded])
    instructions = list(struct.iter_unpack("HBBI", program))
    position = accumulator = 0
    while True:
        code, if_true, if_false, operand = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return operand
        else:
            holds = {
                0x15: accumulator == operand,
                0x25: accumulator > operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }[code]
            position += if_true if holds else if_false


def worker(machine, guards_truncation=False):
    return worker_filter(ARCHITECTURES[machine], guards_truncation=guards_truncation)


def child(machine, pid=4321):
    return for_process(child_filter(ARCHITECTURES[machine]), pid)


def number(machine, name):
    table = DENIED if name in DENIED else NUMBERS
    return table[name][ARCHITECTURES[machine].column]


@pytest.fixture(params=list(ARCHITECTURES))
def machine(request):
    return request.param


def test_every_listed_call_is_refused(machine):
    program = worker(machine)
    names = [name for name in DENIED if number(machine, name) is not None]
    assert len(names) > 100
    assert {verdict(program, machine, number(machine, name)) for name in names} == {EPERM}


def test_what_a_filter_does_not_know_is_not_there(machine):
    program = worker(machine)
    assert verdict(program, machine, 463) == ENOSYS
    assert verdict(program, machine, 100_000) == ENOSYS
    assert verdict(program, machine, number(machine, "clone3")) == ENOSYS
    assert verdict(program, machine, number(machine, "openat2")) == ENOSYS
    assert verdict(program, machine, READ[machine]) == ALLOW
    assert verdict(program, machine, 0x40000000 | READ[machine]) == ENOSYS
    assert verdict(program, machine, READ[machine], audit=0x40000003) == KILL_PROCESS
    assert verdict(child(machine), machine, READ[machine], audit=0x40000003) == KILL_PROCESS


@pytest.mark.parametrize(
    ("name", "arguments", "in_worker", "in_child"),
    [
        ("clone", [THREAD], ALLOW, ALLOW),
        ("clone", [SIGCHLD], ALLOW, EPERM),
        ("clone", [0x4100 | SIGCHLD], ALLOW, EPERM),
        ("clone", [0x10000000 | SIGCHLD], EPERM, EPERM),
        ("clone", [0x10000000 | THREAD], EPERM, EPERM),
        ("clone", [0x00020000 | SIGCHLD], EPERM, EPERM),
        ("clone", [0x00008000 | SIGCHLD], EPERM, EPERM),
        ("memfd_create", [], ALLOW, EPERM),
        ("kill", [4321, 15], ALLOW, ALLOW),
        ("kill", [4321, 9], ALLOW, EPERM),
        ("kill", [4320, 9], ALLOW, EPERM),
        ("kill", [0, 9], ALLOW, EPERM),
        ("kill", [-1, 9], ALLOW, EPERM),
        ("kill", [-4321, 9], ALLOW, EPERM),
        ("tgkill", [4321, 4399, 6], ALLOW, ALLOW),
        ("tgkill", [4321, 4399, 9], ALLOW, EPERM),
        ("tgkill", [4320, 4320, 6], ALLOW, EPERM),
        ("prctl", [15], ALLOW, ALLOW),
        ("prctl", [1, 0], ALLOW, EPERM),
        ("prctl", [4, 1], ALLOW, EPERM),
        ("prctl", [36, 1], ALLOW, EPERM),
        ("ioctl", [0, 0x5401], ALLOW, ALLOW),
        ("ioctl", [0, 0x541B], ALLOW, ALLOW),
        ("ioctl", [0, 0x5412], EPERM, ALLOW),
        ("ioctl", [0, 0xFFFFFFFF00005412], EPERM, ALLOW),
        ("ioctl", [3, 0x40086602], EPERM, ALLOW),
        ("ioctl", [3, 0x40806685], EPERM, ALLOW),
        ("ioctl", [3, 0x8901], EPERM, ALLOW),
        ("fcntl", [3, 1], ALLOW, ALLOW),
        ("fcntl", [3, 8, 1], EPERM, ALLOW),
        ("fcntl", [3, 10, 9], EPERM, ALLOW),
        ("fcntl", [3, 15], EPERM, ALLOW),
        ("fcntl", [3, 1024], EPERM, ALLOW),
        ("fcntl", [3, 1030], ALLOW, ALLOW),
        ("socketpair", [1, 1, 0], ALLOW, ALLOW),
        ("socketpair", [1, 0x80801, 0], ALLOW, ALLOW),
        ("socketpair", [1, 2, 0], EPERM, ALLOW),
        ("socketpair", [1, 0x80802, 0], EPERM, ALLOW),
        ("socketpair", [1, 5, 0], EPERM, ALLOW),
        ("socketpair", [2, 1, 0], EPERM, ALLOW),
        ("prlimit64", [0, 7], ALLOW, ALLOW),
        ("prlimit64", [1, 7], EPERM, ALLOW),
        ("sched_setaffinity", [0], ALLOW, ALLOW),
        ("sched_setaffinity", [1], EPERM, ALLOW),
    ],
)
def test_calls_that_depend_on_their_arguments(machine, name, arguments, in_worker, in_child):
    call = number(machine, name)
    assert verdict(worker(machine), machine, call, *arguments) == in_worker
    # a child lies under both filters, and the stricter counts
    assert verdict(child(machine), machine, call, *arguments) == in_child


def test_truncation_is_guarded_where_landlock_does_not(machine):
    guarded, plain = worker(machine, guards_truncation=True), worker(machine)
    openat, truncate = number(machine, "openat"), number(machine, "truncate")
    for flags, expected in (
        (os.O_RDONLY | os.O_TRUNC, EPERM),
        (os.O_RDONLY, ALLOW),
        (os.O_WRONLY | os.O_TRUNC, ALLOW),
        (os.O_RDWR | os.O_TRUNC | os.O_CREAT, ALLOW),
    ):
        assert verdict(guarded, machine, openat, 3, 0, flags) == expected
        assert verdict(plain, machine, openat, 3, 0, flags) == ALLOW
    assert verdict(guarded, machine, truncate) == EPERM
    assert verdict(plain, machine, truncate) == ALLOW


def test_jumps_stay_inside(machine):
    for program in (worker(machine), worker(machine, guards_truncation=True), child(machine)):
        instructions = list(struct.iter_unpack("HBBI", program))
        assert instructions[-1] == (0x06, 0, 0, ALLOW)
        assert len(instructions) < 4096
        for position, (code, if_true, if_false, _) in enumerate(instructions):
            if code & 0x07 == 0x05:
                assert position + 1 + max(if_true, if_false) < len(instructions)
