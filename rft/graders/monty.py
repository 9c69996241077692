"""The monty sandbox: python graders run by pydantic-monty, an interpreter that has no way to the host.

Source and call of `grade` are one program, run in a fresh interpreter for every sample, in processes
of the package's pool: neither a crash nor a memory bomb reaches the engine. What keeps a program from
files, network and processes is the interpreter, which has no code for them. It is a part of Python
(`monty_source.py` tells what a source needs beyond it), and its `time.sleep` returns at once.
"""

import json
import math
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from rft.graders.python_source import NAME as SOURCE_NAME
from rft.graders.sandbox import CLOSED, Limits, Outcome
from rft.graders.sandbox_sample import MAX_DETAILS

SENT_SIGNAL = re.compile(r"signal:? ?(1|2|9|15)\b")
"""SIGHUP, SIGINT, SIGKILL and SIGTERM in the words of a crash: sent by a terminal, a launcher or the
kernel when memory is short."""
MAX_FRAMES = 20
MAX_PROCESSES = 64
"""More calls at the same time wait for each other."""
SAMPLES_PER_PROCESS = 500
GRACE_SECONDS = 0.5
"""How long after its time limit a process that does not see it is killed."""
INSTALL = 'pip install "rft[monty]"'

READ_REWARD = """
def _rft_read(value):
    if not isinstance(value, (str, bytes)):
        try:
            number = float(value)
            if number - number == 0:
                return f"reward {number!r}"
        except TypeError:
            if hasattr(value, "__float__"):
                raise
    kind = type(value).__name__
    return f"fault grade returned {value!r:.80} ({kind}); it must return a finite number"
"""
"""Anything that converts to a finite float is a reward, but no text; as in the other sandboxes."""
CALL = 'f"{_rft_read(grade(_rft_sample, _rft_item)):.400}"'
"""The format bounds what comes back, whatever grade did to the names around it."""


def monty_problem() -> str | None:
    """Why monty is not there on this machine, with what to do about it, or None when it works."""
    try:
        with open_pool(num_processes=1) as pool, open_session(pool, Limits(10, 64)) as session:
            session.feed_run("1")
    except ImportError:
        return f"the package pydantic-monty is not installed; {INSTALL}"
    except Exception as error:  # whatever an unfit version or a binary that does not start raises
        return f"pydantic-monty does not work: {type(error).__name__}: {error}; {INSTALL}"
    return None


@contextmanager
def open_pool(num_processes: int = MAX_PROCESSES) -> Iterator[Any]:
    """Processes that each run one program at a time; the first starts at once."""
    import pydantic_monty

    with pydantic_monty.Monty(
        max_processes=num_processes,
        max_checkouts_per_worker=SAMPLES_PER_PROCESS,
        feed_duration_limit_grace=GRACE_SECONDS,
    ) as pool:
        yield pool


def open_session(pool: Any, limits: Limits, seed: bytes = b"") -> Any:
    """A fresh interpreter, whose random numbers depend on the seed alone."""
    return pool.checkout(
        limits={
            "max_feed_duration_secs": limits.timeout_seconds,
            "max_memory": limits.memory_mb << 20,
        },
        # An interpreter's clock stands still while it sleeps: a sleep would not count as time taken.
        os_policy={"sleep": "zero", "random_start": {"seed": seed}},
        assert_message_annotations=False,
    )


class MontySandbox:
    """Runs one source; `run` may be called from several threads."""

    def __init__(self, source: str, limits: Limits):
        self._source = source
        self._limits = limits
        self._pool: Any = None
        self._source_fault: Outcome | None = None
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._at_work: set[int] = set()
        self._is_closed = False
        self._resources = ExitStack()

    def run(self, request: bytes) -> Outcome:
        """Grades one request; never raises for what the source does."""
        try:
            with self._starting:
                if self._pool is None:
                    self._start()
            outcome = self._source_fault
            if outcome is None:
                program = f"{self._source}\n{READ_REWARD}{CALL}"
                outcome = self._execute(program, read_arguments(request), request)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            outcome = Outcome("sandbox", details=f"monty does not run: {error}")
        return CLOSED if self._is_closed and outcome.kind != "reward" else outcome

    def close(self) -> None:
        """Ends all processes, those at work too."""
        with self._lock:
            self._is_closed = True
            self._resources.close()
            for pid in self._at_work:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _start(self) -> None:
        """Opens the pool and runs the source alone: if it fails, no sample will do better."""
        pool = open_pool()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the grader is closed")
            self._pool = self._resources.enter_context(pool)
        outcome = self._execute(f"{self._source}\ngrade\nNone", {}, b"")
        if outcome.kind != "reward":
            self._source_fault = Outcome("source", details=outcome.details)

    def _execute(self, program: str, inputs: Mapping[str, object], seed: bytes) -> Outcome:
        """Runs one program in a fresh interpreter."""
        import pydantic_monty

        output = Output()
        try:
            session = open_session(self._pool, self._limits, seed)
            with session, self._noted(session):
                reply = session.feed_run(program, inputs=inputs, print_callback=output.add)
            return read_reply(reply, output)
        except pydantic_monty.MontyCrashedError as crash:
            return self._read_crash(crash, output)
        except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as error:
            return self._read_error(error, output)
        except pydantic_monty.MontyError as error:
            return Outcome("sandbox", details=f"monty does not run: {error}")

    @contextmanager
    def _noted(self, session: Any) -> Iterator[None]:
        """Lets `close` end the session's process while it is at work."""
        pid: int = session.worker_pid
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the grader is closed")
            self._at_work.add(pid)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(pid)

    def _read_crash(self, crash: Any, output: "Output") -> Outcome:
        if crash.timed_out:
            return self._timeout(output)
        if SENT_SIGNAL.search(str(crash)):  # the interpreter raises none of these itself
            return Outcome("sandbox", details=f"monty's process was ended from outside: {crash}")
        details = f"grade ended its process before it returned: {crash}"
        return Outcome("fault", details=output.after(details))

    def _read_error(self, error: Any, output: "Output") -> Outcome:
        """What an exception means: of the limits, of the source itself, or of `grade`."""
        cause, frames = error.exception(), error.traceback()
        if isinstance(cause, TimeoutError) and not frames:
            return self._timeout(output)
        if isinstance(cause, MemoryError):
            details = f"memory limit {self._limits.memory_mb} MB"
            return Outcome("memory", details=output.after(details))
        num_lines = self._source.count("\n") + 1
        is_of_source = bool(frames) and frames[0].line <= num_lines
        details = traceback_text(error, num_lines)
        return Outcome("source" if is_of_source else "fault", details=output.after(details))

    def _timeout(self, output: "Output") -> Outcome:
        details = f"timeout after {self._limits.timeout_seconds:g} s"
        return Outcome("timeout", details=output.after(details))


class Output:
    """The end of what a program printed."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, _stream: str, text: str) -> None:
        self._text = (self._text + text)[-MAX_DETAILS:]

    def after(self, details: str) -> str:
        """The details of a failure with the output behind them."""
        printed = self._text.strip()
        return details + (f"\noutput:\n{printed}" if printed else "")


def read_arguments(request: bytes) -> dict[str, object]:
    """What `grade` gets; a lone surrogate, which monty's texts cannot hold, becomes U+FFFD."""
    arguments = json.loads(request)
    if b"\\ud" in request.lower():
        text = json.dumps(arguments, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
        arguments = json.loads(text.decode("utf-16-le", "replace"))
    return {"_rft_sample": arguments["sample"], "_rft_item": arguments["item"]}


def read_reply(reply: object, output: Output) -> Outcome:
    """The outcome in a program's last value: None of a source alone, else the text of READ_REWARD."""
    if reply is None:
        return Outcome("reward")
    kind, _, text = str(reply).partition(" ")
    with suppress(ValueError):
        if kind == "reward" and math.isfinite(float(text)):
            return Outcome("reward", float(text))
    details = text if kind == "fault" else "grade's process sent something that is not a result"
    return Outcome("fault", details=output.after(details))


def traceback_text(error: Any, num_lines: int) -> str:
    """The traceback within the source, as Python writes it; its end when it is long."""
    lines = []
    for frame in error.traceback()[-MAX_FRAMES:]:
        is_text = frame.filename == "<string>"  # what the source handed to exec or eval
        if is_text or frame.line <= num_lines:
            name = frame.filename if is_text else SOURCE_NAME
            function = frame.function_name or "<module>"
            lines.append(f'  File "{name}", line {frame.line}, in {function}\n')
            lines += [f"    {line.strip()}\n" for line in (frame.source_line or "").splitlines()]
    head = ["Traceback (most recent call last):\n"] if lines else []
    text = "".join([*head, *lines, error.display("type-msg"), "\n"])
    return text[-MAX_DETAILS:]
