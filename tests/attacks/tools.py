"""What attacks are made of: this file's text stands before them in the grading process."""

# ruff: noqa: F401  (the attacks that follow need the imports)

import builtins
import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


class Loot(Exception):
    """What an attack got, on its way out."""


def raw(number, *arguments):
    """A system call by its number on x86-64, past the C library's wrapper."""
    converted = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    libc.syscall.restype = ctypes.c_long
    return checked(libc.syscall(ctypes.c_long(number), *converted))


def checked(result):
    """The result of a C call, or OSError."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def machine_code(code, *arguments):
    """Runs bytes of x86-64 code as a function of integers."""
    size = 4096
    memory = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    kind = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * len(arguments))
    return kind(address)(*arguments)


def low_memory(content):
    """Address below 4 GB of a copy of the bytes, which 32-bit calls can name."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    map_32bit = 0x40
    flags = map_32bit | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    ctypes.memmove(address, content, len(content))
    return address


def call_32bit(number, first=0, second=0, third=0):
    """A system call through the 32-bit door, `int 0x80`; gives the result, negative for an error."""
    code = b"".join(
        [
            b"\x53",  # push rbx
            b"\x89\xf8",  # mov eax, edi
            b"\x89\xf3",  # mov ebx, esi
            b"\x49\x89\xc8",  # mov r8, rcx
            b"\x89\xd1",  # mov ecx, edx
            b"\x44\x89\xc2",  # mov edx, r8d
            b"\xcd\x80",  # int 0x80
            b"\x48\x98",  # cdqe
            b"\x5b\xc3",  # pop rbx; ret
        ]
    )
    result = machine_code(code, number, first, second, third)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def read_all(fd):
    return os.read(fd, 4096).decode(errors="replace")


def forked(pid, reader, writer):
    """The second half of a fork: the child's pid as the child itself told it."""
    if pid == 0:
        os.write(writer, b"alive in %d" % os.getpid())
        time.sleep(30)
        os._exit(0)
    os.close(writer)
    assert select.select([reader], [], [], 2)[0], "the child says nothing"
    return read_all(reader)


FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
NO_DUMP = 0x40


def file_flags(fd):
    return struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("i", 0)))[0]


def inherited_descriptors():
    """Those that are open, less the standard ones."""
    found = []
    for fd in range(3, 1024):
        with contextlib.suppress(OSError):
            found.append((fd, stat.S_IFMT(os.fstat(fd).st_mode)))
    return found
