"""Odd values, and changes of JSON trees that put them somewhere."""

import math
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

Path = tuple[str | int, ...]

ODD_TEXTS = (
    "",
    " ",
    "\n",
    "\0",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ud800",
    "\udfff\ud83d",
    "\U0001f600",
    "e\u0301\u202e",
    "a: b",
    "- a",
    "~",
    "~\0",
    "~nobody/x",
    "null",
    "NaN",
    "1e5",
    "<<",
    "{{",
    "}}",
    "{{ item.answer }}",
    "{{ item.a[999999999] }}",
    "{{ answer",
    "{{{ a }}}",
    "{{ a {{ b }}",
    "../..",
    "/",
    "\\ud800",
    "%s{0}",
    "x" * 7_000,
    "{{ " * 300,
    "(" * 3_000,
    "def grade(sample, item): return " + "-" * 3_000 + "1",
)
ODD_NUMBERS = (
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
)
ODD_COLLECTIONS: tuple[Any, ...] = (
    None,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": [1]}},
    ["x"] * 300,
    {f"k{i}": i for i in range(300)},
)
ODD_KEYS = ("", " ", "\0", "\ud800", "\u2028", "<<", "type", "a.b", "[key]", "x" * 5_000, "é", "0")


def odd_value(dice: Random) -> Any:
    return dice.choice(dice.choice((ODD_TEXTS, ODD_NUMBERS, ODD_COLLECTIONS)))


def places(tree: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value in a tree."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else ()
    inner = enumerate(tree) if isinstance(tree, list) else inner
    for key, value in inner:
        yield from places(value, (*path, key))


def at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree: Any, path: Path, value: Any) -> Any:
    """The tree with another value at a path."""
    if not path:
        return value
    if isinstance(tree, list):
        return [with_value(v, path[1:], value) if i == path[0] else v for i, v in enumerate(tree)]
    return {k: with_value(v, path[1:], value) if k == path[0] else v for k, v in tree.items()}


def replaced(dice: Random, tree: Any) -> Any:
    """An odd value somewhere."""
    return with_value(tree, dice.choice([*places(tree)]), odd_value(dice))


def removed(dice: Random, tree: Any) -> Any:
    """A key or an entry less."""
    path = dice.choice([path for path in places(tree) if path] or [()])
    if not path:
        return None
    holder = at(tree, path[:-1])
    if isinstance(holder, list):
        left: Any = [v for i, v in enumerate(holder) if i != path[-1]]
    else:
        left = {k: v for k, v in holder.items() if k != path[-1]}
    return with_value(tree, path[:-1], left)


def renamed(dice: Random, tree: Any) -> Any:
    """A key under another name, odd or nearly the same."""
    path = dice.choice([path for path in places(tree) if path and isinstance(path[-1], str)])
    old = str(path[-1])
    near = old[:-1] + dice.choice("sxé_ ")
    new = dice.choice((*ODD_KEYS, near, old.upper()))
    holder = {new if k == old else k: v for k, v in at(tree, path[:-1]).items()}
    return with_value(tree, path[:-1], holder)


def wrapped(dice: Random, tree: Any) -> Any:
    """A value inside a list or a mapping of its own."""
    path = dice.choice([*places(tree)])
    value = at(tree, path)
    return with_value(tree, path, dice.choice(([value], {"value": value}, [value] * 30)))


def swapped(dice: Random, tree: Any) -> Any:
    """One value where another stood."""
    paths = [*places(tree)]
    return with_value(tree, dice.choice(paths), at(tree, dice.choice(paths)))


def emptied(dice: Random, tree: Any) -> Any:
    """Null, or one small odd value, in half of all places that hold no other."""
    value = dice.choice((None, "", "\0", [], {}, dice.choice(ODD_NUMBERS)))
    for path in [path for path in places(tree) if not isinstance(at(tree, path), (dict, list))]:
        tree = with_value(tree, path, value) if dice.random() < 0.5 else tree
    return tree


TREE_CHANGES: Mapping[str, Callable[[Random, Any], Any]] = {
    change.__name__: change for change in (replaced, removed, renamed, wrapped, swapped, emptied)
}
