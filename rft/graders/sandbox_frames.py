"""Frames between the processes of a sandbox: a length of four bytes, then JSON."""

import json
import os
import struct
from typing import Any

MAX_FRAME_BYTES = 8 << 20
"""A longer frame from a process that runs foreign code is not waited for."""

Reply = dict[str, Any]


def read_frame(fd: int) -> bytes:
    """The next frame; raises EOFError when the other end is closed."""
    (length,) = struct.unpack(">I", read_exactly(fd, 4))
    return read_exactly(fd, length)


def read_exactly(fd: int, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        part = os.read(fd, min(num_bytes - len(received), 1 << 20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


def write_frame(fd: int, reply: Reply) -> None:
    """The whole frame, however long the other end takes."""
    frame = memoryview(packed(reply))
    while frame:
        frame = frame[os.write(fd, frame) :]


def packed(reply: Reply) -> bytes:
    body = json.dumps(reply).encode()
    return struct.pack(">I", len(body)) + body


def read_available(fd: int) -> bytes | None:
    """What a descriptor holds now: None when nothing, an empty string at its end."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def take_frame(received: bytearray) -> bytes | None:
    """Removes the first whole frame; None while there is none. Raises ValueError for one too long."""
    if len(received) < 4:
        return None
    (length,) = struct.unpack(">I", received[:4])
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    if len(received) < 4 + length:
        return None
    frame = bytes(received[4 : 4 + length])
    del received[: 4 + length]
    return frame
