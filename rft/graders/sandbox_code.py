"""Code that a model wrote, run in a process that is neither the grader's nor ever was.

A grader that executes the completion in its own process lets it forge its own reward: it can change
the grader, or write the result itself. `rft_sandbox.run_code`, which a source can import, hands the
text to a process forked before the source was loaded: that never held the source, an item or a
reward, has a folder of its own, and gives back what was printed, nothing else.
"""

import json
import linecache
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from rft.graders.sandbox_folder import ScratchFolder
from rft.graders.sandbox_frames import (
    MAX_FRAME_BYTES,
    Reply,
    packed,
    read_available,
    read_frame,
    write_frame,
)

MODULE = "rft_sandbox"
MAX_OUTPUT_BYTES = 1 << 16
"""Of standard output and of standard error each; what is printed beyond is dropped."""
MAX_CODE_BYTES = MAX_FRAME_BYTES // 4
POLL_SECONDS = 0.01
NUM_ENTRIES_REMOVED = 1_000
FILE_NAME = "<code>"


class CodeResult(NamedTuple):
    """What became of a run."""

    stdout: str
    """At most 64 kB, as `stderr`."""
    stderr: str
    exit_code: int | None
    """0 when it ended by itself; negative for a signal; None when time ran out."""
    timed_out: bool


def sandbox_module(link: Callable[[], int | None]) -> ModuleType:
    """The module `rft_sandbox`, for sources; `link` gives the descriptor that leads to the worker."""

    def run_code(
        source: str, stdin: str = "", timeout_seconds: float = 10.0, memory_mb: int | None = None
    ) -> CodeResult:
        """Run Python code, `stdin` as its standard input, without any access to this process."""
        fd = link()
        if fd is None:
            raise RuntimeError("run_code can be called inside grade only")
        code = {"source": str(source), "stdin": str(stdin)}
        request = {
            "kind": "run", **code, "timeout_seconds": float(timeout_seconds), "memory_mb": memory_mb,
        }  # fmt: skip
        frame = packed(request)
        if len(frame) > MAX_CODE_BYTES:
            raise ValueError(f"code and stdin have more than {MAX_CODE_BYTES} bytes")
        while frame:
            frame = frame[os.write(fd, frame) :]
        reply = json.loads(read_frame(fd))
        if "failure" in reply:
            raise RuntimeError(reply["failure"])
        return CodeResult(**reply)

    module = ModuleType(MODULE, "Runs model-written code apart from the grader.")
    module.run_code, module.CodeResult = run_code, CodeResult  # type: ignore[attr-defined]
    return module


class CodeProcess:
    """The process that runs code, seen from the worker."""

    def __init__(self, serve: Callable[[int], None]):
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            serve_and_exit(serve, theirs.detach())
        theirs.close()
        self.fd = ours.detach()
        os.set_inheritable(self.fd, False)
        self._is_busy = False

    def ask(self, request: Reply, seconds: float) -> bool:
        """Starts a run of at most so many seconds; the reply comes over `fd`. False while another runs."""
        if self._is_busy:
            return False
        asked = request.get("timeout_seconds")
        limit = min(float(asked), seconds) if isinstance(asked, int | float) else seconds
        write_frame(self.fd, {**request, "timeout_seconds": limit})
        self._is_busy = True
        return True

    def reply(self) -> Reply:
        """What the run gave; waits for it."""
        reply: Reply = json.loads(read_frame(self.fd))
        self._is_busy = False
        return reply

    def settle(self) -> None:
        """Ends a run that nobody waits for any more."""
        if self._is_busy:
            write_frame(self.fd, {"kind": "cancel"})
            self.reply()


def serve_and_exit(serve: Callable[[int], None], channel: int) -> NoReturn:
    try:
        serve(channel)
    except BaseException:
        os._exit(1)
    os._exit(0)


Enter = Callable[[Reply, ScratchFolder], None]
"""Confines a child to the folder of its run, before it runs anything."""
End = Callable[[int], None]
"""Kills a child with all it left running."""


def serve_code(channel: int, folder: str, enter: Enter, end: End) -> None:
    """Runs what the channel asks for until it ends, each time in a new folder inside `folder`."""
    num_runs = 0
    while True:
        request = json.loads(read_frame(channel))
        if request["kind"] != "run":
            continue
        num_runs += 1
        scratch = ScratchFolder(os.path.join(folder, f"run-{num_runs}"))
        write_frame(channel, run(request, channel, scratch, enter, end))
        if scratch.is_emptied(NUM_ENTRIES_REMOVED):  # else the worker sees it, and goes
            os.rmdir(scratch.path)
        os.close(scratch.fd)


def run(request: Reply, channel: int, scratch: ScratchFolder, enter: Enter, end: End) -> Reply:
    """One run in a fork; cut short when something else is said over the channel."""
    outs = [os.pipe(), os.pipe()]
    stdin = unnamed_file(scratch.path + ".stdin", request["stdin"])
    pid = os.fork()
    if pid == 0:
        try:
            for number, fd in enumerate((stdin, outs[0][1], outs[1][1])):
                os.dup2(fd, number)
            for fd in (channel, stdin, *outs[0], *outs[1]):
                os.close(fd)
            enter(request, scratch)
        except BaseException:
            os._exit(1)
        execute_and_exit(request["source"])
    os.close(stdin)
    for _, writing in outs:
        os.close(writing)
    try:
        return watch(pid, [reading for reading, _ in outs], channel, request["timeout_seconds"])
    finally:
        end(pid)
        for reading, _ in outs:
            os.close(reading)


def unnamed_file(path: str, text: str) -> int:
    """A descriptor that reads a text from its beginning, of a file that is already unlinked."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    data = memoryview(text.encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def execute_and_exit(source: str) -> NoReturn:
    """Runs the text as a program of its own and ends the process as Python would."""
    code = 0
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [FILE_NAME]
    lines = [line + "\n" for line in source.split("\n")]
    linecache.cache[FILE_NAME] = (len(source), None, lines, FILE_NAME)
    sys.stdin = open(0, encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as leaving:
        code = exit_code_of(leaving.code)
    except BaseException as error:
        frames = error.__traceback__
        traceback.print_exception(type(error), error, frames.tb_next if frames else None)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = code or 120
    os._exit(code & 0xFF)


def exit_code_of(value: object) -> int:
    """The exit code of `sys.exit(value)`; a text is printed and means 1."""
    if value is None or isinstance(value, int):
        return value or 0
    print(value, file=sys.stderr)  # noqa: T201
    return 1


def watch(pid: int, outs: list[int], channel: int, seconds: float) -> Reply:
    """What a run printed, and how it ended."""
    deadline = time.monotonic() + seconds
    printed = {fd: bytearray() for fd in outs}
    poller = select.poll()
    for fd in (*outs, channel):
        poller.register(fd, select.POLLIN)
    for fd in outs:
        os.set_blocking(fd, False)
    open_outs = set(outs)
    status: int | None = None
    while status is None and (left := deadline - time.monotonic()) > 0:
        wait = min(left, POLL_SECONDS if len(open_outs) == len(outs) else 0.001)
        ready = {fd for fd, _ in poller.poll(1000 * wait)}
        if channel in ready:
            break
        for fd in open_outs & ready:
            if not keep_printed(fd, printed[fd]):
                poller.unregister(fd)
                open_outs.discard(fd)
        ended, ended_status = os.waitpid(pid, os.WNOHANG)
        status = ended_status if ended else None
    for fd in open_outs:
        while read := keep_printed(fd, printed[fd]):
            if read < 1 << 16:
                break
    texts = [bytes(printed[fd]).decode("utf-8", "replace") for fd in outs]
    exit_code = None if status is None else os.waitstatus_to_exitcode(status)
    return {
        "stdout": texts[0], "stderr": texts[1], "exit_code": exit_code, "timed_out": status is None,
    }  # fmt: skip


def keep_printed(fd: int, printed: bytearray) -> int:
    """Reads what is there into `printed` up to its bound; 0 at the end of the pipe."""
    part = read_available(fd)
    if part is None:
        return 1
    printed += part[: MAX_OUTPUT_BYTES - len(printed)]
    return len(part)


def read_code_limits(request: Reply, largest_mb: int) -> int:
    """Memory for a run: what was asked for, within the grader's own limit."""
    asked: Any = request.get("memory_mb")
    return min(int(asked), largest_mb) if isinstance(asked, int | float) else largest_mb


def kill_and_reap(pid: int) -> None:
    """Ends a child that cannot have children of its own."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        return
