"""No file that rft reads or writes can run code: nothing in it pickles, and no YAML makes objects."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import ROOT

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

CALLS = {
    *("torch.load", "torch.save", "torch.serialization.load", "torch.serialization.save"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("yaml.full_load", "yaml.full_load_all", "yaml.UnsafeLoader", "yaml.Loader"),
    *("yaml.FullLoader", "pandas.read_pickle", "numpy.lib.format.read_array"),
}
"""Names that must not even be mentioned."""


def dangers(source: str) -> list[str]:
    """What a module imports or names that could run code from a file, with its line."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    found = []
    for node in ast.walk(tree):
        found += [(node.lineno, name) for name in _imported(node) if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call) and _is_dynamic_import(node):
            found.append((node.lineno, ast.unparse(node)))
        if isinstance(node, ast.Attribute | ast.Name):
            name = _full_name(node, aliases)
            found += [(node.lineno, name)] if name in CALLS else []
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            is_false = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if is_false else [(node.value.lineno, "allow_pickle")]
    return [f"{line}: {name}" for line, name in sorted(set(found))]


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a name of the module stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for entry in node.names:
                if entry.asname:
                    yield entry.asname, entry.name
        if isinstance(node, ast.ImportFrom) and node.module:
            for entry in node.names:
                yield entry.asname or entry.name, f"{node.module}.{entry.name}"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [entry.name for entry in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _is_dynamic_import(node: ast.Call) -> bool:
    name = ast.unparse(node.func)
    texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    is_import = name in ("__import__", "importlib.import_module", "import_module")
    return is_import and any(text.split(".")[0] in MODULES for text in texts)


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    first, *rest = ast.unparse(node).split(".")
    return ".".join([aliases.get(first, first), *rest])


def python_files() -> list[Path]:
    """All modules of the package and the scripts, those without a suffix too."""
    found = [*(ROOT / "rft").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    for path in (ROOT / "scripts").rglob("*"):
        if path.is_file() and not path.suffix and b"python" in path.read_bytes().split(b"\n")[0]:
            found.append(path)
    return sorted(found)


def test_nothing_reads_or_writes_what_could_run_code() -> None:
    files = python_files()
    assert len(files) > 120
    found = {
        str(path.relative_to(ROOT)): problems
        for path in files
        if (problems := dangers(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "def f():\n    from pickle import loads",
        "import dill, json",
        "from cloudpickle import dumps",
        "import joblib.memory",
        "import shelve",
        "from marshal import loads",
        "import cPickle",
        "x = __import__('pickle')",
        "import importlib\nx = importlib.import_module('dill')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.save(1, 'x')",
        "from torch import load as read\nread('x')",
        "import torch\nread = torch.load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "from yaml import full_load\nfull_load(text)",
    ],
)
def test_each_danger_is_seen(source: str) -> None:
    assert dangers(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load(text)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from safetensors.torch import load, save\nload(save({}))",
        "import json\njson.load(stream)\n'pickle'",
    ],
)
def test_what_is_safe_is_not_taken_for_a_danger(source: str) -> None:
    assert dangers(source) == []
