"""Escape attempts: each fails in the sandbox, and each is seen to succeed when its layers are off.

Whether one succeeded is decided by what happened to real files, servers and processes of the test. Not
tried, as no sandbox of one process can stop it: text that the grader itself executes inside `grade` can
forge that sample's own reward. `rft_sandbox.run_code` is there for such text.
"""

import fcntl
import inspect
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rft.graders.sandbox import Limits, Outcome, Sandbox
from rft.graders.tiers import Tier
from tests.attacks import files, hostile, kernel, network, processes, tools
from tests.attacks.attack import GRADER, Attack, World, said_by

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel tier is Linux's"
)

ATTACKS = [*files.ATTACKS, *network.ATTACKS, *processes.ATTACKS, *kernel.ATTACKS]
LIMITS = Limits(timeout_seconds=20, memory_mb=1024)
REFUSALS = (
    "PermissionError",
    "OSError",
    "Errno",
    "BlockingIOError",
    "by signal 31",
    "exit code -31",
    "unable to open",
    "ChildProcessError",
    "ProcessLookupError",
    "BrokenProcessPool",
    "ValueError: not allowed",
)
"""What a refused attack ends with; another ending would mean that the attack itself is broken."""
AT_TOP_LEVEL = (
    files.read_the_data_set,
    files.read_memory_map_of_the_worker,
    files.read_environment_of_the_engine,
    files.read_with_raw_openat,
    files.write_a_file_elsewhere,
    files.change_an_installed_package,
    files.chmod_a_file,
    network.connect_by_tcp,
    network.send_by_udp,
    network.send_from_a_pair_to_a_unix_socket,
    processes.run_a_program,
    processes.kill_the_engine,
    processes.kill_by_pipe,
    processes.trace_the_engine,
    processes.take_a_descriptor,
    kernel.load_a_bpf_map,
    kernel.leave_shared_memory,
    kernel.hold_capabilities,
)

BY_A_MODEL = (
    processes.fork,
    processes.fork_with_the_raw_call,
    processes.fork_with_32bit_call,
    processes.kill_the_worker,
    processes.seize_the_worker,
    kernel.fill_memory_past_the_limit,
    kernel.outlive_the_parent,
    files.read_memory_map_of_the_worker,
)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture(scope="module")
def confined() -> Iterator[Sandbox]:
    with sandbox(GRADER, "kernel") as pool:
        yield pool


@pytest.fixture(scope="module")
def unconfined() -> Iterator[Sandbox]:
    with sandbox(GRADER, "unsafe-local") as pool:
        yield pool


@contextmanager
def sandbox(source: str, tier: Tier, limits: Limits = LIMITS) -> Iterator[Sandbox]:
    pool = Sandbox(source, limits, tier)
    try:
        yield pool
    finally:
        pool.close()


def named(attack: Attack) -> str:
    return attack.name


def of_this_machine(attack: Attack) -> None:
    if attack.is_raw and platform.machine() != "x86_64":
        pytest.skip("its system calls are numbered for x86-64")


def is_seen_within(attack: Attack, world: World, said: str, seconds: float) -> bool:
    """Whether the attack shows an effect; a signal takes a moment."""
    deadline = time.monotonic() + seconds
    while not (seen := attack.is_seen(world, said)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def assert_refused(attack: Attack, world: World, outcome: Outcome) -> None:
    said = said_by(outcome)
    assert not is_seen_within(attack, world, said, 0.05 if attack.needs_victim else 0), said
    assert not world.received, said
    assert not world.is_changed, said
    assert outcome.kind in ("fault", "source"), said
    assert any(word in said for word in REFUSALS), f"the attack is broken: {said}"
    assert attack.host_may_refuse or "FileNotFoundError" not in said, said


def assert_succeeded(attack: Attack, world: World, outcome: Outcome) -> None:
    """Without layers it works; where the machine refuses it all the same, says why."""
    said = said_by(outcome)
    if is_seen_within(attack, world, said, 2.0 if attack.needs_victim else 0):
        return
    last = outcome.details.strip().splitlines()[-1:]
    assert attack.host_may_refuse, said
    pytest.skip(f"this machine refuses it without layers: {attack.host_may_refuse}; {last}")


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_it_fails_in_the_sandbox(attack: Attack, world: World, confined: Sandbox) -> None:
    of_this_machine(attack)
    assert_refused(attack, world, confined.run(attack.request(world)))


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_it_succeeds_without_layers(attack: Attack, world: World, unconfined: Sandbox) -> None:
    of_this_machine(attack)
    assert_succeeded(attack, world, unconfined.run(attack.request(world)))


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.run in AT_TOP_LEVEL], ids=named)
@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
def test_from_the_top_level_of_the_source(attack: Attack, tier: Tier, world: World) -> None:
    of_this_machine(attack)
    with sandbox(attack.grader_of_top_level(world), tier) as pool:
        outcome = pool.run(b'{"sample": {}, "item": {}}')
    if tier == "kernel":
        assert_refused(attack, world, outcome)
    else:
        assert_succeeded(attack, world, outcome)


@pytest.mark.parametrize("attack", kernel.NEVER_POSSIBLE, ids=named)
@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
def test_nothing_of_the_engine_is_inherited(
    attack: Attack, tier: Tier, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with world.file.open() as one, open(os.devnull, "w") as other:
        os.set_inheritable(one.fileno(), True)
        os.set_inheritable(other.fileno(), True)
        with sandbox(GRADER, tier) as pool:
            assert_refused(attack, world, pool.run(attack.request(world)))


MODEL_GRADER = f"""{inspect.getsource(tools)}
from rft_sandbox import run_code

ANSWER = "the answer of a source"

def grade(sample, item):
    ran = run_code(item["code"], timeout_seconds=10)
    raise Loot(f"{{ran.stdout}}{{ran.stderr}} exit code {{ran.exit_code}}")
"""
"""A grader that runs what a model wrote apart from itself, and shows what it printed."""

SEARCH = """
import gc, sys
found = set()
wanted = ["ecruos a fo rewsna eht", "meti na fo rewsna eht"]  # backwards: not to find itself
for thing in [*gc.get_objects(), *map(vars, sys.modules.values())]:
    try:
        words = repr(vars(thing)) if hasattr(thing, "__dict__") else repr(thing)
    except BaseException:
        continue
    found |= {name for name in wanted if name[::-1] in words}
print("found", found)
"""


@pytest.fixture(scope="module")
def model_runner() -> Iterator[Sandbox]:
    with sandbox(MODEL_GRADER, "kernel") as pool:
        yield pool


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if a.run in (*AT_TOP_LEVEL, *BY_A_MODEL)], ids=named
)
def test_from_code_that_a_model_wrote(attack: Attack, world: World, model_runner: Sandbox) -> None:
    of_this_machine(attack)
    code = f"{inspect.getsource(tools)}\n{attack.source}\n"
    code += f"raise Loot(repr({attack.name}({world.target(attack.needs_victim)!r})))"
    request = json.dumps({"sample": {}, "item": {"code": code}}).encode()
    assert_refused(attack, world, model_runner.run(request))


def test_code_that_a_model_wrote_finds_neither_source_nor_item(model_runner: Sandbox) -> None:
    item = {"code": SEARCH, "answer": "the answer of an item"}
    outcome = model_runner.run(json.dumps({"sample": {}, "item": item}).encode())
    assert "found set()" in outcome.details
    # what the grader itself executes finds both
    source = (
        "ANSWER = 'the answer of a source'\ndef grade(s, i): exec(i['code'], {}); raise Exception"
    )
    with sandbox(source, "kernel") as pool:
        outcome = pool.run(json.dumps({"sample": {}, "item": item}).encode())
    assert all(words in outcome.details for words in ("ecruos a fo", "meti na fo"))


def test_code_that_a_model_wrote_cannot_grade_itself(model_runner: Sandbox) -> None:
    code = f"{inspect.getsource(hostile)}\nforges_a_result(None, None)"
    outcome = model_runner.run(json.dumps({"sample": {}, "item": {"code": code}}).encode())
    assert outcome.kind == "fault" and "Loot" in outcome.details


HOLDING = """
import fcntl, os, time

def grade(sample, item):
    fd = os.open(item["file"], os.O_RDONLY)
    fcntl.{call}
    time.sleep(30)
"""


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_leased(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize(
    ("call", "is_held"),
    [
        ("flock(fd, fcntl.LOCK_EX)", is_locked),
        ("fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)", is_leased),
    ],
)
@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
def test_a_file_that_it_may_read_cannot_be_held(
    call: str, is_held: Callable[[Path], bool], tier: Tier, world: World
) -> None:
    request = b'{"sample": {}, "item": {"file": "%s"}}' % str(world.library).encode()
    with sandbox(HOLDING.format(call=call), tier, Limits(0.5, 512)) as pool:
        thread = threading.Thread(target=pool.run, args=(request,))
        thread.start()
        was_held = False
        while thread.is_alive() and not was_held:
            was_held = is_held(world.library)
            time.sleep(0.01)
        thread.join()
    assert was_held == (tier == "unsafe-local")


OUTLIVING = """
import ctypes, os, time

def grade(sample, item):
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    time.sleep(30)
"""


@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
def test_a_sample_cannot_outlive_its_worker(tier: Tier) -> None:
    with sandbox(OUTLIVING, tier, Limits(20, 512)) as pool:
        before = children(os.getpid())
        thread = threading.Thread(target=pool.run, args=(b'{"sample": {}, "item": {}}',))
        thread.start()
        (worker,) = wait_for(lambda: children(os.getpid()) - before)
        (sample,) = wait_for(lambda: children(worker))
        time.sleep(0.2)
        os.kill(worker, signal.SIGKILL)
        thread.join(20)
        outlived = not gone_within(sample, 2.0)
    if outlived:
        os.kill(sample, signal.SIGKILL)
    assert outlived == (tier == "unsafe-local")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its calls are numbered for x86-64")
@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
def test_a_source_cannot_give_the_engine_a_child(tier: Tier, world: World) -> None:
    (attack,) = (a for a in ATTACKS if a.run is processes.fork_beside_the_worker)
    before = children(os.getpid())
    with sandbox(attack.grader_of_top_level(world), tier) as pool:
        outcome = pool.run(b'{"sample": {}, "item": {}}')
    given = children(os.getpid()) - before
    for pid in given:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert bool(given) == (tier == "unsafe-local"), said_by(outcome)


def children(pid: int) -> set[int]:
    """The processes whose parent is a given one, whichever of its threads started them."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {int(child) for child in tasks.read_text().split()}
    return found


def wait_for(find: Callable[[], set[int]], seconds: float = 10.0) -> set[int]:
    deadline = time.monotonic() + seconds
    while not (found := find()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False
