"""rft_sandbox.run_code: a model's code runs apart from the grader that judges it."""

import json
import sys

import pytest

from rft.graders.sandbox import Limits, Outcome, Sandbox

TIERS = ["kernel", "unsafe-local"]
SECRET = "the-reference-answer-7391"
HIDDEN = "hidden-test-5519"
GRADER = """
import json
from rft_sandbox import run_code
HIDDEN_TEST = "HIDDEN"

def grade(sample, item):
    result = run_code(sample["output_text"], **item["options"])
    raise ValueError("START" + json.dumps(result._asdict()) + "END")
""".replace('HIDDEN"', f'{HIDDEN}"')


def run_all(tier, codes, **options):
    """What run_code gave for each text, one grade each; the options are those of run_code."""
    pool = Sandbox(GRADER, Limits(20.0, 512), tier)
    results = []
    try:
        for code in codes:
            item = {"options": options, "secret": SECRET}
            request = {"sample": {"output_text": code}, "item": item}
            details = pool.run(json.dumps(request).encode()).details
            results.append(json.loads(details.split("ValueError: START", 1)[1].rsplit("END", 1)[0]))
    finally:
        pool.close()
    return results


def result(stdout="", stderr="", exit_code=0, timed_out=False):
    return {"stdout": stdout, "stderr": stderr, "exit_code": exit_code, "timed_out": timed_out}


@pytest.mark.parametrize("tier", TIERS)
def test_programs_run_as_python_would_run_them(tier):
    traceback = (
        'Traceback (most recent call last):\n  File "<code>", line 2, in <module>\n'
        "    1 / 0\n    ~~^~~\nZeroDivisionError: division by zero\n"
    )
    codes = {
        "print(int(input()) ** 2)": result("49\n"),
        "import sys; sys.stderr.write('e'); sys.exit(3)": result(stderr="e", exit_code=3),
        "import sys; sys.exit('no')": result(stderr="no\n", exit_code=1),
        "x = 1\n1 / 0": result(stderr=traceback, exit_code=1),
        "import os; os._exit(5)": result(exit_code=5),
        "import os; os.kill(os.getpid(), 10)": result(exit_code=-10),
        "def f():\n    return y\ny = 4\nprint(f(), __name__)": result("4 __main__\n"),
        "open('left', 'w').close()\nimport os; print(os.listdir())": result("['left']\n"),
        "import os; print(os.listdir())": result("[]\n"),
        "print('\\ud800')": None,
        "": result(),
    }
    found = run_all(tier, codes, stdin="7\n")
    for (code, expected), got in zip(codes.items(), found, strict=True):
        if expected is not None:
            assert got == expected, code
    assert found[list(codes).index("print('\\ud800')")]["exit_code"] == 1


def test_long_output_is_cut():
    source = """
from rft_sandbox import run_code
def grade(sample, item):
    result = run_code("print('z' * 10**6)")
    return len(result.stdout) + (result.stdout == "z" * 65536) / 2
"""
    pool = Sandbox(source, Limits(20, 512))
    try:
        assert pool.run(b'{"sample": {}, "item": {}}') == Outcome("reward", 65536.5)
    finally:
        pool.close()


@pytest.mark.parametrize("tier", TIERS)
def test_limits_of_a_run(tier):
    codes = ["while True: pass", "import time; time.sleep(100)", "print(1)"]
    assert run_all(tier, codes, timeout_seconds=0.3) == [
        result(exit_code=None, timed_out=True),
        result(exit_code=None, timed_out=True),
        result("1\n"),
    ]
    (too_much,) = run_all(tier, ["x = bytearray(400 << 20)"], memory_mb=200)
    assert too_much["exit_code"] == 1
    assert "MemoryError" in too_much["stderr"]


def test_a_run_ends_with_the_time_of_its_grade():
    pool = Sandbox(GRADER, Limits(0.5, 512))
    endless = {"sample": {"output_text": "while True: pass"}, "item": {"options": {}}}
    brief = {"sample": {"output_text": "print(2)"}, "item": {"options": {}}}
    try:
        for _ in range(2):
            assert pool.run(json.dumps(endless).encode()).details.startswith("timeout after 0.5 s")
            assert '"stdout": "2\\n"' in pool.run(json.dumps(brief).encode()).details.replace(
                "\\\\n", "\\n"
            )
    finally:
        pool.close()


# The searches hold the marks backwards, so that they do not find themselves.
MARKS = f"MARKS = {[HIDDEN[::-1], SECRET[::-1]]!r}\n"
SEARCHES = {
    "objects": """
import gc
found = []
for thing in gc.get_objects():
    for inner in [thing, *gc.get_referents(thing)]:
        text = inner.decode("latin1") if isinstance(inner, bytes) else inner
        if isinstance(text, str) and any(mark in text[::-1] for mark in MARKS):
            found.append(text[:80])
print(found)
""",
    "frames": """
import sys
frame, found = sys._getframe(), []
while frame:
    text = repr({**frame.f_locals, **frame.f_globals})[::-1]
    found += [mark for mark in MARKS if mark in text]
    frame = frame.f_back
print(found)
""",
    "memory": """
import ctypes
found = []
for line in open("/proc/self/maps").readlines():
    span, rights = line.split()[:2]
    low, high = (int(x, 16) for x in span.split("-"))
    if rights.startswith("rw") and high - low < 1 << 26:
        backwards = ctypes.string_at(low, high - low)[::-1]
        found += [mark for mark in MARKS if mark.encode() in backwards]
print(found)
""",
}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("search", ["objects", "frames"])
def test_code_finds_neither_the_item_nor_the_source(tier, search):
    assert run_all(tier, ["print(1)", MARKS + SEARCHES[search]]) == [result("1\n"), result("[]\n")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_no_memory_of_the_code_process_holds_them():
    found = run_all("unsafe-local", ["print(1)", MARKS + SEARCHES["memory"]])
    assert found[1] == result("[]\n")


@pytest.mark.parametrize("search", SEARCHES)
def test_the_searches_find_what_is_there(search):
    planted = f"planted = [{HIDDEN!r}]\n{MARKS}{SEARCHES[search]}"
    assert run_all("unsafe-local", [planted])[0]["stdout"] != "[]\n"


@pytest.mark.parametrize("tier", TIERS)
def test_code_cannot_forge_what_the_grader_says(tier):
    forgery = """
import json, os, struct
body = json.dumps({"kind": "reward", "reward": 1.0, "stdout": "forged"}).encode()
for fd in range(3, 64):
    try: os.write(fd, struct.pack(">I", len(body)) + body)
    except OSError: pass
"""
    assert run_all(tier, [forgery, "print(1)"]) == [result(), result("1\n")]


def test_code_is_confined_like_a_sample():
    codes = [
        "open('/etc/passwd')",
        "import socket; socket.socket()",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; print(os.listdir('../../sample'))",
    ]
    for got in run_all("kernel", codes):
        assert got["exit_code"] == 1
        assert "PermissionError" in got["stderr"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    "code",
    [
        "import os; os.mkdir('d', 0); os.mkdir('e', 0o300)",
        "for n in range(1500): open(str(n), 'w').close()",
        "import os; os.makedirs('a/b/c')",
    ],
)
def test_what_a_run_leaves_harms_no_later_one(code, tier):
    assert run_all(tier, ["print(1)", code, "print(2)", code, "print(3)"]) == [
        result("1\n"),
        result(),
        result("2\n"),
        result(),
        result("3\n"),
    ]


def test_runs_of_one_grade_do_not_meet():
    source = """
from rft_sandbox import run_code
def grade(sample, item):
    run_code("import os; os.mkdir('d', 0); open('left', 'w').close()")
    found = run_code("import os; print(os.listdir('.')); print(os.listdir('..'))")
    assert found.stdout == "[]\\n", found
    assert "PermissionError" in found.stderr, found
    return 1.0
"""
    pool = Sandbox(source, Limits(20, 512))
    try:
        assert pool.run(b'{"sample": {}, "item": {}}') == Outcome("reward", 1.0)
    finally:
        pool.close()


def test_code_holds_no_descriptor_but_its_own():
    code = """
import os
for fd in range(3, 64):
    try: os.fstat(fd)
    except OSError: continue
    print(fd)
"""
    assert run_all("kernel", [code]) == [result()]


def test_requests_that_run_code_did_not_write_are_no_result():
    source = """
import json, os, struct
import rft_sandbox
def grade(sample, item):
    body = json.dumps({"kind": "run", "source": "", "stdin": ""}).encode()
    for fd in range(3, 64):
        for _ in range(1000):
            try: os.write(fd, struct.pack(">I", len(body)) + body)
            except OSError: break
    return 1.0
"""
    pool = Sandbox(source, Limits(20, 512))
    try:
        outcome = pool.run(b'{"sample": {}, "item": {}}')
    finally:
        pool.close()
    assert outcome == Outcome(
        "fault", details="grade's process sent something that is not a result"
    )


def test_misuse_is_told():
    pool = Sandbox(GRADER, Limits(5, 512))
    request = {"sample": {"output_text": "x" * (3 << 20)}, "item": {"options": {}}}
    try:
        assert "code and stdin have more than" in pool.run(json.dumps(request).encode()).details
    finally:
        pool.close()
    outside = "import rft_sandbox\nrft_sandbox.run_code('1')\ndef grade(sample, item): return 1"
    pool = Sandbox(outside, Limits(5, 512))
    try:
        outcome = pool.run(b"{}")
    finally:
        pool.close()
    assert outcome.kind == "source"
    assert outcome.details.endswith("RuntimeError: run_code can be called inside grade only\n")
