"""What grading leaves behind: nothing for the machine, and nothing for the next sample."""

import contextlib
import gc
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rft.graders.sandbox import Limits, Sandbox
from rft.graders.tiers import Tier

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

FAULTY = """
import ctypes, os, signal, sys, threading, time

HOARD = None

def grade(sample, item):
    how = item["how"]
    if how == "raises":
        raise ValueError("x" * 5000)
    if how == "nan":
        return float("nan")
    if how == "exits":
        os._exit(3)
    if how == "segfaults":
        ctypes.string_at(0)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hoards":
        return len("x" * 2 ** 33)
    if how == "prints":
        print("x" * 100_000)
    if how == "opens":
        global HOARD
        HOARD = [open(os.devnull) for _ in range(20)] + list(os.pipe())
    if how == "writes":
        os.mkdir("folder")
        open("folder/file", "w").write("x" * 10_000)
    if how == "threads":
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(1000,)).start()
    if how == "forks":
        os.fork()
    if how == "kills the worker":
        os.kill(os.getppid(), signal.SIGKILL)
    if how == "forges":
        for fd in range(3, 16):
            try: os.write(fd, b"\\0\\0\\0\\5hello")
            except OSError: pass
        time.sleep(1000)
    if how == "never ends":
        time.sleep(1000)
    return 1.0
"""
KINDS = {
    "raises": "fault",
    "nan": "fault",
    "exits": "fault",
    "segfaults": "fault",
    "is killed": "fault",
    "hoards": "memory",
    "prints": "reward",
    "opens": "reward",
    "writes": "reward",
    "threads": "reward",
    "forks": "fault",
    "kills the worker": "fault",
    "forges": "fault",
}
"""What each misbehaviour comes to."""
PATIENT, HASTY = Limits(20, 512), Limits(0.3, 512)


def own_family() -> set[int]:
    """The processes below this one, of all generations."""
    family: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        for tasks in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            children = {int(pid) for pid in read_or_nothing(tasks).split()}
            waiting += children - family
            family |= children
    return family


def read_or_nothing(path: Path) -> str:
    """A process may have ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def own_memory() -> int:
    """Resident bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def grading_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("rft-grader-*"))


def strays() -> list[str]:
    """Processes of a sandbox that nobody is the parent of any more."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        stat = read_or_nothing(folder / "stat").rsplit(")", 1)[-1].split()
        command = read_or_nothing(folder / "cmdline")
        if len(stat) > 1 and stat[1] == "1" and "sandbox_main" in command:
            found.append(command)
    return found


def grade_faulty(num_grades: int) -> None:
    """Grades that many samples that misbehave in turn, and looks at what is left then."""
    before = own_family()
    pool, hasty = Sandbox(FAULTY, PATIENT, "kernel"), Sandbox(FAULTY, HASTY, "kernel")
    for how in [*KINDS, "raises"]:  # one of each, so that what stays for good is there
        pool.run(request(how=how))
    hasty.run(request(how="raises"))
    num_descriptors = own_descriptors()
    memory, num_folders = own_memory(), len(grading_folders())
    kinds = list(KINDS.items())
    for number in range(num_grades):
        if number % 250 == 125:
            assert hasty.run(request(how="never ends")).kind == "timeout"
        how, expected = kinds[number % len(kinds)]
        outcome = pool.run(request(how=how))
        assert outcome.kind == expected, (how, outcome)
    assert own_memory() - memory < 20 << 20
    assert own_descriptors() == num_descriptors
    assert len(settled_family(2) - before) == 2, "one process for each grader"
    assert len(grading_folders()) == num_folders
    pool.close()
    hasty.close()
    assert settled_family(0) <= before
    assert strays() == []


def settled_family(num_new: int) -> set[int]:
    """One's own processes, a moment later: what the last sample left goes while others are asked."""
    deadline = time.monotonic() + 5
    while len(family := own_family()) > num_new and time.monotonic() < deadline:
        time.sleep(0.01)
    return family


def request(**item: object) -> bytes:
    return json.dumps({"sample": {"output_text": ""}, "item": item}).encode()


@pytest.fixture
def own_folder() -> Iterator[None]:
    """Whoever else grades on this machine makes folders too; these are one's own, and go."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        yield
        left = os.listdir(folder)
        tempfile.tempdir = before
        assert left == []


def test_500_faulty_grades_leave_nothing_behind(own_folder: None) -> None:
    grade_faulty(500)


@pytest.mark.long
def test_10_000_faulty_grades_leave_nothing_behind(own_folder: None) -> None:
    grade_faulty(10_000)


def test_failed_sources_leave_nothing_behind(own_folder: None) -> None:
    before_processes, before_descriptors = own_family(), own_descriptors()
    honest = "def grade(sample, item): return 1.0"
    for top in ("1 / 0", "import os; os._exit(1)", "import os\nif os.fork(): 1 / 0"):
        for tier in ("kernel", "unsafe-local"):
            pool = Sandbox(f"{top}\n{honest}", Limits(0.5, 512), tier)
            assert pool.run(request()).kind == "source"
            pool.close()
    assert own_descriptors() == before_descriptors
    assert settled_family(len(before_processes)) == before_processes


# from one sample to the next


def module_state(is_first):
    if is_first:
        STATE.append(1)
    return STATE != []


def builtin_functions(is_first):
    import builtins

    if is_first:
        builtins.len = lambda _: 7
    return len("ab") != 2


def loaded_modules(is_first):
    import json
    import types

    if is_first:
        sys.modules["left"] = types.ModuleType("left")
        json.loads = lambda _: {"sample": {}, "item": {"is_first": True}}
    return "left" in sys.modules


def import_path(is_first):
    if is_first:
        sys.path.insert(0, os.getcwd())
        sys.meta_path.clear()
    return not sys.meta_path or os.getcwd() in sys.path


def files_in_its_folder(is_first):
    if is_first:
        with open("left", "w") as file:
            file.write("x")
        os.mkdir(".hidden")
        os.symlink("/proc", "link")
    return os.listdir() != []


def name_of_its_folder(is_first):
    if is_first:
        with contextlib.suppress(OSError):
            os.rmdir(os.getcwd())
        return False
    return not os.path.isdir(os.environ["HOME"])


def environment(is_first):
    if is_first:
        os.environ["LEFT"] = "1"
        os.putenv("LEFT", "1")
    return "LEFT" in os.environ


def current_folder(is_first):
    if is_first:
        os.chdir("/usr/lib")
    return os.getcwd() != os.environ["HOME"]


def file_mask(is_first):
    if is_first:
        os.umask(0o777)
        return False
    return os.umask(0) == 0o777


def signal_handlers(is_first):
    import signal

    if is_first:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        signal.setitimer(signal.ITIMER_REAL, 1000)
        return False
    is_pending = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    is_blocked = signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return is_pending or is_blocked or signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN


def random_numbers(is_first):
    import random

    if is_first:
        random.seed(7)
        random.random = lambda: 0.5
        return False
    return random.random() == 0.5


def random_numbers_of_numpy(is_first):
    import numpy

    if is_first:
        numpy.random.seed(7)
        return False
    return bool(numpy.random.get_state()[1][0] == 7)


def how_numpy_prints(is_first):
    import numpy

    if is_first:
        numpy.set_printoptions(precision=1)
        numpy.seterr(all="raise")
    return numpy.get_printoptions()["precision"] == 1 or numpy.geterr()["under"] == "raise"


def locale_settings(is_first):
    import locale

    if is_first:
        locale.setlocale(locale.LC_ALL, "C")
    return locale.setlocale(locale.LC_ALL) == "C"


def warning_filters(is_first):
    import warnings

    if is_first:
        warnings.simplefilter("error")
        return False
    return any(entry[0] == "error" for entry in warnings.filters)


def cached_lines(is_first):
    import linecache

    if is_first:
        linecache.cache["left.py"] = (1, None, ["left\n"], "left.py")
    return "left.py" in linecache.cache


def remembered_patterns(is_first):
    import re

    if is_first:
        re._cache[str, "left", 0] = re.compile("x")
    return (str, "left", 0) in re._cache


def decimal_context(is_first):
    import decimal

    if is_first:
        decimal.getcontext().prec = 3
    return decimal.getcontext().prec == 3


def recursion_limit(is_first):
    if is_first:
        sys.setrecursionlimit(200)
        sys.setswitchinterval(1.0)
    return sys.getrecursionlimit() == 200 or sys.getswitchinterval() == 1.0


def running_threads(is_first):
    import threading

    if is_first:
        threading.Thread(target=time.sleep, args=(1000,), name="left").start()
    return any(thread.name == "left" for thread in threading.enumerate())


def open_descriptors(is_first):
    if is_first:
        os.dup2(1, 50)
    return is_open(50)


def resource_limits(is_first):
    import resource

    if is_first:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 20


def tracing(is_first):
    if is_first:
        sys.setprofile(lambda *_: None)
        return False
    return sys.getprofile() is not None


def garbage_collector(is_first):
    import gc

    if is_first:
        gc.disable()
        gc.callbacks.append(print)
    return not gc.isenabled() or bool(gc.callbacks)


def at_exit(is_first):
    import atexit

    if is_first:
        atexit.register(os.mkdir, "left")
        return False
    atexit._run_exitfuncs()
    return os.path.exists("left")


def open_files_of_the_source(is_first):
    # the source opened it: its place is shared by all forks
    with contextlib.suppress(OSError):
        if is_first:
            os.lseek(OPEN_FILE.fileno(), 5, os.SEEK_SET)
        return os.lseek(OPEN_FILE.fileno(), 0, os.SEEK_CUR) != 0
    return False


def words_of_the_source(is_first):
    # a pipe that the source made is open in every fork
    with contextlib.suppress(OSError):
        if is_first:
            os.write(PIPE[1], b"left")
            return False
        os.set_blocking(PIPE[0], False)
        return os.read(PIPE[0], 4) == b"left"
    return False


def memory_of_the_source(is_first):
    if is_first:
        SHARED[:4] = b"left"
    return SHARED[:4] == b"left"


def queues_of_the_system(is_first):
    import ctypes

    libc = ctypes.CDLL(None)
    create = 0o1000
    if is_first:
        libc.shmget(KEY, 4096, create | 0o600)
        libc.msgget(KEY, create | 0o600)
        return False
    return max(libc.shmget(KEY, 4096, 0), libc.msgget(KEY, 0)) >= 0


def memory_of_the_worker(is_first):
    import ctypes

    if is_first:
        new = ctypes.create_string_buffer(b"left")
        ours = (ctypes.c_uint64 * 2)(ctypes.addressof(new), 4)
        theirs = (ctypes.c_uint64 * 2)(ctypes.addressof(BUFFER), 4)
        ctypes.CDLL(None).process_vm_writev(
            os.getppid(), ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), ctypes.c_ulong(0)
        )
        return False
    return BUFFER.value == b"left"


def order_of_the_worker(is_first):
    if is_first:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
        return False
    return os.getpriority(os.PRIO_PROCESS, 0) == 19


def answers_for_later(is_first):
    # a second result, meant for the next sample
    if is_first:
        body = b'{"kind": "reward", "reward": 1.0}'
        for fd in range(3, 64):
            try:
                os.set_blocking(fd, False)
                os.write(fd, 5 * (len(body).to_bytes(4, "big") + body))
            except OSError:
                pass
    return False


CHANNELS = [
    module_state,
    builtin_functions,
    loaded_modules,
    import_path,
    files_in_its_folder,
    name_of_its_folder,
    environment,
    current_folder,
    file_mask,
    signal_handlers,
    random_numbers,
    random_numbers_of_numpy,
    how_numpy_prints,
    locale_settings,
    warning_filters,
    cached_lines,
    remembered_patterns,
    decimal_context,
    recursion_limit,
    running_threads,
    open_descriptors,
    resource_limits,
    tracing,
    garbage_collector,
    at_exit,
    open_files_of_the_source,
    words_of_the_source,
    queues_of_the_system,
    memory_of_the_worker,
    order_of_the_worker,
    answers_for_later,
]
"""Each leaves something if it is the first, and says whether it finds it."""
CLOSED_BY_LAYERS = (
    queues_of_the_system,
    memory_of_the_worker,
    order_of_the_worker,
)
"""Those that a fork alone leaves open."""
KEY = 0x5EED0000 | os.getpid() & 0xFFFF

GRADER = f"""
import contextlib, ctypes, mmap, numpy, os, sys, tempfile, time

KEY = {KEY}
STATE = []
PIPE = os.pipe()
SHARED = mmap.mmap(-1, 4096)
BUFFER = ctypes.create_string_buffer(8)
OPEN_FILE = tempfile.TemporaryFile()
OPEN_FILE.write(b"something"); OPEN_FILE.seek(0)

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

def grade(sample, item):
    exec(item["channel"], globals())
    return float(globals()[item["name"]](item["is_first"]))
"""


def found_by_the_next(channel: Callable[[bool], bool], tier: Tier) -> bool:
    """Whether the second sample finds what the first left; the third what the second did not leave."""
    pool = Sandbox(GRADER, Limits(20, 1024), tier)
    item = {"channel": inspect.getsource(channel), "name": channel.__name__}
    try:
        pool.run(request(**item, is_first=False))
        pool.run(request(**item, is_first=True))
        outcome = pool.run(request(**item, is_first=False))
    finally:
        pool.close()
        for kind in ("-M", "-Q"):
            subprocess.run(["ipcrm", kind, str(KEY)], capture_output=True)
    assert outcome.kind == "reward", outcome
    return bool(outcome.reward)


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.__name__)
def test_a_sample_cannot_reach_the_next(channel: Callable[[bool], bool]) -> None:
    assert not found_by_the_next(channel, "kernel")


@pytest.mark.parametrize("channel", CLOSED_BY_LAYERS, ids=lambda channel: channel.__name__)
def test_without_layers_it_reaches_the_next(channel: Callable[[bool], bool]) -> None:
    assert found_by_the_next(channel, "unsafe-local")


def test_memory_that_a_source_shares_on_purpose_is_shared() -> None:
    """The limit: it is the source's author who makes such a map, no sample can."""
    assert found_by_the_next(memory_of_the_source, "kernel")


WITHIN_ONE_PROCESS = """
for name in {names!r}:
    if os.fork() == 0:
        os.mkdir(name)
        os.chdir(name)
        os.environ["HOME"] = os.getcwd()
        try:
            grade({{}}, {{"channel": "", "name": name, "is_first": True}})
            found = grade({{}}, {{"channel": "", "name": name, "is_first": False}})
        except BaseException as error:
            found = repr(error)
        os.write(2, f"{{name}}: {{found}}\\n".encode())
        os._exit(0)
    os.wait()
"""


def test_each_channel_carries_within_one_process(tmp_path: Path) -> None:
    """What a fork closes is seen to be open without one."""
    names = [channel.__name__ for channel in CHANNELS if channel not in CLOSED_BY_LAYERS]
    names.remove(answers_for_later.__name__)
    script = [GRADER, *map(inspect.getsource, CHANNELS), WITHIN_ONE_PROCESS.format(names=names)]
    (tmp_path / "script.py").write_text("\n".join(script))
    result = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        cwd=tmp_path,
        env={"LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    assert result.stderr.splitlines() == [f"{name}: 1.0" for name in names]


def test_rewards_do_not_depend_on_the_order() -> None:
    source = "import random\ndef grade(s, i): return random.random() + hash(i['text']) % 1000"
    rewards = []
    for texts in ("abcab", "bacba"):
        pool = Sandbox(source, Limits(20, 512), "kernel")
        rewards.append({text: pool.run(request(text=text)).reward for text in texts})
        pool.close()
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0].values())) == 3
