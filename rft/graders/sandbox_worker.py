"""The process that runs a python grader: a script of its own that knows nothing of rft.

It reads the source from its channel, runs it once, then for each request forks a child that calls
`grade(sample, item)` and sends back one frame. It ends when its channel does.
"""

import contextlib
import gc
import json
import linecache
import math
import os
import random
import reprlib
import select
import shutil
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

FILE_NAME = "grader.py"
MAX_DETAILS = 4096
"""Characters of a traceback, and bytes of the output, that are kept: the last ones."""
MAX_RESULT_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 30
RESERVE_BYTES = 1 << 20
"""Freed when memory has run out, so that a child can still say so."""
POLL_SECONDS = 0.02
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Reply = dict[str, Any]
Grade = Callable[[Any, Any], Any]
Prctl = Callable[[int, int], Any]


def main() -> None:
    channel = int(sys.argv[1])
    home = os.getcwd()
    os.set_inheritable(channel, False)
    try:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            serve(channel, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def serve(channel: int, home: str) -> None:
    """Loads the source and grades until the channel ends, which raises EOFError."""
    job = json.loads(read_frame(channel))
    write_frame(channel, {"kind": "started"})
    set_limits(job["memory_mb"])
    prctl = find_prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # The engine may be gone while the source runs: then nothing else would end an endless loop.
    signal.setitimer(signal.ITIMER_REAL, job["timeout_seconds"])
    grade, failure = load(job["source"])
    signal.setitimer(signal.ITIMER_REAL, 0)
    if grade is None:
        write_frame(channel, {"kind": "source", "details": failure})
        return
    gc.collect()
    gc.freeze()
    write_frame(channel, {"kind": "ready"})
    while True:
        write_frame(channel, run_sample(grade, read_frame(channel), channel, home, job, prctl))


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
    body = json.dumps(reply).encode()
    frame = memoryview(struct.pack(">I", len(body)) + body)
    while frame:
        frame = frame[os.write(fd, frame) :]


def set_limits(memory_mb: int) -> None:
    """Limits of this process and all it forks; those that the system lacks are left out."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_AS": memory_mb << 20, "RLIMIT_FSIZE": MAX_FILE_BYTES, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))


def find_prctl() -> Prctl:
    """Linux's prctl, or a function that does nothing."""
    if not sys.platform.startswith("linux"):
        return lambda option, value: None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda option, value: None
    return lambda option, value: prctl(option, value, 0, 0, 0)


def load(source: str) -> tuple[Grade | None, str]:
    """The grade function, or None and what went wrong."""
    module = ModuleType("grader")
    sys.modules["grader"] = module
    lines = [line + "\n" for line in source.split("\n")]
    linecache.cache[FILE_NAME] = (len(source), None, lines, FILE_NAME)
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
        grade: Grade = module.__dict__["grade"]
    except BaseException as error:
        return None, describe(error)
    return (grade, "") if callable(grade) else (None, "grade is not a function")


def run_sample(
    grade: Grade, request: bytes, channel: int, home: str, job: Reply, prctl: Prctl
) -> Reply:
    """Grades one request in a child; raises EOFError when the channel ends meanwhile."""
    scratch = os.path.join(home, "sample")
    empty_folder(scratch)
    result, result_of_child = os.pipe()
    output, output_of_child = os.pipe()
    spared = own_children()
    pid = os.fork()
    if pid == 0:
        become_child(channel, output_of_child, scratch, prctl)
        grade_and_exit(grade, request, result_of_child, job["memory_mb"])
    os.close(result_of_child)
    os.close(output_of_child)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    try:
        return Child(pid, result, output).wait(channel, job["timeout_seconds"], job["memory_mb"])
    finally:
        end_family(pid, spared)
        os.close(result)
        os.close(output)


def empty_folder(path: str) -> None:
    """Makes the folder, or empties the one of the last sample, whatever that made of it."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.exists(path):
        os.chmod(path, 0o700)
        if not os.listdir(path):
            return
        shutil.rmtree(path)
    os.mkdir(path)


def become_child(channel: int, output: int, scratch: str, prctl: Prctl) -> None:
    """Leaves the worker behind: own process group, own folder, output into a pipe."""
    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(channel)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(scratch)
        os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    except BaseException:
        os._exit(1)


def grade_and_exit(grade: Grade, request: bytes, result: int, memory_mb: int) -> NoReturn:
    """Calls grade, writes one frame and ends the process."""
    reserve = bytearray(RESERVE_BYTES)
    try:
        own_pid = os.getpid()
        try:
            reply = call(grade, request)
        except MemoryError:
            del reserve
            reply = {"kind": "memory", "details": f"memory limit {memory_mb} MB"}
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # A fork that grade itself made comes back here too, and has no say.
        if os.getpid() == own_pid:
            write_frame(result, reply)
    except BaseException:
        os._exit(1)
    os._exit(0)


def call(grade: Grade, request: bytes) -> Reply:
    """Calls grade, with random numbers that depend on the request alone; raises MemoryError."""
    try:
        random.seed(request)
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(zlib.crc32(request))
        arguments = json.loads(request)
        return read_reward(grade(arguments["sample"], arguments["item"]))
    except MemoryError:
        raise
    except BaseException as error:
        return {"kind": "fault", "details": describe(error)}


def read_reward(value: object) -> Reply:
    """The reward in what grade returned: anything that converts to a finite float, but no text."""
    if hasattr(type(value), "__float__"):
        reward = float(value)  # type: ignore[arg-type]
        if math.isfinite(reward):
            return {"kind": "reward", "reward": reward}
    what = f"grade returned {reprlib.repr(value)} ({type(value).__name__})"
    return {"kind": "fault", "details": f"{what}; it must return a finite number"}


def describe(error: BaseException) -> str:
    """The traceback from the source's first line on; its end when it is long."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))[-MAX_DETAILS:]


class Child:
    """The worker's view of the process that grades one sample."""

    def __init__(self, pid: int, result: int, output: int):
        self._pid = pid
        self._result = result
        self._output = output
        self._received = bytearray()
        self._printed = bytearray()
        os.set_blocking(result, False)
        os.set_blocking(output, False)

    def wait(self, channel: int, timeout_seconds: float, memory_mb: int) -> Reply:
        """What the child says, or what became of it."""
        deadline = time.monotonic() + timeout_seconds
        poller = select.poll()
        for fd in (self._result, self._output, channel):
            poller.register(fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(1000 * min(left, POLL_SECONDS))}
            if channel in ready:  # nothing is asked meanwhile: the other end is gone
                raise EOFError
            if self._output in ready and not self._read_output():
                poller.unregister(self._output)
            if self._result in ready and not self._read_result():
                poller.unregister(self._result)
            status = None if self._is_complete else self._exit_status()
            if status is not None:
                self._read_result()
            if self._is_complete:
                return self._with_output(parse_result(self._received))
            if status is not None:
                return self._with_output(read_status(status, memory_mb))
        return self._with_output(
            {"kind": "timeout", "details": f"timeout after {timeout_seconds:g} s"}
        )

    @property
    def _is_complete(self) -> bool:
        """Whether a whole frame is there, or one that is too long to wait for."""
        if len(self._received) < 4:
            return False
        (length,) = struct.unpack(">I", self._received[:4])
        return bool(length > MAX_RESULT_BYTES or len(self._received) >= 4 + length)

    def _read_result(self) -> bool:
        """Reads what is there; False at the end of the pipe."""
        part = read_available(self._result)
        self._received += part or b""
        return part != b""

    def _read_output(self) -> bool:
        part = read_available(self._output)
        self._printed += part or b""
        del self._printed[:-MAX_DETAILS]
        return part != b""

    def _exit_status(self) -> int | None:
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        return status if pid else None

    def _with_output(self, reply: Reply) -> Reply:
        if reply["kind"] == "reward":
            return reply
        self._read_output()
        printed = self._printed.decode(errors="replace").strip()
        return {**reply, "details": reply["details"] + (f"\noutput:\n{printed}" if printed else "")}


def read_available(fd: int) -> bytes | None:
    """What a pipe holds now: None when nothing, an empty string at its end."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None


def parse_result(received: bytearray) -> Reply:
    """The reply in a child's frame; a frame that no worker code wrote is a fault."""
    (length,) = struct.unpack(">I", received[:4])
    with contextlib.suppress(ValueError, TypeError, KeyError):
        reply = json.loads(received[4 : 4 + length])
        if reply["kind"] == "reward" and math.isfinite(reply["reward"]):
            return {"kind": "reward", "reward": float(reply["reward"])}
        if reply["kind"] in ("fault", "memory"):
            return {"kind": reply["kind"], "details": str(reply["details"])}
    return {"kind": "fault", "details": "grade's process sent something that is not a result"}


def read_status(status: int, memory_mb: int) -> Reply:
    """What an ended child without a result means."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            details = f"memory limit {memory_mb} MB: the process was killed"
            return {"kind": "memory", "details": details}
        ending = f"by signal {number} ({signal.strsignal(number)})"
    else:
        ending = f"with exit code {os.WEXITSTATUS(status)}"
    return {"kind": "fault", "details": f"grade ended its process {ending} before it returned"}


def end_family(pid: int, spared: set[int]) -> None:
    """Kills a child, its process group and, on Linux, whatever else it left running."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    for _ in range(100):  # a killed process hands its children over to this one
        strays = own_children() - spared
        if not strays:
            return
        for stray in strays:
            with contextlib.suppress(OSError):
                os.kill(stray, signal.SIGKILL)
                os.waitpid(stray, 0)


def own_children() -> set[int]:
    """The processes whose parent this is; empty where the system does not tell."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return {int(pid) for pid in file.read().split()}
    except OSError:
        return set()


if __name__ == "__main__":
    main()
