"""What monty cannot run is found before any sample, each thing once, with its first line."""

import pytest

from rft.graders.monty import monty_problem
from rft.graders.monty_source import monty_source_problems

pytestmark = pytest.mark.skipif(monty_problem() is not None, reason=str(monty_problem()))


def found(source):
    return [problem.what for problem in monty_source_problems(source, "grader.source")]


@pytest.mark.parametrize(
    ("source", "whats"),
    [
        ("import numpy as np\nimport numpy.linalg", ["line 1: monty has no numpy"]),
        ("from sklearn.metrics import f1_score", ["line 1: monty has no sklearn.metrics"]),
        (
            "from collections import Counter, OrderedDict\ndef f():\n    import string",
            [
                "line 1: monty has no collections.OrderedDict",
                "line 3: monty has no string",
            ],
        ),
        ("from rft_sandbox import run_code", ["line 1: monty has no rft_sandbox"]),
        (
            "import re, math as m\ndef f():\n    return re.subn('a', 'b', m.no), re.sub('a', 'b', '')",
            ["line 3: monty has no re.subn", "line 3: monty has no m.no"],
        ),
        (
            "def f(x):\n    return callable(x) and sorted(x, key=str.lower)",
            ["line 2: monty has no callable", "line 2: monty has no str.lower"],
        ),
        ("x = lambda: str.maketrans('a', 'b')", ["line 1: monty has no str.maketrans"]),
        (
            "class A(Exception):\n    pass\n\n@sorted\ndef f():\n    yield 1\ndef g(x):\n    del x",
            [
                "line 1: monty does not support class inheritance and metaclasses",
                "line 6: monty does not support yield expressions",
                "line 8: monty does not support the 'del' statement",
            ],
        ),
        (
            "import numpy\ndef f():\n    yield 1",
            ["line 1: monty has no numpy", "line 3: monty does not support yield expressions"],
        ),
        (
            "from math import *",
            ["line 1: Wildcard imports (`from ... import *`) are not supported"],
        ),
        ("x = 1\ny = x / 0", ["line 2: it fails in monty: ZeroDivisionError: division by zero"]),
        (
            "raise NotImplementedError('so')",
            ["line 1: it fails in monty: NotImplementedError: so"],
        ),
        (
            "while True: pass",
            ["it takes more than 3 s before any sample, and monty runs it for every sample"],
        ),
    ],
)
def test_what_monty_lacks_is_told_with_its_line(source, whats):
    assert sorted(found(source)) == sorted(whats)


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations\nimport os.path\nos.path.join('a', 'b')",
        "try:\n    import numpy as np\nexcept ImportError:\n    np = None",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas",
        "def f(x: bytearray, y: typing.AnyStr) -> memoryview:\n    z: bytearray = 1",
        "def callable(x):\n    return x\nw = callable(1)",
        "def f(re):\n    return re.subn\nimport re",
        "from re import sub as vars\nvars('a', 'b', 'a')",
        "x = dict.fromkeys('ab'), bytes.fromhex('61'), int.__name__",
        "import json\ndef f():\n    raise ValueError(json.dumps({}))",
        "def f():\n    return 1 / 0",
        "print('said to nobody')",
        "this is no Python",
    ],
)
def test_what_monty_can_run_and_what_python_itself_refuses_is_no_problem_here(source, capfd):
    assert found(source) == []
    assert capfd.readouterr() == ("", "")


def test_a_problem_names_its_place_and_the_ways_out():
    (problem,) = monty_source_problems("import numpy", "grader.source")
    assert problem.where == "grader.source"
    assert problem.remedy == (
        "write it without, or set engine.grading.python.sandbox to kernel (Linux), or to "
        "unsafe-local, which confines nothing"
    )
