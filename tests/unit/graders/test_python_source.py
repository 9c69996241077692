"""What is told about a source before it ever runs."""

import sys
from pathlib import Path

import pydantic
import pytest

from rft.errors import GraderError
from rft.graders import GradingSettings, Python
from rft.graders.python_source import (
    MAX_SOURCE_BYTES,
    PRODUCT_PACKAGES,
    is_installed,
    reading_lines,
    source_problems,
    source_warnings,
    unreadable_problems,
)

GRADE = "def grade(sample, item): return 1.0\n"


def told(source):
    return [(problem.what, problem.remedy) for problem in source_problems(source, "g.source")]


def what(source):
    return [what for what, _ in told(source)]


@pytest.mark.parametrize(
    "source",
    [
        GRADE,
        "grade = lambda sample, item: 1.0",
        "def grade(*arguments): return 1.0",
        "def grade(sample, item, weight=2, *, scale=1): return 1.0",
        "def grade(item, sample): return 1.0",
        "from math import hypot as grade",
        "if True:\n    def grade(sample, item): return 1.0",
        "class grade:\n    def __new__(cls, sample, item): return 1.0",
        "# coding: latin-1\n" + GRADE,
        GRADE.replace("\n", "\r\n"),
        GRADE.ljust(MAX_SOURCE_BYTES, "#"),
    ],
)
def test_a_source_that_can_run(source):
    assert source_problems(source, "g.source") == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "the source defines no function grade at its top level"),
        ("def Grade(sample, item): return 1", "the source defines no function grade at its top"),
        ("class A:\n    def grade(self, item): pass", "the source defines no function grade"),
        ("def f():\n    def grade(sample, item): pass", "the source defines no function grade"),
        (
            "def grade(sample): return 1",
            "line 1: grade(sample) cannot be called with (sample, item)",
        ),
        (
            "\ndef grade(a, b, c): pass",
            "line 2: grade(a, b, c) cannot be called with (sample, item)",
        ),
        ("def grade(a, b, *, c): pass", "line 1: grade(a, b, *, c) cannot be called"),
        ("async def grade(sample, item): pass", "line 1: grade is an async function"),
        ("def grade(sample, item) return 1", "line 1, column 25: expected ':': 'def grade(sample"),
        ("x = 1\n  y = 2", "line 2, column 2: unexpected indent: 'y = 2'"),
        ("x = 1\r\r\ny = = 2", "line 3, column 5: invalid syntax: 'y = = 2'"),
        ("return 1", "line 1, column 1: 'return' outside function: 'return 1'"),
        ("x = '\n", 'line 1, column 5: unterminated string literal (detected at line 1): "x = \'"'),
        ("print 'x'", "line 1, column 1: Missing parentheses in call to 'print'. Did you mean"),
        ("x = 'a\0b'", "the source cannot be compiled: source code string cannot contain null"),
        ("x = '\ud800'", "the source cannot be compiled: 'utf-8' codec can't encode character"),
        ("-" * 100_000 + "1", "the source cannot be compiled"),
        ("x = " + "1+" * 50_000 + "1", "the source cannot be compiled"),
        (GRADE + "#" * MAX_SOURCE_BYTES, "the source has 256036 bytes"),
        ("#" + "ü" * (MAX_SOURCE_BYTES // 2), "the source has 256001 bytes"),
    ],
)
def test_a_source_that_cannot_run(source, expected):
    ((said, remedy),) = told(source)
    assert said.startswith(expected)
    assert remedy


@pytest.mark.parametrize(
    ("statement", "package"),
    [
        ("import no_such", "no_such"),
        ("import no_such.inner as x", "no_such"),
        ("from no_such.inner import x", "no_such"),
        ("import math, no_such", "no_such"),
        ("def f():\n    import no_such", "no_such"),
        ("class A:\n    from no_such import x", "no_such"),
        ("try:\n    import no_such\nexcept ValueError:\n    pass", "no_such"),
        ("try:\n    pass\nexcept ImportError:\n    import no_such", "no_such"),
        ("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import no_such", "no_such"),
        ("if not TYPE_CHECKING:\n    pass\nimport no_such", "no_such"),
        ("import sklearn_", "sklearn_"),
    ],
)
def test_a_missing_package_is_told_with_its_line(statement, package):
    line = 1 + statement[: statement.index("no_such" if "no_such" in statement else "skl")].count(
        "\n"
    )
    assert told(statement + "\n" + GRADE) == [
        (f"line {line}: the package {package} is not installed", f"pip install {package}")
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "import math, os.path, sys, tkinter, winreg",
        "import numpy.linalg, pydantic, yaml, rapidfuzz.fuzz",
        "from __future__ import annotations",
        "import __main__",
        "import rft_sandbox",
        "from rft_sandbox import run_code",
        "try:\n    import no_such\nexcept ImportError:\n    no_such = None",
        "try:\n    import no_such\nexcept (ValueError, ModuleNotFoundError):\n    pass",
        "try:\n    import no_such\nexcept Exception:\n    pass",
        "try:\n    import no_such\nexcept builtins.ImportError:\n    pass",
        "try:\n    import no_such\nexcept:\n    pass",
        "try:\n    def f():\n        import no_such\nexcept* ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import no_such",
        "import typing\nif typing.TYPE_CHECKING:\n    import no_such",
        "__import__('no_such')",
    ],
)
def test_imports_that_do_not_fail_or_are_the_sources_own_affair(statement):
    assert told(statement + "\n" + GRADE) == []


def test_all_missing_packages_are_told_once_each_in_order():
    source = "import b_x, a_x\nfrom b_x import y\nfrom . import z\nfrom ..a import z\nimport c_x\n"
    assert what(source + "def grade(sample): pass") == [
        "line 6: grade(sample) cannot be called with (sample, item)",
        "line 1: the package b_x is not installed",
        "line 1: the package a_x is not installed",
        "line 3: `from . import z`: the source is one file, without a package",
        "line 4: `from ..a import z`: the source is one file, without a package",
        "line 5: the package c_x is not installed",
    ]


def test_a_module_of_the_current_folder_is_not_installed(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"module_{folder}.py").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "there"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "here"), str(tmp_path / "there")])
    assert not is_installed("module_here")
    assert not is_installed("module_there")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "installed")])
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "module_installed.py").write_text("")
    assert is_installed("module_installed")


def test_the_remedy_names_the_package_to_install():
    missing = [name for name in PRODUCT_PACKAGES if not is_installed(name)]
    if not missing:
        pytest.skip("all packages of the product are installed")
    source = "".join(f"import {name}\n" for name in missing) + "import cv2_, PIL.Image\n" + GRADE
    remedies = [remedy for _, remedy in told(source)]
    assert remedies[: len(missing)] == [
        f'pip install {PRODUCT_PACKAGES[name]}, or "rft[product-graders]" for all of them'
        for name in missing
    ]
    assert remedies[len(missing)] == "pip install cv2_"
    assert is_installed("PIL") or remedies[-1] == "pip install pillow"


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("exec(sample['output_text'])", "exec"),
        ("return eval(sample['output_text'], {})", "eval"),
        ("builtins.exec(code)", "builtins.exec"),
        ("x = [eval(part) for part in item]", "eval"),
        ("exec(*item)", "exec"),
    ],
)
def test_running_text_is_warned_of(line, call):
    assert source_warnings(f"import builtins\n\ndef grade(sample, item):\n    {line}") == [
        f"line 4: {call}(…) runs text inside grade: code that the model wrote can return any reward "
        "it likes there; run it with rft_sandbox.run_code"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "ast.literal_eval(x)",
        "frame.eval(x)",
        "model.eval()",
        "eval('1 + 1')",
        "exec",
        "syntax error",
    ],
)
def test_other_calls_are_not_warned_of(line):
    assert source_warnings(f"def grade(sample, item):\n    {line}") == []


def test_warnings_come_in_the_order_of_the_source():
    source = "def f(x):\n    return eval(x)\nexec(f('a'))\n"
    assert [warning[:7] for warning in source_warnings(source)] == ["line 2:", "line 3:"]


def test_packages_that_the_sandbox_cannot_read(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_module.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    source = (
        "import my_module, json\nfrom my_package import x\nimport pydantic\nimport rft_sandbox\n"
    )
    packages = str(Path(pydantic.__file__).parent.parent)
    found = unreadable_problems(source, [packages], "source")
    assert {problem.what for problem in found} == {
        f"line 1: the package my_module lies in {folder}/my_module.py, which the sandbox cannot read",
        f"line 2: the package my_package lies in {folder}/my_package/__init__.py, "
        "which the sandbox cannot read",
    }
    assert unreadable_problems(source, [packages, str(folder)], "source") == []


def test_a_job_learns_of_unreadable_packages_before_it_grades(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    document = Python(type="python", source="import my_module\ndef grade(sample, item): return 1")
    with pytest.raises(GraderError, match=r"my_module lies in .*, which the sandbox cannot read"):
        document.open(GradingSettings(sandbox="kernel"))
    document.open(GradingSettings(sandbox="unsafe-local")).close()


def test_the_lines_that_name_a_key_are_found():
    source = "def grade(sample, item):\n    got = sample.get('output_json')\n    return got == 'output_json'"
    assert reading_lines(source, "output_json") == [2, 3]
    assert reading_lines(source, "output_audio") == reading_lines("def grade(", "grade") == []
    assert source_warnings(source) == []
    assert source_warnings(source.replace("json", "audio")) == [
        "line 2: output_audio: no sample has one yet"
    ]
