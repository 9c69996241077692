"""Requests to stop: a step may end within the grace, and is given up after it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rft.runs.layout import RunFolder
from rft.runs.requests import Action, Request, ask, asked
from rft.training.interrupts import SIGNALS, StepAbandoned, StopRequests

GRACE = 0.4


def ring(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def work(seconds: float) -> None:
    """As an engine does: many short operations."""
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        time.sleep(0.01)


def ring_and_work(seconds: float, number: int = signal.SIGTERM) -> None:
    ring(number)
    work(seconds)


def ask_and_work(folder: RunFolder, action: Action) -> None:
    ask(folder, action, "somebody")
    work(30)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_step_that_ends_within_the_grace_is_not_given_up(number: signal.Signals) -> None:
    with StopRequests(grace_seconds=5) as stop:
        with stop.abandonable():
            ring(number)
            work(0.3)
        assert stop.request == Request("pause", f"stopped by {number.name}")


def test_a_step_that_takes_longer_is_given_up_after_it() -> None:
    with StopRequests(grace_seconds=GRACE) as stop:
        began = time.monotonic()
        with pytest.raises(StepAbandoned), stop.abandonable():
            ring_and_work(30)
        assert GRACE <= time.monotonic() - began < GRACE + 2


def test_even_one_that_waits_for_another_thread() -> None:
    with StopRequests(grace_seconds=GRACE) as stop:
        ring()
        with pytest.raises(StepAbandoned), stop.abandonable():
            threading.Event().wait(30)


def test_one_that_is_swallowed_on_the_way_is_given_up_again() -> None:
    """Python drops what is raised in a weakref callback or in __del__."""
    with StopRequests(grace_seconds=0.2) as stop, stop.abandonable():
        with pytest.raises(StepAbandoned):
            ring_and_work(30)
        assert stop.has_abandoned
        with pytest.raises(StepAbandoned):
            work(30)


STUCK = """
import hashlib, os, signal
from rft.training.interrupts import StopRequests
with StopRequests(grace_seconds=0.2) as stop:
    stop.on_stuck(lambda: os.write(1, b"saved"))
    with stop.abandonable():
        os.kill(os.getpid(), signal.SIGTERM)
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)
"""


@pytest.mark.long
def test_a_main_thread_that_never_comes_back_is_left_behind() -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (75, b"saved")


def test_outside_such_a_section_nothing_is_given_up_and_the_next_one_not_begun() -> None:
    with StopRequests(grace_seconds=0.1) as stop:
        ring()
        work(0.6)
        with pytest.raises(StepAbandoned), stop.abandonable():
            pytest.fail("it was begun")


def test_before_the_first_step_there_is_no_grace() -> None:
    with (
        StopRequests(grace_seconds=30) as stop,
        pytest.raises(StepAbandoned),
        stop.abandonable(patience=0),
    ):
        ring_and_work(30)


def test_a_second_ctrl_c_leaves_at_once_and_a_second_sigterm_does_not() -> None:
    with StopRequests(grace_seconds=30) as stop:
        with stop.abandonable():
            ring(signal.SIGTERM)
            ring(signal.SIGTERM)
            work(0.05)
        with pytest.raises(KeyboardInterrupt):
            ring_and_work(5, signal.SIGINT)


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_a_request_in_the_folder_is_found(tmp_path: Path, action) -> None:
    folder = RunFolder(tmp_path)
    with StopRequests(grace_seconds=GRACE) as stop:
        stop.listen_in(folder)
        with pytest.raises(StepAbandoned), stop.abandonable():
            ask_and_work(folder, action)
        assert stop.request == Request(action, "somebody")


def test_a_rank_that_gets_a_signal_tells_the_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with StopRequests(rank=1, num_ranks=2, grace_seconds=5) as stop:
        stop.listen_in(folder)
        ring()
        work(0.7)
        assert asked(folder) == Request("pause", "stopped by SIGTERM")


def test_alone_it_leaves_no_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with StopRequests(grace_seconds=5) as stop:
        stop.listen_in(folder)
        ring()
        work(0.5)
    assert not folder.request.exists()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequests():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not any(thread.name == "stop requests" for thread in threading.enumerate())


def test_outside_the_main_thread_signals_go_past(tmp_path: Path) -> None:
    found: list[object] = []

    def other() -> None:
        with StopRequests(grace_seconds=0) as stop:
            stop.listen_in(RunFolder(tmp_path))
            ask(RunFolder(tmp_path), "pause", "somebody")
            with stop.abandonable():
                work(0.5)
            found.append(stop.request)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [Request("pause", "somebody")]
