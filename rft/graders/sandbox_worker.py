"""The process that runs a python grader: it knows nothing of rft beyond its few sibling modules.

It gives up its rights (`lockdown.py`), reads the source from its channel, runs it once, then for each
request forks a child that gives up more and calls `grade(sample, item)`. It ends when its channel does.
"""

import contextlib
import gc
import json
import linecache
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import ModuleType

from rft.graders.lockdown import (
    Lockdown,
    LockdownError,
    c_library,
    die_with_parent,
    lock_worker,
)
from rft.graders.sandbox_code import (
    MODULE,
    CodeProcess,
    kill_and_reap,
    read_code_limits,
    sandbox_module,
    serve_code,
)
from rft.graders.sandbox_folder import ScratchFolder, remove_folder
from rft.graders.sandbox_frames import (
    Reply,
    packed,
    read_available,
    read_frame,
    take_frame,
    write_frame,
)
from rft.graders.sandbox_sample import (
    MAX_DETAILS,
    Grade,
    describe,
    grade_and_exit,
)

FILE_NAME = "grader.py"
MAX_FILE_BYTES = 1 << 30
MAX_SCRATCH_BYTES = 1 << 30
MAX_OPEN_FILES = 64
NUM_ENTRIES_MEASURED = 20_000
NUM_ENTRIES_REMOVED = 1_000
"""A sample that leaves more behind costs the worker its place."""
POLL_SECONDS = 0.02
RESERVE_BYTES = 1 << 20
MEASURE_SECONDS = 0.25
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    channel = int(sys.argv[1])
    home = os.getcwd()
    os.set_inheritable(channel, False)
    is_alone = False
    try:
        serve(channel, home)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        is_alone = True
    finally:
        remove_folder(home)
        if is_alone:  # nobody else would end what the source forked
            os.killpg(0, signal.SIGKILL)


def serve(channel: int, home: str) -> None:
    """Loads the source and grades until the channel ends, which raises EOFError."""
    job = json.loads(read_frame(channel))
    try:
        worker = Worker(channel, home, job)
    except (LockdownError, OSError) as error:
        details = f"the sandbox cannot be closed: {error}"
        write_frame(channel, {"kind": "sandbox", "details": details})
        return
    write_frame(channel, {"kind": "started"})
    failure = worker.load(read_frame(channel).decode("utf-8", "surrogatepass"))
    if failure:
        write_frame(channel, {"kind": "source", "details": failure})
        return
    write_frame(channel, {"kind": "ready"})
    # Tidying follows the reply: it then costs time only when the next sample is already there.
    while worker.is_tidy():
        write_frame(channel, {"kind": "tidy"})
        write_frame(channel, worker.run_sample(read_frame(channel)))


class Worker:
    """This process: confined, with the source loaded, ready to fork."""

    def __init__(self, channel: int, home: str, job: Reply):
        self._channel = channel
        self._timeout_seconds = float(job["timeout_seconds"])
        self._memory_mb = int(job["memory_mb"])
        self._source_folder = os.path.join(home, "source")
        os.mkdir(self._source_folder)
        self._scratch = ScratchFolder(os.path.join(home, "sample"))
        self._code_folder = ScratchFolder(os.path.join(home, "code"))
        self._link: int | None = None
        self._grade: Grade | None = None
        self._reserve = [bytes(RESERVE_BYTES)]
        self._child: Child | None = None
        self._spared: set[int] = set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # They are meant for the job, whose launcher may send them to all its processes.
            signal.signal(number, signal.SIG_IGN)
        set_limits(self._memory_mb)
        self._libc = c_library() if sys.platform.startswith("linux") else None
        self._locked = lock_worker(home) if job["tier"] == "kernel" else None
        if self._libc:
            self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # Now, before the source comes: what runs a model's code must never have seen it.
        self._code = self._start_code() if job["runs_code"] else None
        self._lockdown = (
            self._locked.lockdown_of_children([self._source_folder], self._scratch.path)
            if self._locked
            else None
        )

    def load(self, source: str) -> str:
        """Runs the source; gives what went wrong, or an empty text."""
        module = ModuleType("grader")
        module.__file__ = FILE_NAME
        sys.modules["grader"] = module
        sys.modules[MODULE] = sandbox_module(lambda: self._link)
        lines = [line + "\n" for line in source.split("\n")]
        linecache.cache[FILE_NAME] = (len(source), None, lines, FILE_NAME)
        os.chdir(self._source_folder)
        os.environ["HOME"] = os.environ["TMPDIR"] = self._source_folder
        # The engine may be gone while the source runs: then nothing else would end an endless loop.
        signal.setitimer(signal.ITIMER_REAL, self._timeout_seconds)
        worker, failure, grade = os.getpid(), "", None
        try:
            exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
            grade = module.__dict__["grade"]
        except BaseException as error:
            failure = describe(error)
        if os.getpid() != worker:  # a fork that the source made
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if failure:
            return failure
        if not callable(grade):
            return "grade is not a function"
        self._grade = grade
        open_standard_streams()
        if "tempfile" in sys.modules:  # it may have chosen the source's folder, closed to samples
            sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
        os.environ["HOME"] = os.environ["TMPDIR"] = self._scratch.path
        gc.collect()
        gc.freeze()
        return ""

    def run_sample(self, request: bytes) -> Reply:
        """Grades one request in a child; raises EOFError when the channel ends meanwhile."""
        ours, theirs = socket.socketpair()
        output, output_of_child = os.pipe()
        self._spared = own_children() if self._locked is None else set()
        worker = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_sample(theirs.fileno(), output_of_child, worker)
            assert self._grade is not None
            reserve = self._reserve
            grade_and_exit(self._grade, request, theirs.detach(), self._memory_mb, reserve)
        theirs.close()
        os.close(output_of_child)
        folders = (self._scratch, self._code_folder)
        self._child = Child(pid, ours.detach(), output, folders, self._memory_mb)
        try:
            return self._child.wait(self._channel, self._code, self._timeout_seconds)
        except EOFError:
            self.is_tidy()
            raise

    def is_tidy(self) -> bool:
        """Whether nothing is left of the last sample: its process, its run of code, its files.

        False when its files resist: then the worker has to go.
        """
        if self._child is None:
            return True
        self._end(self._child.pid, self._spared, self._child.is_reaped)
        self._child.close()
        self._child = None
        if self._code:
            self._code.settle()
        folders = (self._scratch, self._code_folder)
        return all(folder.is_emptied(NUM_ENTRIES_REMOVED) for folder in folders)

    def _become_sample(self, link: int, output: int, worker: int) -> None:
        """Leaves the worker behind: own folder, output into a pipe, fewer rights.

        No other descriptor is kept: what the source opened would carry words to the next sample.
        """
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            kept = {link, self._scratch.fd}
            close_all_but(kept | {self._lockdown.ruleset} if self._lockdown else kept)
            self._enter(self._scratch, self._lockdown, worker)
            self._link = link
            os.write(link, CONFINED)
        except BaseException:
            os._exit(1)

    def _start_code(self) -> CodeProcess:
        """The process that runs a model's code, as confined as a sample's."""
        worker = os.getpid()

        def serve_runs(channel: int) -> None:
            close_all_but({channel})
            if self._libc:
                die_with_parent(self._libc, worker)
            own_pid = os.getpid()

            def enter(request: Reply, folder: ScratchFolder) -> None:
                limit_memory(read_code_limits(request, self._memory_mb))
                os.environ["HOME"] = os.environ["TMPDIR"] = folder.path
                locked = self._locked
                lockdown = locked.lockdown_of_children([], folder.path) if locked else None
                self._enter(folder, lockdown, own_pid)

            serve_code(channel, self._code_folder.path, enter, lambda pid: self._end(pid, set()))

        return CodeProcess(serve_runs)

    def _enter(self, scratch: ScratchFolder, lockdown: Lockdown | None, parent: int) -> None:
        """What a forked child does before it runs anything foreign."""
        os.chdir(scratch.path)
        os.close(scratch.fd)
        if self._libc:
            die_with_parent(self._libc, parent)
        if lockdown:
            lockdown.enter()
        else:
            os.setpgid(0, 0)

    def _end(self, pid: int, spared: set[int], is_reaped: bool = False) -> None:
        """Ends a child and all it left running: where it is confined it could leave nothing."""
        if not self._locked:
            end_family(pid, spared)
        elif not is_reaped:
            kill_and_reap(pid)


class Child:
    """The worker's view of the process that grades one sample."""

    def __init__(
        self,
        pid: int,
        link: int,
        output: int,
        folders: Sequence[ScratchFolder],
        memory_mb: int,
    ):
        self.pid = pid
        self._link = link
        self._output = output
        self._folders = folders
        self._memory_mb = memory_mb
        self._received = bytearray()
        self._printed = bytearray()
        self._to_send = bytearray()
        self._is_confined = False
        self._status: int | None = None
        os.set_blocking(link, False)
        os.set_blocking(output, False)

    @property
    def is_reaped(self) -> bool:
        """Whether its number may belong to another process by now."""
        return self._status is not None

    def _num_bytes(self) -> float:
        return sum(folder.num_bytes(NUM_ENTRIES_MEASURED) for folder in self._folders)

    def close(self) -> None:
        os.close(self._link)
        os.close(self._output)

    def wait(self, channel: int, code: CodeProcess | None, timeout_seconds: float) -> Reply:
        """What the child says, or what became of it; runs of code that it asks for go to `code`."""
        started = time.monotonic()
        deadline, measured = started + timeout_seconds, started
        poller = select.poll()
        for fd in (self._link, self._output, channel, *([code.fd] if code else [])):
            poller.register(fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(1000 * min(left, POLL_SECONDS))}
            if channel in ready:  # nothing is asked meanwhile: the other end is gone
                raise EOFError
            if self._output in ready and not self._read_output():
                poller.unregister(self._output)
            if code and code.fd in ready:
                self._to_send += packed(code.reply())
            if self._link in ready and not self._read_link():
                poller.unregister(self._link)
            self._send()
            if (reply := self._said(code, left)) is not None:
                return self._with_output(reply)
            if time.monotonic() - measured > MEASURE_SECONDS:
                measured = time.monotonic()
                if self._num_bytes() > MAX_SCRATCH_BYTES:
                    details = f"disk limit {MAX_SCRATCH_BYTES >> 20} MB"
                    return self._with_output({"kind": "memory", "details": details})
        details = f"timeout after {timeout_seconds:g} s"
        return self._with_output({"kind": "timeout", "details": details})

    def _said(self, code: CodeProcess | None, seconds: float) -> Reply | None:
        """The child's last word, once it has said it or has ended."""
        try:
            frame = take_frame(self._received)
            if frame is None:
                # asked once: it may end at any moment, with its word unread
                if not self._has_ended():
                    return None
                self._read_link()
                frame = take_frame(self._received)
        except ValueError:
            return NOT_A_RESULT
        if frame is not None and not self._is_confined:
            # The first word is said before anything foreign runs: nobody else can withhold it.
            self._is_confined = True
            return self._said(code, seconds)
        if frame is None:
            return self._end_without_result()
        request = read_run(frame)
        if request is None:
            return parse_result(frame)
        if code is None or self._to_send or not code.ask(request, seconds):
            return NOT_A_RESULT  # `run_code` waits for each reply, so this is not its request
        return None

    def _send(self) -> None:
        """As much of what the child is to hear as it takes now."""
        while self._to_send:
            try:
                del self._to_send[: os.write(self._link, self._to_send)]
            except BlockingIOError:
                return
            except OSError:
                self._to_send.clear()

    def _read_link(self) -> bool:
        """Reads what is there; False at the end."""
        part = read_available(self._link)
        self._received += part or b""
        return part != b""

    def _read_output(self) -> bool:
        part = read_available(self._output)
        self._printed += part or b""
        del self._printed[:-MAX_DETAILS]
        return part != b""

    def _has_ended(self) -> bool:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = status if pid else None
            except ChildProcessError:
                self._status = 0
        return self._status is not None

    def _end_without_result(self) -> Reply:
        if not self._is_confined:
            return {"kind": "sandbox", "details": "the process of a sample could not be closed"}
        return read_status(self._status or 0, self._memory_mb)

    def _with_output(self, reply: Reply) -> Reply:
        if reply["kind"] == "reward":
            return reply
        self._read_output()
        printed = self._printed.decode(errors="replace").strip()
        return {**reply, "details": reply["details"] + (f"\noutput:\n{printed}" if printed else "")}


CONFINED = packed({"kind": "confined"})
NOT_A_RESULT: Reply = {
    "kind": "fault",
    "details": "grade's process sent something that is not a result",
}


def read_run(frame: bytes) -> Reply | None:
    """The request for a run of code in a child's frame, if it is one."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        request = json.loads(frame)
        is_run = request["kind"] == "run"
        if is_run and isinstance(request["source"], str) and isinstance(request["stdin"], str):
            return dict(request)
    return None


def parse_result(frame: bytes) -> Reply:
    """The reply in a child's frame; a frame that no worker code wrote is a fault."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
        reply = json.loads(frame)
        if reply["kind"] == "reward" and math.isfinite(reply["reward"]):
            return {"kind": "reward", "reward": float(reply["reward"])}
        if reply["kind"] in ("fault", "memory"):
            return {"kind": reply["kind"], "details": str(reply["details"])[-MAX_DETAILS:]}
    return NOT_A_RESULT


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


def open_standard_streams() -> None:
    """Puts the null device in the place of standard streams that the source closed."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd < 3:
        fd = os.dup(fd)
    os.close(fd)


def close_all_but(kept: set[int]) -> None:
    """Closes every descriptor but the standard streams and those kept."""
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, MAX_OPEN_FILES)


def set_limits(memory_mb: int) -> None:
    """Limits of this process and all it forks; those that the system lacks are left out."""
    limit_memory(memory_mb)
    for name, value in (
        ("RLIMIT_FSIZE", MAX_FILE_BYTES),
        ("RLIMIT_NOFILE", MAX_OPEN_FILES),
        ("RLIMIT_CORE", 0),
    ):
        limit(name, value)


def limit_memory(memory_mb: int) -> None:
    limit("RLIMIT_AS", memory_mb << 20)


def limit(name: str, value: int) -> None:
    """Lowers a limit for good."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


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
