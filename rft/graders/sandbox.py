"""Processes that run a python grader's source, seen from the engine's side.

A worker is a warm process of `sandbox_worker.py`: it gives up its rights, runs the source once, then
grades each sample in a fork of itself. A sandbox keeps as many workers as there are calls at the
same time. The engine believes nothing that a worker says beyond the form of a reply.
"""

import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rft.graders.sandbox_code import MODULE
from rft.graders.sandbox_folder import remove_folder

ProcessTier = Literal["kernel", "unsafe-local"]
"""The sandboxes that are processes of their own."""

WORKER_FILE = Path(__file__).with_name("sandbox_main.py")
GRACE_SECONDS = 0.8
"""How much longer than its own time limit a worker may stay silent before it is given up."""
START_SECONDS = 30.0
"""How long a new process may take to say that it is there."""
MAX_REPLY_BYTES = 1 << 20
MAX_REPLY_DETAILS = 8192
OUTCOME_KINDS = ("reward", "fault", "timeout", "memory", "sandbox")
REPLY_KINDS = ("started", "ready", "source", "tidy", *OUTCOME_KINDS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one grade may take."""

    timeout_seconds: float
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one sample."""

    kind: Literal["reward", "fault", "timeout", "memory", "source", "sandbox"]
    """`fault`: grade failed on this sample; `source`: the source failed before any sample;
    `sandbox`: the worker failed."""
    reward: float = 0.0
    """With `reward` only."""
    details: str = ""


CLOSED = Outcome("sandbox", details="the grader is closed")


class Sandbox:
    """A pool of workers for one source; `run` may be called from several threads."""

    def __init__(self, source: str, limits: Limits, tier: ProcessTier = "kernel"):
        self._source = source
        self._limits = limits
        self._tier = tier
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._workers: set[Worker] = set()
        self._source_fault: Outcome | None = None
        self._has_loaded = False
        """Whether any worker has loaded the source: what fails after that is no fault of the source."""
        self._is_closed = False

    def run(self, request: bytes) -> Outcome:
        """Grades one request; never raises for what the source does."""
        try:
            worker = self._take()
            outcome = self._ask(worker, request)
            # An earlier sample may have broken a used worker; this one must not suffer for it.
            if outcome.kind == "sandbox" and worker.num_graded > 0 and not self._is_closed:
                outcome = self._ask(self._start(), request)
        except NoWorker as failure:
            return failure.outcome
        except OSError as error:
            return Outcome("sandbox", details=f"no grading process could be started: {error}")
        return outcome

    def close(self) -> None:
        """Ends all workers, those at work too."""
        with self._lock:
            self._is_closed = True
            workers = list(self._workers)
            self._idle.clear()
            self._workers.clear()
        for worker in workers:
            worker.hang_up()
        for worker in workers:
            worker.end()

    def _take(self) -> "Worker":
        """An idle worker that still lives, or a new one."""
        while (worker := self._take_idle()) is not None:
            if worker.is_alive():
                return worker
            self._discard(worker)
        return self._start()

    def _take_idle(self) -> "Worker | None":
        with self._lock:
            if self._is_closed:
                raise NoWorker(CLOSED)
            return self._idle.pop() if self._idle else None

    def _start(self) -> "Worker":
        """A new worker; a source that failed once is not run again, as it would fail again."""
        with self._lock:
            if self._source_fault is not None:
                raise NoWorker(self._source_fault)
        worker = Worker(self._limits, self._tier)
        with self._lock:
            self._workers.add(worker)
            is_closed = self._is_closed
        failure = CLOSED if is_closed else worker.load(self._source)
        if failure is None:
            self._has_loaded = True
            return worker
        self._discard(worker)
        with self._lock:
            if self._is_closed:
                failure = CLOSED
            if failure.kind == "source" and not self._has_loaded:
                self._source_fault = failure
        raise NoWorker(failure)

    def _ask(self, worker: "Worker", request: bytes) -> Outcome:
        """One request to one worker, which is kept unless it fails."""
        try:
            outcome = worker.run(request)
        except (OSError, EOFError, ValueError) as error:
            words = f"the grading process failed: {error}{worker.exit_words()}"
            self._discard(worker)
            return CLOSED if self._is_closed else Outcome("sandbox", details=words)
        if worker.is_spent:
            self._discard(worker)
            return outcome
        with self._lock:
            if not self._is_closed:
                self._idle.append(worker)
        return outcome

    def _discard(self, worker: "Worker") -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.hang_up()
        worker.end()


class NoWorker(Exception):
    """There is no worker to ask; holds the outcome of the sample that needed one."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.details)
        self.outcome = outcome


class Worker:
    """One warm process with the source loaded."""

    def __init__(self, limits: Limits, tier: ProcessTier):
        self.num_graded = 0
        self.is_spent = False
        """It no longer answers."""
        self._limits = limits
        self._tier = tier
        self._channel, theirs = socket.socketpair()
        self._scratch = tempfile.mkdtemp(prefix="rft-grader-")
        # -I less its -E: the environment is ours, and -E would ignore PYTHONHASHSEED, without
        # which sets iterate in another order in every worker.
        command = [sys.executable, "-P", "-s", "-B", str(WORKER_FILE), str(theirs.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=self._scratch,
                    env=worker_environment(self._scratch),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except OSError:
            self._channel.close()
            remove_folder(self._scratch)
            raise

    def load(self, source: str) -> Outcome | None:
        """Runs the source; None when it is ready, else what every sample gets."""
        seconds = self._limits.timeout_seconds
        job = {
            "tier": self._tier,
            "timeout_seconds": seconds,
            "memory_mb": self._limits.memory_mb,
            "runs_code": MODULE in source,
        }
        try:
            self._send(json.dumps(job).encode(), START_SECONDS)
            reply = self._receive(START_SECONDS)
        except (OSError, EOFError, ValueError) as error:
            details = f"the grading process did not start: {error}{self.exit_words()}"
            return Outcome("sandbox", details=details)
        if reply["kind"] == "sandbox":
            return Outcome("sandbox", details=readable(reply.get("details"), self._scratch))
        try:
            self._send(source.encode("utf-8", "surrogatepass"), START_SECONDS)
            reply = self._receive(seconds + GRACE_SECONDS)
        except TimeoutError:
            return source_timeout(seconds)
        except (OSError, EOFError, ValueError):
            if self.exit_code() == -signal.SIGALRM:
                return source_timeout(seconds)
            details = f"the source ended its process before any sample{self.exit_words()}"
            return Outcome("source", details=details)
        if reply["kind"] == "ready":
            return None
        details = readable(reply.get("details", "it sent no reply"), self._scratch)
        return Outcome("source", details=details)

    def run(self, request: bytes) -> Outcome:
        """One sample; raises OSError, EOFError or ValueError when the worker fails."""
        seconds = self._limits.timeout_seconds
        # What the last sample left is tidied on no sample's time.
        if self._receive(START_SECONDS)["kind"] != "tidy":
            raise ValueError("it spoke out of turn")
        try:
            self._send(request, seconds + GRACE_SECONDS)
            reply = self._receive(seconds + GRACE_SECONDS)
        except TimeoutError:
            self.is_spent = True
            return Outcome("timeout", details=f"timeout after {seconds:g} s")
        if reply["kind"] not in OUTCOME_KINDS:
            raise ValueError(f"it sent a reply of kind {reply['kind']}")
        reward = read_finite(reply.get("reward", 0.0))
        self.num_graded += 1
        return Outcome(reply["kind"], reward, readable(reply.get("details", ""), self._scratch))

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def exit_code(self) -> int | None:
        """The exit code once it has ended, negative for a signal; None while it runs."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            return None

    def exit_words(self) -> str:
        code = self.exit_code()
        return "" if code is None else f" (exit code {code})"

    def hang_up(self) -> None:
        """Tells the worker to end: it watches its channel, while a sample is graded too."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Ends the worker and all it forked, and removes their folder.

        A confined family cannot leave its process group, so one signal ends all of it. Where nothing
        is confined the worker knows better what to end, and gets a moment for it.
        """
        if self._tier != "kernel":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        if self._process.returncode is None:  # once it is reaped, its number may be another's
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        remove_folder(self._scratch)

    def _send(self, frame: bytes, seconds: float) -> None:
        self._channel.settimeout(seconds)
        self._channel.sendall(struct.pack(">I", len(frame)) + frame)

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        (length,) = struct.unpack(">I", self._receive_exactly(4, deadline))
        if length > MAX_REPLY_BYTES:
            raise ValueError(f"a reply of {length} bytes")
        try:
            reply = json.loads(self._receive_exactly(length, deadline))
        except RecursionError:
            raise ValueError("a reply that nests too deep") from None
        if not isinstance(reply, dict) or reply.get("kind") not in REPLY_KINDS:
            raise ValueError("it sent no reply")
        return reply

    def _receive_exactly(self, num_bytes: int, deadline: float) -> bytes:
        received = bytearray()
        while len(received) < num_bytes:
            self._channel.settimeout(max(deadline - time.monotonic(), 0.001))
            part = self._channel.recv(num_bytes - len(received))
            if not part:
                raise EOFError("it ended")
            received += part
        return bytes(received)


def read_finite(value: object) -> float:
    """A finite number in a reply; raises ValueError for anything else."""
    if isinstance(value, int | float):
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise ValueError("it sent a reward that is no finite number")


def readable(details: object, scratch: str) -> str:
    """The end of a text that foreign code wrote, in characters that every file takes.

    The worker's folder, named anew each time, stands as `~`: equal runs have equal texts.
    """
    text = str(details).replace(scratch, "~")[-MAX_REPLY_DETAILS:]
    return text.encode("utf-8", "backslashreplace").decode()


def source_timeout(seconds: float) -> Outcome:
    details = f"timeout after {seconds:g} s while the source ran, before any sample"
    return Outcome("source", details=details)


def worker_environment(scratch: str) -> dict[str, str]:
    """All that the source sees of the environment."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        **dict.fromkeys(threads, "1"),
    }
