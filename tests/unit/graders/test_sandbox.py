"""What every sandbox holds, the one without the kernel's help too: whatever one sample does, the
engine goes on and the next sample is graded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rft.graders.sandbox import Limits, Outcome, Sandbox

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def sandbox(body, top="", timeout_seconds=20.0, memory_mb=512, tier="unsafe-local"):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"import os, sys, time\n{top}\ndef grade(sample, item):\n{lines}    return 1.0\n"
    return Sandbox(source, Limits(timeout_seconds, memory_mb), tier)


def request(**item):
    return json.dumps({"sample": {"output_text": ""}, "item": item}).encode()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


TIMEOUT = Outcome("timeout", details="timeout after 1 s")


@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
@pytest.mark.parametrize(
    ("body", "limits", "expected"),
    [
        ("while True: pass", {"timeout_seconds": 1}, TIMEOUT),
        ("time.sleep(100)", {"timeout_seconds": 1}, TIMEOUT),
        (
            "import signal\n"
            "for number in range(1, 65):\n"
            "    try: signal.signal(number, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\n"
            "while True: pass",
            {"timeout_seconds": 1},
            TIMEOUT,
        ),
        ("os.closerange(0, 1000)\ntime.sleep(100)", {"timeout_seconds": 1}, TIMEOUT),
        (
            "x = []\nwhile True: x.append(' ' * 10**6)",
            {"memory_mb": 256},
            Outcome("memory", details="memory limit 256 MB"),
        ),
        (
            "while True: KEPT.append(len(KEPT))",
            {"memory_mb": 128, "top": "KEPT = []"},
            Outcome("memory", details="memory limit 128 MB"),
        ),
        (
            "os.closerange(0, 1000)",
            {},
            Outcome("fault", details="grade ended its process with exit code 1 before it returned"),
        ),
        (
            "os._exit(0)",
            {},
            Outcome("fault", details="grade ended its process with exit code 0 before it returned"),
        ),
        ("for _ in range(300): print('x' * 100_000)", {}, Outcome("reward", 1.0)),
        ("sys.stdout.close()\nsys.stderr = None", {}, Outcome("reward", 1.0)),
        ("sys.setrecursionlimit(10**9)", {}, Outcome("reward", 1.0)),
        ("os.chdir('/')\nos.environ.clear()", {}, Outcome("reward", 1.0)),
    ],
)
def test_hostile_sample(body, limits, expected, tier):
    check_hostile_sample(body, limits, expected, tier)


def test_only_the_kernel_kills_for_memory():
    killed = Outcome("memory", details="memory limit 512 MB: the process was killed")
    check_hostile_sample("os.kill(os.getpid(), 9)", {}, killed, "unsafe-local")
    pool = sandbox("os.kill(os.getpid(), 9)", tier="kernel")
    try:
        outcome = pool.run(request())
    finally:
        pool.close()
    assert outcome.kind == "fault"
    assert "PermissionError" in outcome.details


@pytest.mark.parametrize("tier", ["kernel", "unsafe-local"])
def test_signals_meant_for_the_job_end_no_grade(tier):
    body = "import signal\nfor number in (2, 15, 1): os.kill(os.getpid(), number)"
    check_hostile_sample(body, {}, Outcome("reward", 1.0), tier)


def test_a_worker_lost_while_it_loads_does_not_speak_for_the_source(tmp_path):
    mark = tmp_path / "mark"
    top = f"if os.path.exists({str(mark)!r}): os.kill(os.getpid(), 9)"
    pool = sandbox("if item['hostile']: os.kill(os.getppid(), 9)\ntime.sleep(0.1)", top=top)
    try:
        assert pool.run(request(hostile=False)) == Outcome("reward", 1.0)
        mark.touch()
        assert pool.run(request(hostile=True)).kind in ("sandbox", "source")
        mark.unlink()
        assert pool.run(request(hostile=False)) == Outcome("reward", 1.0)
    finally:
        pool.close()


@pytest.mark.parametrize(
    "body",
    [
        "os.fork()",
        "if os.fork() == 0: time.sleep(100)",
        "if os.fork() == 0: return 2.0\ntime.sleep(0.3)",
    ],
)
def test_forks_have_no_say(body):
    check_hostile_sample(body, {}, Outcome("reward", 1.0), "unsafe-local")


def check_hostile_sample(body, limits, expected, tier):
    hostile = "    ".join(body.splitlines(True))
    pool = sandbox(f"if item['hostile']:\n    {hostile}", tier=tier, **limits)
    try:
        assert pool.run(request(hostile=True)) == expected
        assert pool.run(request(hostile=False)) == Outcome("reward", 1.0)
    finally:
        pool.close()


def test_endless_output_is_cut_to_its_end():
    pool = sandbox("while True: print('spam' * 1000)", timeout_seconds=1)
    try:
        outcome = pool.run(request())
    finally:
        pool.close()
    assert outcome.kind == "timeout"
    assert outcome.details.startswith("timeout after 1 s\noutput:\n")
    assert len(outcome.details) < 4200


def test_a_sample_leaves_nothing_to_the_next():
    body = """
first = SEEN == [] and not os.path.exists("left") and "LEFT" not in os.environ
first = first and sum([1, 2]) == 3 and os.listdir() == []
SEEN.append(1)
open("left", "w").write("x" * 1000)
os.mkdir("folder")
os.chmod(os.getcwd(), 0)
os.environ["LEFT"] = "1"
import builtins
builtins.sum = lambda _: 0
sys.modules["grader"].grade = None
assert first
"""
    pool = sandbox(body, top="SEEN = []")
    try:
        assert [pool.run(request(n=n)) for n in range(4)] == [Outcome("reward", 1.0)] * 4
    finally:
        pool.close()


@pytest.mark.parametrize(
    "body",
    [
        "os.rmdir(os.getcwd())",
        "os.rmdir(os.getcwd())\nos.symlink(item['outside'], os.environ['HOME'])",
        "os.rmdir(os.getcwd())\nopen(os.environ['HOME'], 'w').close()",
        "import shutil\nshutil.rmtree(os.path.dirname(os.getcwd()))",
    ],
)
def test_a_broken_worker_does_not_harm_the_next_sample(body, tmp_path):
    (tmp_path / "kept").write_text("")
    pool = sandbox(
        f"if item['hostile']:\n    {'    '.join(body.splitlines(True))}", timeout_seconds=1
    )
    try:
        pool.run(request(hostile=True, outside=str(tmp_path)))
        assert pool.run(request(hostile=False)) == Outcome("reward", 1.0)
    finally:
        pool.close()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_sample_that_kills_its_worker_is_a_failure_of_the_sandbox():
    pool = sandbox("if item['hostile']: os.kill(os.getppid(), 9)\ntime.sleep(0.1)")
    try:
        assert pool.run(request(hostile=False)) == Outcome("reward", 1.0)
        outcome = pool.run(request(hostile=True))
        assert outcome.kind == "sandbox"
        assert "the grading process failed" in outcome.details
        assert pool.run(request(hostile=False)) == Outcome("reward", 1.0)
    finally:
        pool.close()


def test_rewards_are_a_function_of_the_request():
    body = "import random\nreturn random.random() + hash(item['text']) % 1000"
    outcomes = []
    for _ in range(2):
        pool = sandbox(body)
        outcomes.append([pool.run(request(text=text)).reward for text in "aab"])
        pool.close()
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == outcomes[0][1] != outcomes[0][2]


def test_environment_is_clean(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    body = """
assert "SECRET_TOKEN" not in os.environ and "PYTHONPATH" not in os.environ
assert not any(os.path.exists(f"{folder}/sandbox_worker.py") for folder in sys.path)
assert "rft.errors" not in sys.modules and "torch" not in sys.modules
assert os.getcwd() == os.environ["HOME"] == os.environ["TMPDIR"]
open_fds = {int(fd) for fd in os.listdir("/proc/self/fd")} if os.path.exists("/proc") else set()
assert len(open_fds) <= 8, open_fds
"""
    with open(os.devnull) as one, open(os.devnull) as other:
        os.set_inheritable(one.fileno(), True)
        os.set_inheritable(other.fileno(), True)
        pool = sandbox(body)
        try:
            assert pool.run(request()) == Outcome("reward", 1.0)
        finally:
            pool.close()


def test_calls_at_the_same_time_run_at_the_same_time():
    pool = sandbox("time.sleep(item['seconds'])\nreturn item['seconds']")
    seconds = [1.0, 0.9, 0.8, 0.7]
    try:
        with ThreadPoolExecutor(4) as threads:
            started = time.perf_counter()
            rewards = [
                outcome.reward
                for outcome in threads.map(lambda s: pool.run(request(seconds=s)), seconds)
            ]
            elapsed = time.perf_counter() - started
    finally:
        pool.close()
    assert rewards == seconds
    assert elapsed < 3.0


@linux_only
def test_nothing_survives_its_sample():
    body = """
pids = []
for daemon in (False, True):
    reader, writer = os.pipe()
    if os.fork() == 0:
        if daemon:
            os.setsid()
            if os.fork() != 0: os._exit(0)
        os.write(writer, str(os.getpid()).encode())
        time.sleep(100)
    pids.append(int(os.read(reader, 20)))
return pids[0] * 10_000_000 + pids[1]
"""
    pool = sandbox(body)
    try:
        pids = divmod(int(pool.run(request()).reward), 10_000_000)
        wait_until(lambda: not any(map(is_alive, pids)))
    finally:
        pool.close()


@linux_only
def test_a_sample_ends_with_its_worker(tmp_path):
    body = (
        "open(item['file'], 'w').write(str(os.getpid()))\nos.kill(os.getppid(), 9)\ntime.sleep(100)"
    )
    file = tmp_path / "pid"
    pool = sandbox(body)
    try:
        assert pool.run(request(file=str(file))).kind == "sandbox"
        wait_until(lambda: not is_alive(int(file.read_text())))
    finally:
        pool.close()


@linux_only
def test_close_ends_workers_at_work(tmp_path):
    pool = sandbox(
        "open(item['file'], 'w').write(f'{os.getppid()} {os.getpid()}')\ntime.sleep(100)"
    )
    file = tmp_path / "pids"
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(pool.run(request(file=str(file)))))
    thread.start()
    wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
    pids = [int(pid) for pid in file.read_text().split()]
    pool.close()
    thread.join(10)
    assert outcomes == [Outcome("sandbox", details="the grader is closed")]
    assert pool.run(request()) == Outcome("sandbox", details="the grader is closed")
    wait_until(lambda: not any(map(is_alive, pids)))


@linux_only
@pytest.mark.parametrize("during_a_sample", [False, True])
def test_workers_end_when_the_engine_is_killed(during_a_sample, tmp_path):
    file = tmp_path / "pids"
    script = f"""
import json, time
from rft.graders.sandbox import Limits, Sandbox
source = '''
import os, time
def grade(sample, item):
    open({str(file)!r}, "w").write(f"{{os.getppid()}} {{os.getpid()}}")
    time.sleep(100 if {during_a_sample} else 0)
    return 1.0
'''
pool = Sandbox(source, Limits(100, 512), "unsafe-local")  # kept: without it the workers would see their pipe close
pool.run(b'{{"sample": {{}}, "item": {{}}}}')
time.sleep(100)
"""
    engine = subprocess.Popen([sys.executable, "-c", script])
    wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
    pids = [int(pid) for pid in file.read_text().split()]
    assert is_alive(pids[0])
    scratch = Path(f"/proc/{pids[0]}/cwd").resolve()
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    wait_until(lambda: not any(map(is_alive, pids)))
    assert not scratch.exists()
