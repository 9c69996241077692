"""The monty sandbox: the rewards of the other sandboxes, a fresh interpreter for each sample, every
limit held, and nothing of the host within reach."""

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml

from rft.errors import GraderError, MachineError
from rft.graders import GradingSettings, Python, open_grader
from rft.graders.monty import MontySandbox, monty_problem
from rft.graders.sandbox import Limits, Outcome

needs_monty = pytest.mark.skipif(monty_problem() is not None, reason=str(monty_problem()))
CONFIGS = Path(__file__).parents[3] / "configs"
CLOSED = Outcome("sandbox", details="the grader is closed")


def request(output_text="", **item):
    return json.dumps({"sample": {"output_text": output_text}, "item": item}).encode()


def run(body, top="", timeout_seconds=20.0, memory_mb=128, output_text="", **item):
    """The outcome of one sample, and how many seconds it took; the body begins in line 3."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    sandbox = MontySandbox(
        f"{top}\ndef grade(sample, item):\n{lines}", Limits(timeout_seconds, memory_mb)
    )
    try:
        started = time.monotonic()
        return sandbox.run(request(output_text, **item)), time.monotonic() - started
    finally:
        sandbox.close()


def in_grade(line, error, number=3):
    """The details of an exception raised in a line of grade."""
    place = f'  File "grader.py", line {number}, in grade\n    {line}\n'
    return f"Traceback (most recent call last):\n{place}{error}\n"


@needs_monty
@pytest.mark.parametrize(
    ("body", "reward"),
    [
        ("return 0.25", 0.25),
        ("return 1", 1.0),
        ("return True", 1.0),
        ("return -3", -3.0),
        ("return 0.1 + 0.2", 0.30000000000000004),
        ("return 5e-324", 5e-324),
        ("return 1.7976931348623157e308", 1.7976931348623157e308),
        ("from decimal import Decimal\nreturn Decimal('0.25')", 0.25),
        ("class Half:\n    def __float__(self): return 0.5\nreturn Half()", 0.5),
        ("import json\nreturn json.loads('{\"score\": 0.5}')['score']", 0.5),
        ("import re\nreturn len(re.findall(r'\\d+', sample['output_text']))", 2.0),
        ("from datetime import date\nreturn (date(2024, 3, 1) - date(2024, 2, 1)).days", 29.0),
        ("import time\ntime.sleep(1000)\nreturn 0.5", 0.5),
    ],
)
def test_anything_that_converts_to_a_finite_float_is_the_reward(body, reward):
    outcome, seconds = run(body, output_text="4 and 20")
    assert outcome == Outcome("reward", reward)
    assert seconds < 5


@needs_monty
@pytest.mark.parametrize(
    ("body", "details"),
    [
        ("return None", "grade returned None (NoneType); it must return a finite number"),
        ("return '1.0'", "grade returned '1.0' (str); it must return a finite number"),
        ("return b'1'", "grade returned b'1' (bytes); it must return a finite number"),
        ("return float('nan')", "grade returned nan (float); it must return a finite number"),
        ("return 1e400", "grade returned inf (float); it must return a finite number"),
        ("return [1.0]", "grade returned [1.0] (list); it must return a finite number"),
        ("return 1j", "grade returned 1j (complex); it must return a finite number"),
        (
            "return 'x' * 10**6",
            "grade returned '" + "x" * 79 + " (str); it must return a finite number",
        ),
        ("return 10**400", "OverflowError: int too large to convert to float\n"),
        ("return item['none']", in_grade("return item['none']", "KeyError: none")),
        ("raise ValueError('odd')", in_grade("raise ValueError('odd')", "ValueError: odd")),
        ("assert 1 == 2, 'no'", in_grade("assert 1 == 2, 'no'", "AssertionError: no")),
        ("raise TimeoutError('x')", in_grade("raise TimeoutError('x')", "TimeoutError: x")),
        ("\n\nreturn 1 / 0", in_grade("return 1 / 0", "ZeroDivisionError: division by zero", 5)),
        (
            "exec('\\n1 / 0')",
            "Traceback (most recent call last):\n"
            "  File \"grader.py\", line 3, in grade\n    exec('\\n1 / 0')\n"
            '  File "<string>", line 2, in <module>\nZeroDivisionError: division by zero\n',
        ),
        (
            "print('seen')\nraise ValueError('odd')",
            in_grade("raise ValueError('odd')", "ValueError: odd", 4) + "\noutput:\nseen",
        ),
        (
            "global float\nfloat = lambda value: Odd()\nclass Odd:\n"
            "    def __sub__(self, other): return 0\n"
            "    def __repr__(self): return 'nothing'\nreturn 1",
            "grade's process sent something that is not a result",
        ),
        (
            "global float\nfloat = lambda value: Odd()\nclass Odd:\n"
            "    def __sub__(self, other): return 0\n"
            "    def __repr__(self): return 'nan'\nreturn 1",
            "grade's process sent something that is not a result",
        ),
    ],
)
def test_a_failure_of_grade_is_the_samples_fault_and_says_where(body, details):
    assert run(body)[0] == Outcome("fault", details=details)


@needs_monty
def test_details_keep_the_last_frames_and_the_last_of_message_and_output():
    outcome, _ = run("print('a' * 50_000 + 'end')\nreturn grade(sample, item)")
    assert outcome.kind == "fault"
    head, _, printed = outcome.details.partition("\noutput:\n")
    assert head.count('File "grader.py", line 4, in grade') == 20
    assert head.endswith("RecursionError: maximum recursion depth exceeded\n")
    assert printed == "a" * (4096 - len("end\n")) + "end"
    outcome, _ = run("raise ValueError('b' * 10**6)")
    assert outcome.details == "b" * 4095 + "\n"


@needs_monty
@pytest.mark.parametrize(
    ("source", "details"),
    [
        (
            "import re\nre.compile('(')\ndef grade(sample, item): return 1",
            "Traceback (most recent call last):\n"
            "  File \"grader.py\", line 2, in <module>\n    re.compile('(')\n"
            "re.PatternError: Parsing error at position 1: "
            "Opening parenthesis without closing parenthesis\n",
        ),
        ("x = 1", "NameError: name 'grade' is not defined\n"),
        ("while True: pass\ndef grade(sample, item): return 1", "timeout after 0.5 s"),
        ("x = 'a' * 10**10\ndef grade(sample, item): return 1", "memory limit 128 MB"),
    ],
)
def test_a_source_that_fails_before_any_sample_is_run_once(source, details):
    sandbox = MontySandbox(source, Limits(0.5, 128))
    first = sandbox.run(request())
    started = time.monotonic()
    second = sandbox.run(request())
    sandbox.close()
    assert first == second == Outcome("source", details=details)
    assert time.monotonic() - started < 0.4


@needs_monty
def test_a_source_that_fails_before_this_sample_alone_is_not_the_samples_fault():
    top = "import random\nif random.random() < 0.5: raise ValueError('odd')"
    outcomes = {run("return 1", top=top, number=number)[0].kind for number in range(20)}
    assert outcomes == {"reward", "source"}


@needs_monty
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
        "import time\nwhile True: time.sleep(1)",
        "while True: print('x' * 10_000)",
        "return sum(range(10**12))",
        "import itertools\nreturn sum(1 for _ in itertools.product(range(100), repeat=10))",
        "import math\nreturn math.comb(10**7, 5 * 10**6)",
        # Native code that never looks at the clock: the process is killed.
        "import math\nreturn math.gcd(7**1_000_000, 3**1_000_000)",
    ],
)
def test_the_time_limit_holds_within_a_second(body):
    outcome, seconds = run(body, timeout_seconds=0.5)
    assert outcome.kind == "timeout" and outcome.details.startswith("timeout after 0.5 s")
    assert 0.4 < seconds < 1.5


@needs_monty
@pytest.mark.parametrize(
    "body",
    [
        "x = 'a'\nwhile True: x += x",
        "x = []\nwhile True: x.append('a' * 10**6)",
        "return 'a' * 10**10",
        "return 10**10**9",
        "return 1 << 10**10",
        "return '{:>10000000000}'.format(1)",
        "return ('a' * 10**5).replace('a', 'b' * 10**5)",
        "return [[i] for i in range(10**9)]",
        "return ','.join(['a' * 10**6] * 10**5)",
        "raise MemoryError",
    ],
)
def test_the_memory_limit_holds(body):
    outcome, seconds = run(body, memory_mb=32)
    assert outcome == Outcome("memory", details="memory limit 32 MB")
    assert seconds < 5


@needs_monty
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import re\nreturn re.match('(a+)+$', 'a' * 40 + 'b') is None", None),
        ("import re\nreturn re.match('(a|aa)+$', 'a' * 100 + 'b') is None", None),
        (
            "import re\nre.match('(.*)(.*)(.*)(.*)(.*)(.*)x\\\\1', 'a' * 5000)",
            "Max limit for backtracking count exceeded",
        ),
        ("grade(sample, item)", "RecursionError"),
        ("x = []\nfor _ in range(10**5): x = [x]\nhash(str(x))\nreturn 1", None),
        ("x = ()\nfor _ in range(10**5): x = (x,)\nhash(x)", "RecursionError"),
        ("import json\njson.loads('[' * 10**6)", "recursion limit exceeded"),
        ("eval('(' * 100_000)", "SyntaxError: Source is too deeply nested"),
        ("str(10**100_000)", "Exceeds the limit (4300 digits)"),
        ("while True:\n    try: nothing\n    except NameError: pass", "suspension limit 1000"),
    ],
)
def test_bombs_end_soon(body, said):
    outcome, seconds = run(body)
    if said is None:
        assert outcome == Outcome("reward", 1.0)
    else:
        assert outcome.kind == "fault" and said in outcome.details
    assert seconds < 5


ESCAPES = [
    ("open('{file}').read()", "PermissionError: Permission denied"),
    ("open('{file}', 'w').write('x')", "PermissionError: Permission denied"),
    ("open(0).read()", "TypeError"),
    ("from pathlib import Path\nPath('{file}').read_text()", "PermissionError"),
    ("from pathlib import Path\nPath('{file}').write_text('x')", "PermissionError"),
    ("import os\nos.listdir('/')", "PermissionError"),
    ("import os\nos.remove('{file}')", "PermissionError"),
    ("import os\nos.rename('{file}', '/tmp/x')", "PermissionError"),
    ("import os\nos.makedirs('{file}.d')", "PermissionError"),
    ("import os\nos.stat('{file}')", "PermissionError"),
    ("import posixpath\nposixpath.exists('{file}')", "PermissionError"),
    ("import os\nos.environ['PATH']", "'os.environ' is not supported"),
    ("import os\nos.getenv('PATH')", "'os.getenv' is not supported"),
    ("import os\nos.system('id')", "module 'os' has no attribute 'system'"),
    ("import os\nos.fork()", "module 'os' has no attribute 'fork'"),
    ("import os\nos.kill(1, 9)", "module 'os' has no attribute 'kill'"),
    ("import os\nos._exit(0)", "module 'os' has no attribute '_exit'"),
    ("import os\nos.symlink('/', '{file}.l')", "module 'os' has no attribute 'symlink'"),
    ("import sys\nsys._getframe()", "module 'sys' has no attribute '_getframe'"),
    ("import sys\nsys.modules", "module 'sys' has no attribute 'modules'"),
    ("import sys\nsys.stdout.fileno()", "AttributeError"),
    ("import socket", "No module named 'socket'"),
    ("import ctypes", "No module named 'ctypes'"),
    ("import subprocess", "No module named 'subprocess'"),
    ("import importlib", "No module named 'importlib'"),
    ("import numpy", "No module named 'numpy'"),
    ("import rft", "No module named 'rft'"),
    ("__import__('os')", "name '__import__' is not defined"),
    ("eval('__import__')('os')", "name '__import__' is not defined"),
    ("exec('import os; os.system(\"id\")')", "module 'os' has no attribute 'system'"),
    ("__builtins__", "name '__builtins__' is not defined"),
    ("().__class__", "'tuple' object has no attribute '__class__'"),
    ("object.__subclasses__()", "type object 'object' has no attribute '__subclasses__'"),
    ("grade.__globals__", "'function' object has no attribute '__globals__'"),
    ("grade.__code__", "'function' object has no attribute '__code__'"),
    ("'{0.__class__}'.format(1)", "'int' object has no attribute '__class__'"),
    ("getattr(1, '__class__')", "'int' object has no attribute '__class__'"),
]


@needs_monty
@pytest.mark.parametrize(("body", "said"), ESCAPES)
def test_no_way_leads_to_the_host(body, said, tmp_path):
    file = tmp_path / "secret"
    file.write_text("before")
    outcome, _ = run(body.replace("{file}", str(file)) + "\nreturn 1")
    assert outcome.kind == "fault" and said in outcome.details
    assert os.listdir(tmp_path) == ["secret"] and file.read_text() == "before"


@needs_monty
def test_nothing_that_a_sample_leaves_reaches_the_next():
    source = """
import random
LEFT = []
def grade(sample, item):
    global grade, MODULE
    before = len(LEFT) + 10 * ("mark" in item) + 100 * (MODULE is None)
    LEFT.append(1)
    item["mark"] = 1
    grade = MODULE = None
    return before
MODULE = random
"""
    sandbox = MontySandbox(source, Limits(20, 128))
    assert [sandbox.run(request()) for _ in range(5)] == [Outcome("reward", 0.0)] * 5
    sandbox.close()


@needs_monty
def test_random_numbers_and_set_order_depend_on_the_request_alone():
    source = """
import random
def grade(sample, item):
    order = "".join(set("the order of a set of letters"))
    return random.random() + random.Random().random() + hash(order) % 1000
"""
    rewards = {}
    for _ in range(2):
        sandbox = MontySandbox(source, Limits(20, 128))
        for number in (1, 2, 1):
            rewards.setdefault(number, set()).add(sandbox.run(request(number=number)).reward)
        sandbox.close()
    assert len(rewards[1]) == len(rewards[2]) == 1 and rewards[1] != rewards[2]


@needs_monty
def test_a_lone_surrogate_becomes_the_replacement_character():
    body = "return [ord(c) for c in sample['output_text']] == item['codes']"
    codes = [0xFFFD, 0x1F600, ord("\\"), ord("u"), ord("d")]
    text = "\ud800\U0001f600\\ud"
    assert run(body, output_text=text, codes=codes)[0] == Outcome("reward", 1.0)


@needs_monty
def test_calls_at_the_same_time_each_get_their_own_answer():
    source = "def grade(sample, item):\n    return sum(range(item['n']))"
    sandbox = MontySandbox(source, Limits(20, 128))
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda n: sandbox.run(request(n=n)), range(1000, 1200)))
    sandbox.close()
    assert [outcome.reward for outcome in outcomes] == [n * (n - 1) / 2 for n in range(1000, 1200)]


def interpreters():
    return [process for process in psutil.Process().children() if process.name() == "monty"]


@needs_monty
def test_faulty_samples_leave_no_process_and_no_descriptor_behind():
    source = """
def grade(sample, item):
    how = item["how"]
    if how == 0: raise ValueError("odd")
    if how == 1: return "text"
    if how == 2: return 10**10**9
    if how == 3: return grade(sample, item)
    return 1
"""
    before = interpreters()
    sandbox = MontySandbox(source, Limits(20, 32))
    sandbox.run(request(how=4))
    num_open = len(psutil.Process().open_files()) + psutil.Process().num_fds()
    kinds = [sandbox.run(request(how=n % 5)).kind for n in range(500)]
    assert kinds == ["fault", "fault", "memory", "fault", "reward"] * 100
    assert len(interpreters()) == len(before) + 1
    assert len(psutil.Process().open_files()) + psutil.Process().num_fds() == num_open
    sandbox.close()
    assert gone_to(before)


def gone_to(before):
    """Whether only these interpreters are left, after a moment."""
    deadline = time.monotonic() + 5
    while interpreters() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    return interpreters() == before


@needs_monty
@pytest.mark.parametrize("top", ["", "while True: pass"])
def test_close_ends_a_run_at_work(top):
    before = interpreters()
    sandbox = MontySandbox(
        f"{top}\ndef grade(sample, item):\n    while True: pass", Limits(100, 128)
    )
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(sandbox.run(request())))
    thread.start()
    while not any(process.cpu_times().user > 0.2 for process in interpreters()):
        time.sleep(0.01)
    sandbox.close()
    thread.join(2)
    assert outcomes == [CLOSED] and sandbox.run(request()) == CLOSED
    assert gone_to(before)


@needs_monty
def test_a_killed_interpreter_costs_its_own_sample_only():
    source = "def grade(sample, item):\n    while item['waits']: pass\n    return 1"
    sandbox = MontySandbox(source, Limits(100, 128))
    sandbox.run(request(waits=False))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(sandbox.run(request(waits=True))))
    thread.start()
    (interpreter,) = interpreters()
    while interpreter.cpu_times().user < 0.2:
        time.sleep(0.01)
    interpreter.kill()
    thread.join(5)
    assert outcomes[0].kind == "sandbox" and "SIGKILL" in outcomes[0].details
    assert sandbox.run(request(waits=False)) == Outcome("reward", 1.0)
    sandbox.close()


@needs_monty
def test_a_closed_grader_that_never_ran_says_so():
    sandbox = MontySandbox("def grade(sample, item): return 1", Limits(1, 128))
    sandbox.close()
    assert sandbox.run(request()) == CLOSED


def python_graders(config):
    document = yaml.safe_load((CONFIGS / config / "job.yaml").read_text())
    grader = document["method"]["reinforcement"]["grader"]
    parts = [grader, *grader.get("graders", {}).values()]
    return [Python(**part) for part in parts if part["type"] == "python"]


@needs_monty
@pytest.mark.parametrize(
    ("config", "item", "rewards"),
    [
        ("capitals", {"capital": "Paris"}, {" paris\n": 1.0, "It is Paris": 0.0, "": 0.0}),
        ("arithmetic", {"sum": 12}, {"12": 1.0, "5 + 7 = 12": 0.5, "112": 0.0}),
        ("smoke", {}, {"": 1.0, "x" * 12: 0.75, "x" * 60: 0.0}),
        (
            "gsm8k",
            {"answer": "so #### 1,234"},
            {"#### 1234.0": 1.0, "#### -1234": 0.0, "1234": 0.0},
        ),
    ],
)
def test_the_graders_of_the_worked_examples_run(config, item, rewards):
    (document,) = python_graders(config)
    with open_grader(document, GradingSettings(timeout_seconds=5, sandbox="monty")) as grader:
        grades = {text: grader.grade({"output_text": text}, item) for text in rewards}
    assert {text: grade.reward for text, grade in grades.items()} == rewards
    assert all(grade.errors == {} for grade in grades.values())


@needs_monty
def test_a_source_that_monty_cannot_run_is_refused_when_it_opens():
    document = Python(type="python", source="import numpy\ndef grade(sample, item): return 1")
    with pytest.raises(GraderError) as caught:
        open_grader(document, GradingSettings(sandbox="monty"))
    assert str(caught.value) == (
        "line 1: monty has no numpy (python_grader.source) → write it without, or set "
        "engine.grading.python.sandbox to kernel (Linux), or to unsafe-local, which confines nothing"
    )


def test_a_missing_package_is_a_missing_part_of_the_machine(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    document = Python(type="python", source="def grade(sample, item): return 1")
    with pytest.raises(MachineError) as caught:
        open_grader(document, GradingSettings(sandbox="monty"))
    (problem,) = caught.value.problems
    assert problem.what == (
        "the sandbox monty is not available here: the package pydantic-monty is not installed; "
        'pip install "rft[monty]"'
    )
    assert problem.where == "engine.grading.python.sandbox"


@needs_monty
def test_an_interpreter_that_does_not_start_is_told(monkeypatch):
    monkeypatch.setenv("MONTY_BIN", "/nonexistent/monty")
    problem = monty_problem()
    assert problem is not None and problem.startswith(
        "pydantic-monty does not work: RuntimeError: "
    )
    sandbox = MontySandbox("def grade(sample, item): return 1", Limits(1, 128))
    outcome = sandbox.run(request())
    assert outcome.kind == "sandbox" and "/nonexistent/monty" in outcome.details
