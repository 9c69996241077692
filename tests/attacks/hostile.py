"""Hostile and broken graders: functions that take the place of `grade`, or run when a source is loaded."""

# ruff: noqa: F401, SIM115  (their text runs in a grading process, which needs all imports)

import asyncio
import atexit
import builtins
import contextlib
import copy
import ctypes
import decimal
import faulthandler
import fractions
import gc
import importlib
import json
import mmap
import os
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path


def frame(**reply):
    body = json.dumps(reply).encode()
    return struct.pack(">I", len(body)) + body


def write_everywhere(content):
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)
            os.write(fd, content)


# what it returns


class RaisingFloat:
    def __float__(self):
        raise ValueError("no number today")


class TextFloat:
    def __float__(self):
        return "1.0"


class EndlessFloat:
    def __float__(self):
        while True:
            pass


class ExitingFloat:
    def __float__(self):
        os._exit(0)


class LyingFloat(float):
    def __float__(self):
        return float("nan")


class HostileRepr:
    def __repr__(self):
        raise ValueError("no words today")


class EndlessRepr:
    def __repr__(self):
        while True:
            pass


class HostileClass(type):
    @property
    def __name__(cls):
        raise ValueError("no name today")


class Nameless(metaclass=HostileClass):
    pass


def returns_nan(sample, item):
    return float("nan")


def returns_infinity(sample, item):
    return float("inf")


def returns_minus_infinity(sample, item):
    return float("-inf")


def returns_too_large_literal(sample, item):
    return 1e400


def returns_nothing(sample, item):
    pass


def returns_text(sample, item):
    return "1.0"


def returns_bytes(sample, item):
    return b"1.0"


def returns_true(sample, item):
    return True


def returns_numpy_float(sample, item):
    import numpy

    return numpy.float32(0.5)


def returns_numpy_nan(sample, item):
    import numpy

    return numpy.float64("nan")


def returns_array_of_one(sample, item):
    import numpy

    return numpy.array(0.25)


def returns_array_of_many(sample, item):
    import numpy

    return numpy.zeros(3)


def returns_complex(sample, item):
    return 1 + 0j


def returns_huge_integer(sample, item):
    return 10**400


def returns_huge_unprintable_integer(sample, item):
    return 10**5000


def returns_decimal(sample, item):
    return decimal.Decimal("0.25")


def returns_decimal_nan(sample, item):
    return decimal.Decimal("sNaN")


def returns_fraction(sample, item):
    return fractions.Fraction(1, 4)


def returns_raising_float(sample, item):
    return RaisingFloat()


def returns_text_float(sample, item):
    return TextFloat()


def returns_endless_float(sample, item):
    return EndlessFloat()


def returns_exiting_float(sample, item):
    return ExitingFloat()


def returns_lying_float(sample, item):
    return LyingFloat(1.0)


def returns_hostile_repr(sample, item):
    return HostileRepr()


def returns_endless_repr(sample, item):
    return EndlessRepr()


def returns_nameless(sample, item):
    return Nameless()


def returns_list(sample, item):
    return [1.0]


def returns_dict_of_itself(sample, item):
    loop = {}
    loop["loop"] = loop
    return loop


def returns_exponential_list(sample, item):
    bomb = [1.0]
    for _ in range(60):
        bomb = [bomb, bomb]
    return bomb


def returns_generator(sample, item):
    yield 1.0


async def returns_coroutine(sample, item):
    return 1.0


def returns_lambda(sample, item):
    return lambda: 1.0


def returns_least_float(sample, item):
    return 5e-324


def returns_largest_float(sample, item):
    return sys.float_info.max


# what it raises


class OwnBaseException(BaseException):
    pass


class HostileText(Exception):
    def __str__(self):
        raise ValueError("no text today")

    __repr__ = __str__


class EndlessText(Exception):
    def __str__(self):
        while True:
            pass


class ExitingText(Exception):
    def __str__(self):
        os._exit(0)


class NumberText(Exception):
    def __str__(self):
        return 7


def raises(sample, item):
    raise ValueError("no such thing")


def raises_base_exception(sample, item):
    raise OwnBaseException("beyond Exception")


def raises_keyboard_interrupt(sample, item):
    raise KeyboardInterrupt


def raises_generator_exit(sample, item):
    raise GeneratorExit


def raises_stop_iteration(sample, item):
    raise StopIteration(1.0)


def raises_system_exit(sample, item):
    sys.exit("1.0")


def raises_memory_error(sample, item):
    raise MemoryError


def raises_hostile_text(sample, item):
    raise HostileText


def raises_endless_text(sample, item):
    raise EndlessText


def raises_exiting_text(sample, item):
    raise ExitingText


def raises_number_text(sample, item):
    raise NumberText


def raises_long_text(sample, item):
    raise ValueError("x" * 100_000_000)


def raises_lone_surrogates(sample, item):
    raise ValueError("\ud800 and \udfff")


def raises_nul_and_controls(sample, item):
    raise ValueError("\0\x1b[2J\x07")


def raises_long_chain(sample, item):
    error = None
    for number in range(2000):
        try:
            raise ValueError(number) from error
        except ValueError as caught:
            error = caught
    raise error


def raises_circle(sample, item):
    one, other = ValueError(1), ValueError(2)
    one.__cause__, other.__cause__ = other, one
    raise one


def raises_group(sample, item):
    group = ValueError(0)
    for _ in range(5000):
        group = ExceptionGroup("deep", [group])
    raise group


def raises_syntax_error_of_its_own(sample, item):
    error = SyntaxError("odd")
    error.filename, error.lineno, error.offset, error.text = "grader.py", "x", -1, 5
    raise error


def raises_in_a_destructor(sample, item):
    class Late:
        def __del__(self):
            raise ValueError("late")

    Late()
    raise ValueError("early")


# endings


def exits(sample, item):
    os._exit(0)


def exits_in_a_thread(sample, item):
    threading.Thread(target=os._exit, args=(7,)).start()
    time.sleep(30)


def aborts(sample, item):
    os.abort()


def reads_from_nowhere(sample, item):
    ctypes.string_at(0)


def jumps_to_nowhere(sample, item):
    ctypes.CFUNCTYPE(None)(8)()


def overflows_the_stack_in_c(sample, item):
    libc = ctypes.CDLL(None)
    recursion = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    pair = (ctypes.c_int * 2)(2, 1)
    sys.setrecursionlimit(10**9)

    @recursion
    def compare(one, other):
        libc.qsort(pair, 2, 4, compare)
        return 0

    compare(None, None)


def kills_itself(sample, item):
    os.kill(os.getpid(), signal.SIGKILL)


def stops_itself(sample, item):
    os.kill(os.getpid(), signal.SIGSTOP)


def ends_itself_with_sigterm(sample, item):
    os.kill(os.getpid(), signal.SIGTERM)


def kills_its_parent(sample, item):
    os.kill(os.getppid(), signal.SIGKILL)


def signals_everybody(sample, item):
    os.kill(-1, signal.SIGURG)


def signals_its_group(sample, item):
    os.killpg(os.getpgrp(), signal.SIGURG)


def calls_an_unknown_system_call(sample, item):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(5000) < 0:
        raise OSError(ctypes.get_errno(), "no such call")


# never ending


def loops(sample, item):
    while True:
        pass


def sleeps(sample, item):
    time.sleep(1000)


def ignores_all_signals(sample, item):
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    while True:
        pass


def catches_everything(sample, item):
    while True:
        with contextlib.suppress(BaseException):
            while True:
                time.sleep(0.01)


def matches_a_catastrophic_pattern(sample, item):
    return float(bool(re.match(r"(a+)+$", "a" * 64 + "!")))


def computes_in_c(sample, item):
    return float(7**10**8 % 5)


def closes_everything_and_sleeps(sample, item):
    os.closerange(0, 1000)
    time.sleep(1000)


def waits_for_input(sample, item):
    return float(input())


def deadlocks(sample, item):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def prints_for_ever(sample, item):
    while True:
        print("spam" * 1000)


def floods_its_result(sample, item):
    while True:
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(fd, frame(kind="run", source="", stdin=""))


def leaves_the_group(sample, item):
    with contextlib.suppress(OSError):
        os.setsid()
    time.sleep(1000)


# memory and disk


def hoards_a_list(sample, item):
    hoard = []
    while True:
        hoard.append(" " * 10**6)


def doubles_a_list(sample, item):
    hoard = [0]
    while True:
        hoard *= 2


def hoards_small_objects(sample, item):
    hoard = [bytearray(300 << 20)]  # so that little is left for them
    while True:
        hoard = [hoard, 1.5]


def hoards_a_text(sample, item):
    return float(len("x" * 10 * 2**30))


def hoards_an_array(sample, item):
    import numpy

    return float(numpy.ones(10 * 2**27).sum())


def hoards_a_map(sample, item):
    hoard = mmap.mmap(-1, 10 * 2**30)
    hoard[:] = b"x" * len(hoard)


def hoards_files_in_memory(sample, item):
    written = 0
    while written < 3 << 30:
        fd = os.memfd_create("hoard")
        for _ in range(8):
            written += os.write(fd, bytes(64 << 20))
    return 1.0


def hoards_pipes(sample, item):
    ends = []
    while len(ends) < 100_000:
        reader, writer = os.pipe()
        ends += [reader, writer]
        os.write(writer, bytes(60_000))


def copies_deeply(sample, item):
    bomb, hoard = [bytearray(1 << 20)], []
    while True:
        hoard.append(copy.deepcopy(bomb))


def expands_a_text(sample, item):
    text = "lol"
    for _ in range(30):
        text = text.replace("l", "lol" * 10)


def starts_endless_threads(sample, item):
    while True:
        threading.Thread(target=time.sleep, args=(1000,)).start()


def forks_a_bomb(sample, item):
    # bounded, so that it stays harmless where nothing refuses it
    for _ in range(7):
        os.fork()
    time.sleep(1000)


def starts_a_program(sample, item):
    return float(subprocess.run(["true"]).returncode)


def opens_files_without_end(sample, item):
    files = []
    while len(files) < 100_000:
        files.append(open("/dev/null"))


def writes_a_large_file(sample, item):
    with open("large", "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 30)
        file.write(b"x")


def fills_the_disk(sample, item):
    for number in range(3):
        fd = os.open(f"large{number}", os.O_CREAT | os.O_WRONLY)
        os.posix_fallocate(fd, 0, 1 << 30)
    time.sleep(1000)


def hides_what_fills_the_disk(sample, item):
    for number in range(100):
        os.mkdir(str(number))
    for folder in os.listdir():
        fd = os.open(f"{folder}/large", os.O_CREAT | os.O_WRONLY)
        os.posix_fallocate(fd, 0, 12 << 20)
        os.close(fd)
    time.sleep(2)
    return 1.0


def makes_many_files(sample, item):
    for number in range(100_000):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))
    return 1.0


def makes_files_without_end(sample, item):
    number = 0
    while True:
        os.mkdir(str(number))
        os.close(os.open(f"{number}/file", os.O_CREAT | os.O_WRONLY))
        number += 1


def makes_deep_folders(sample, item):
    for _ in range(300):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    Path("file").write_text("x")
    return 1.0


# its folder


def removes_its_folder(sample, item):
    shutil.rmtree(os.environ["HOME"])


def renames_its_folder(sample, item):
    os.rename(os.environ["HOME"], os.environ["HOME"] + "-moved")


def closes_its_folder(sample, item):
    os.mkdir("closed")
    Path("closed/file").write_text("x")
    os.chmod("closed", 0)
    os.chmod(os.environ["HOME"], 0)


def makes_closed_folders(sample, item):
    os.mkdir("a")
    os.umask(0o777)
    os.mkdir("a/closed")
    os.mkdir("closed")
    return 1.0


def makes_odd_names(sample, item):
    folder = os.fsencode(os.getcwd())
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b"x" * 255, "\U0001f600".encode()):
        os.mkdir(folder + b"/" + name)
        os.close(os.open(folder + b"/" + name + b"/" + name, os.O_CREAT | os.O_WRONLY))
    return 1.0


def points_out_of_its_folder(sample, item):
    os.symlink(item["outside"], "link")
    os.mkdir("inner")
    os.symlink(item["outside"], "inner/link")
    os.symlink("inner", "circle")
    os.symlink("/proc", "processes")
    return 1.0


def replaces_its_folder(sample, item):
    os.rmdir(os.environ["HOME"])
    os.symlink(item["outside"], os.environ["HOME"])


# descriptors and results


def closes_everything(sample, item):
    os.closerange(0, 1000)
    return 1.0


def closes_its_output(sample, item):
    sys.stdout.close()
    os.close(1)
    os.close(2)
    sys.stderr = None
    return 1.0


def replaces_descriptors(sample, item):
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(64):
        with contextlib.suppress(OSError):
            os.dup2(null, fd)
    return 1.0


def blocks_descriptors(sample, item):
    for fd in range(64):
        with contextlib.suppress(OSError):
            os.set_blocking(fd, True)
    raise ValueError("all are blocking")


def prints_bytes(sample, item):
    os.write(1, b"\xff\xfe\x80 bytes")
    raise ValueError("after bytes")


def prints_much(sample, item):
    chunk = b"x" * (1 << 24)
    for _ in range(64):
        os.write(1, chunk)
    return 1.0


def prints_secretly(sample, item):
    print("seen")
    os._exit(3)


def forges_a_result(sample, item):
    write_everywhere(frame(kind="reward", reward=777.0) * 3)
    os._exit(0)


def forges_nan(sample, item):
    write_everywhere(struct.pack(">I", 31) + b'{"kind":"reward","reward": NaN}')
    os._exit(0)


def forges_a_timeout(sample, item):
    write_everywhere(frame(kind="timeout", details="it was not me"))
    time.sleep(1000)


def forges_a_broken_sandbox(sample, item):
    write_everywhere(frame(kind="sandbox", details="it was not me"))
    time.sleep(1000)


def forges_garbage(sample, item):
    write_everywhere(b"\0\0\0\5hello" * 100)
    time.sleep(1000)


def forges_a_huge_frame(sample, item):
    write_everywhere(struct.pack(">I", 0xFFFFFFFF) + b"x" * 100)
    time.sleep(1000)


def forges_half_a_frame(sample, item):
    write_everywhere(struct.pack(">I", 1000) + b"x" * 10)
    os._exit(0)


def forges_a_deep_frame(sample, item):
    body = b"[" * 100_000 + b"]" * 100_000
    write_everywhere(struct.pack(">I", len(body)) + body)
    time.sleep(1000)


def forges_details_that_are_no_text(sample, item):
    write_everywhere(frame(kind="fault", details={"a": ["b"] * 5000}))
    time.sleep(1000)


def forges_a_huge_number(sample, item):
    body = b'{"kind":"reward","reward":1' + b"0" * 400 + b"}"
    write_everywhere(struct.pack(">I", len(body)) + body)
    time.sleep(1000)


def forges_a_list_as_reward(sample, item):
    write_everywhere(frame(kind="reward", reward=[1.0]))
    time.sleep(1000)


# the interpreter


def recurses(sample, item):
    return recurses(sample, item)


def recurses_through_c(sample, item):
    sys.setrecursionlimit(10**9)
    return sorted([0, 1], key=lambda _: recurses_through_c(sample, item))


def changes_limits(sample, item):
    for kind in range(16):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (0 if kind in (0, 1) else hard, hard))
    Path("file").write_text("x")


def lifts_its_limits(sample, item):
    for kind in range(16):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    hoards_a_list(sample, item)


def limits_its_files(sample, item):
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return 1.0


def limits_its_time(sample, item):
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


def patches_builtins(sample, item):
    for name in dir(builtins):
        if not name.startswith("_"):
            setattr(builtins, name, None)
    return 1.0


def patches_what_the_worker_uses(sample, item):
    os.write = os._exit = json.dumps = struct.pack = lambda *arguments: 1 / 0
    return 1.0


def empties_the_modules(sample, item):
    sys.modules.clear()
    return 1.0


def patches_its_own_grader(sample, item):
    global grade
    grade = sys.modules["grader"].grade = None
    return 0.5


def leaves_a_thread(sample, item):
    def talk():
        while True:
            print("still here")
            write_everywhere(b"x")

    threading.Thread(target=talk).start()
    time.sleep(0.05)
    return 1.0


def leaves_a_sleeping_thread(sample, item):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return 0.5


def leaves_at_exit(sample, item):
    atexit.register(time.sleep, 1000)
    return 0.5


def leaves_signal_handlers(sample, item):
    signal.signal(signal.SIGALRM, lambda *_: time.sleep(1000))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    return 0.5


def traces_everything(sample, item):
    def trace(frame, event, argument):
        raise ValueError("traced")

    sys.settrace(trace)
    threading.settrace(trace)
    return 1.0


def profiles_everything(sample, item):
    sys.setprofile(lambda *_: os._exit(0))
    return 1.0


def plays_with_the_collector(sample, item):
    class Undead:
        def __del__(self):
            UNDEAD.append(self)

    global UNDEAD
    UNDEAD = []
    gc.callbacks.append(lambda *_: None)
    gc.unfreeze()
    gc.set_threshold(1, 1, 1)
    for _ in range(1000):
        undead = Undead()
        undead.itself = undead
    gc.collect()
    return 0.5


def switches_threads_rarely(sample, item):
    sys.setswitchinterval(1000.0)
    threading.Thread(target=loops, args=(sample, item)).start()
    return 0.5


def compiles_a_bomb(sample, item):
    compile("(" * 100_000 + ")" * 100_000, "bomb", "eval")


def crashes_the_compiler(sample, item):
    tree = "-" * 100_000 + "1"
    return eval(tree)


def runs_asynchronously(sample, item):
    async def answer():
        await asyncio.sleep(0.001)
        return 0.5

    return asyncio.run(answer())


def sets_a_dump_for_later(sample, item):
    faulthandler.dump_traceback_later(0.05, exit=True)
    time.sleep(1000)


def corrupts_an_object(sample, item):
    ctypes.memset(id(None), 0xFF, 16)
    ctypes.memset(id(sample), 0xFF, 64)
    return 1.0


def divides_by_zero(sample, item):
    return 1 / 0


def misses_a_key(sample, item):
    return item["no such key"]


# when the source is loaded


def at_load_raises():
    raise ValueError("not today")


def at_load_exits():
    os._exit(0)


def at_load_leaves():
    sys.exit(0)


def at_load_interrupts():
    raise KeyboardInterrupt


def at_load_raises_hostile_text():
    raise HostileText


def at_load_raises_lone_surrogates():
    raise ValueError("\ud800")


def at_load_raises_long_text():
    raise ValueError("x" * 100_000_000)


def at_load_recurses():
    at_load_recurses()


def at_load_aborts():
    os.abort()


def at_load_crashes():
    ctypes.string_at(0)


def at_load_loops():
    while True:
        pass


def at_load_ignores_all_signals():
    ignores_all_signals(None, None)


def at_load_stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


def at_load_resets_timers():
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(1000)


def at_load_hoards():
    hoards_a_list(None, None)


def at_load_starts_endless_threads():
    starts_endless_threads(None, None)


def at_load_closes_everything():
    os.closerange(3, 1000)


def at_load_signals_its_parent():
    # its parent is the engine: nothing worse than SIGURG, should it get through
    os.kill(os.getppid(), signal.SIGURG)


def at_load_signals_everybody():
    os.kill(-1, signal.SIGURG)


def at_load_forks_and_hangs():
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(1000)


def at_load_forks_a_bomb():
    # bounded, so that it stays harmless where nothing refuses it
    for _ in range(7):
        with contextlib.suppress(OSError):
            os.fork()
    time.sleep(1000)


def at_load_prints_for_ever():
    while True:
        print("spam" * 1000)


def at_load_hides_grade():
    global HIDDEN
    HIDDEN = True


def at_load_patches_builtins():
    patches_builtins(None, None)


def at_load_patches_the_worker():
    for module in list(sys.modules.values()):
        for name in list(vars(module)) if hasattr(module, "__dict__") else ():
            if not name.startswith("__"):
                with contextlib.suppress(Exception):
                    setattr(module, name, None)


def at_load_never_forks():
    os.fork = lambda: 0


def at_load_never_ends_samples():
    os._exit = lambda code: time.sleep(1000)


def at_load_says_ready_itself():
    write_everywhere(frame(kind="ready") * 3)


def at_load_answers_with(content):
    """Takes the place of the worker: says it is ready and answers every request alike."""
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.set_blocking(fd, True)
                os.write(fd, frame(kind="ready") + content)
    time.sleep(1000)


def at_load_answers_a_list():
    at_load_answers_with(frame(kind="reward", reward=[1.0]))


def at_load_answers_a_huge_number():
    body = b'{"kind":"reward","reward":1' + b"0" * 400 + b"}"
    at_load_answers_with(struct.pack(">I", len(body)) + body)


def at_load_answers_nan():
    body = b'{"kind":"reward","reward":NaN}'
    at_load_answers_with(struct.pack(">I", len(body)) + body)


def at_load_answers_a_kind_of_its_own():
    at_load_answers_with(frame(kind="ready"))


def at_load_answers_no_object():
    at_load_answers_with(struct.pack(">I", 4) + b"null")


def at_load_answers_odd_details():
    at_load_answers_with(frame(kind="fault", details={"a": [1]}))


def at_load_answers_deep_details():
    body = b'{"kind":"fault","details":' + b"[" * 900 + b"]" * 900 + b"}"
    at_load_answers_with(struct.pack(">I", len(body)) + body)


def at_load_answers_long_details():
    at_load_answers_with(frame(kind="fault", details="x" * 1_000_000))


def at_load_answers_garbage():
    at_load_answers_with(b"\0\0\0\5hello")


def at_load_answers_too_much():
    at_load_answers_with(struct.pack(">I", 0xFFFFFFFF) + b"x" * 100)


def at_load_answers_lone_surrogates():
    body = b'{"kind":"fault","details":"\\ud800"}'
    at_load_answers_with(struct.pack(">I", len(body)) + body)


# when the source is loaded, and yet it grades


def at_load_ignores_signals():
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


def at_load_handles_children():
    signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))


def at_load_leaves_an_alarm():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)


def at_load_leaves_a_thread():
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def at_load_leaves_a_busy_thread():
    def count():
        while True:
            sum(range(1000))

    threading.Thread(target=count, daemon=True).start()


def at_load_leaves_something_at_exit():
    atexit.register(time.sleep, 1000)


def at_load_leaves_its_group():
    with contextlib.suppress(OSError):
        os.setsid()


def at_load_forks_a_child_that_stays():
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            time.sleep(1000)


def at_load_forks_a_child_that_goes_on():
    with contextlib.suppress(OSError):
        os.fork()


def at_load_moves():
    os.chdir("/usr/lib")


def at_load_masks():
    os.umask(0o777)


def at_load_closes_output():
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


def at_load_closes_input():
    os.close(0)


def at_load_removes_its_folder():
    with contextlib.suppress(OSError):
        shutil.rmtree(os.environ["HOME"])


def at_load_fills_its_folder():
    for number in range(500):
        os.mkdir(f"{os.environ['HOME']}/{number}")


def at_load_points_out_of_its_folder():
    outside = OUTSIDE
    os.symlink(outside, os.environ["HOME"] + "/link")
    with contextlib.suppress(OSError):
        os.rmdir("sample")
        os.symlink(outside, "sample")


def at_load_lowers_limits():
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def at_load_hoards_most():
    global HOARD
    HOARD = bytearray(300 << 20)


def at_load_traces():
    sys.settrace(lambda *_: None)


def at_load_empties_the_modules():
    sys.modules.clear()


def at_load_disables_the_collector():
    gc.disable()
    gc.callbacks.append(lambda *_: None)


def at_load_prints_much():
    os.write(1, b"x" * (1 << 26))


def at_load_changes_its_environment():
    os.environ.clear()


def at_load_becomes_traceable():
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def at_load_outlives():
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
