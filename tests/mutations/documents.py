"""Ways to damage a job document: its text, its tree, and the overrides laid over it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import yaml

from tests.mutations.trees import ODD_KEYS, ODD_TEXTS, TREE_CHANGES, replaced

Text = Callable[[Random, str], str]

ODD_SCALARS = (
    ".nan",
    ".inf",
    "-.INF",
    "1e400",
    "-1e-400",
    "9" * 5_001,
    "-" + "9" * 19,
    "9223372036854775808",
    "1." + "1" * 5_001,
    "2020-01-01",
    "2020-01-01T00:00:00Z",
    "12:30:00",
    "0x10",
    "0b1",
    "1_000",
    "010",
    "yes",
    "NULL",
    "~",
    "",
    "=",
    "<<",
    "'",
    '"',
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\0"',
    '"~\\0"',
    '"\\U99999999"',
    '"\\q"',
    '"a\n\n  b"',
    "[",
    "]",
    "{",
    "[]",
    "{}",
    "[a, [b, {c: d}]]",
    "{a: 1, a: 2}",
    "{? [a] : b}",
    "{1: x, true: y, null: z, 2020-01-01: w, 1.5: v}",
    "{<<: 3}",
    "{<<: [{a: 1}, [b]]}",
    "*nowhere",
    "&a",
    "&a [*a]",
    "&a {<<: *a}",
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2020-01-01",
    "!!int x",
    "!!float .nan",
    "!!bool yes",
    "!!null x",
    "!!str",
    "!!merge x",
    "!local x",
    "!<x> y",
    "!%ff x",
    "! x",
    "|",
    ">-",
    "|9",
    "@x",
    "`x`",
    "%x",
    "a: b: c",
    "- - - a",
    "# nothing",
    "x" * 100_000,
    '"' + "x\\n" * 30_000 + '"',
    "{{ item.answer }}",
    '"{{ item.answer"',
)  # fmt: skip
"""YAML for a value, legal or not."""
PIECES = (
    *"&*!|>'\"%@`#{}[],:?-~ \t\n\r\\<=",
    "\0",
    "\x07",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ufffe",
    "\U0001f600",
    "---\n",
    "...\n",
    "%YAML 1.2\n---\n",
    "%TAG ! tag:x,2000:\n",
    "&a ",
    "*a ",
    "<<: *a\n",
    "? ",
    ": ",
    "- ",
    "!!str ",
    " #",
    "\n\t",
)
"""Pieces of text that mean something somewhere in YAML."""


@dataclass(frozen=True)
class DamagedJob:
    """A job file, and what the command line lays over it."""

    content: bytes
    overrides: tuple[str, ...] = ()


def damaged_job(mutation: str, seed: int, sources: Sequence[str]) -> DamagedJob:
    """One of the sources, damaged; a pure function of its arguments."""
    dice = Random(f"{mutation} {seed}")
    text = dice.choice(sources)
    if mutation in OVERRIDE_MUTATIONS:
        count = dice.choice((1, 1, 2, 5))
        overrides = tuple(OVERRIDE_MUTATIONS[mutation](dice) for _ in range(count))
        return DamagedJob(text.encode(), overrides)
    if mutation in BYTE_MUTATIONS:
        return DamagedJob(BYTE_MUTATIONS[mutation](dice, text))
    return DamagedJob(TEXT_MUTATIONS[mutation](dice, text).encode("utf-8", "surrogatepass"))


# Text


def _pieces_put_in(dice: Random, text: str) -> str:
    for _ in range(dice.choice((1, 1, 2, 10))):
        at = dice.randrange(len(text) + 1)
        text = text[:at] + dice.choice(PIECES) + text[at:]
    return text


def _characters_lost(dice: Random, text: str) -> str:
    for _ in range(dice.choice((1, 3))):
        at = dice.randrange(len(text) + 1)
        text = text[:at] + text[at + dice.choice((1, 1, 2, 30)) :]
    return text


def _lines_rearranged(dice: Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    for _ in range(dice.choice((1, 2, 6))):
        a, b = dice.randrange(len(lines)), dice.randrange(len(lines))
        kind = dice.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[a]
        elif kind == 1:
            lines.insert(b, lines[a])
        elif kind == 2:
            lines[a], lines[b] = lines[b], lines[a]
        elif kind == 3:
            lines[a] = lines[a].rstrip("\n")
        else:
            lines.insert(a, "\n")
    return "".join(lines)


def _indented_otherwise(dice: Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(dice.choice((1, 1, 4))):
        at = dice.randrange(len(lines))
        bare = lines[at].lstrip(" ")
        width = max(0, len(lines[at]) - len(bare) + dice.choice((-2, -1, 1, 2, 7)))
        lines[at] = dice.choice((" " * width, "\t", " " * width + "\t")) + bare
    return "".join(lines)


def _with_odd_scalar(dice: Random, text: str) -> str:
    """An odd value behind one of the keys."""
    return _value_changed(dice, text, dice.choice(ODD_SCALARS))


def _value_changed(dice: Random, text: str, value: str) -> str:
    found = [*re.finditer(r"(?m)(?<=: ).+$", text)]
    if not found:
        return text + value
    chosen = dice.choice(found)
    return text[: chosen.start()] + value + text[chosen.end() :]


def _with_odd_key(dice: Random, text: str) -> str:
    odd = (
        "1",
        "true",
        "null",
        "~",
        "2020-01-01",
        "1.5",
        ".nan",
        "[a]",
        "{a: b}",
        "? a",
        "'x",
        "*a",
    )
    key = dice.choice((*odd, "k" * 1_025, "!!int 3", "!!binary aGk=", '"\\0"', '"\\ud800"', "<<"))
    found = [*re.finditer(r"(?m)^ *(- )?", text)]
    chosen = dice.choice(found)
    return text[: chosen.end()] + f"{key}: x\n" + text[chosen.start() :]


def _with_keys_twice(dice: Random, text: str) -> str:
    """One line or several, each twice."""
    lines = text.splitlines(keepends=True)
    chosen = {dice.randrange(len(lines)) for _ in range(dice.choice((1, 3, len(lines))))}
    times = dice.choice((2, 2, 30))
    return "".join(line * (times if at in chosen else 1) for at, line in enumerate(lines))


def _with_anchors(dice: Random, text: str) -> str:
    """Some values with anchors, some replaced by aliases and merges."""
    lines = text.splitlines(keepends=True)
    for _ in range(dice.choice((1, 3))):
        at = dice.randrange(len(lines))
        lines[at] = re.sub(r": ?", ": &a ", lines[at], count=1)
        lines[dice.randrange(len(lines))] += " " * dice.choice((0, 2, 4, 6)) + dice.choice(
            ("<<: *a\n", "k: *a\n", "<<: [*a, *a]\n", "*a : 1\n", "k: &a {<<: *a}\n")
        )
    return "".join(lines)


def _with_laughs(dice: Random, text: str) -> str:
    """Aliases of aliases, in lists, mappings or merges, as deep as a stack and as wide as memory."""
    width, depth = dice.choice(((2, 14), (2, 60), (10, 9), (300, 3), (1, 190)))
    kind = dice.choice(("[{}]", "{{{}}}", "merge"))
    lines = ["l0: &l0 {k: [lol]}\n"]
    for level in range(1, depth):
        alias = f"*l{level - 1}"
        if kind == "merge":
            inner = f"{{<<: [{', '.join([alias] * width)}], k{level}: 1}}"
        else:
            named = [f"k{i}: {alias}" if "{{" in kind else alias for i in range(width)]
            inner = kind.format(", ".join(named))
        lines.append(f"l{level}: &l{level} {inner}\n")
    laughs = "".join(lines)
    if dice.random() < 0.3:  # the same, where no key could stand
        laughs = re.sub(r"(?m)^l\d+: (.*)$", r"? \1\n: 1", laughs) + f"z: *l{depth - 1}\n"
    return laughs + text if dice.random() < 0.5 else text + laughs


def _with_merged_chain(dice: Random, text: str) -> str:
    """Mappings that each merge the one before, without any of them being a value."""
    length = dice.choice((30, 300, 1_200))
    chain = "".join(f"? &c{i} {{<<: *c{i - 1}, k: {i}}}\n: 1\n" for i in range(1, length))
    return f"? &c0 {{k: 1}}\n: 1\n{chain}metadata: {{<<: *c{length - 1}}}\n{text}"


def _nested_deeply(dice: Random, text: str) -> str:
    depth = dice.choice((30, 38, 39, 40, 41, 45, 500, 100_000))
    opening, closing = dice.choice(
        (
            ("[", "]"),
            ("{a: ", "}"),
            ("- ", ""),
            ("? ", ""),
            ("[{a: ", "}]"),
            ('{"a":', "}"),
            ("&a [", "]"),
        )
    )
    nested = opening * depth + "x" + closing * (depth if dice.random() < 0.7 else 0)
    return dice.choice((nested, _value_changed(dice, text, nested), f"{text}engine: {nested}\n"))


def _several_documents(dice: Random, text: str) -> str:
    other = dice.choice((text, "a: 1\n", "", "[", "\t", "null\n"))
    between = dice.choice(("---\n", "...\n", "...\n---\n", "--- !!map\n", "%YAML 1.1\n---\n"))
    return dice.choice((text + between + other, between + text, text + "..." + other))


def _with_directive(dice: Random, text: str) -> str:
    version = dice.choice(("1.2", "2.0", "1", "x", "1." + "1" * 5_001))
    tag = dice.choice(("! tag:x:", "!! tag:yaml.org,2002:", "!!", "!e! %ff", "!e! !"))
    directive = dice.choice((f"%YAML {version}", f"%TAG {tag}", "%X", "%", "%YAML 1.1\n%YAML 1.1"))
    return f"{directive}\n---\n{text}"


def _with_many_faults(dice: Random, text: str) -> str:
    count = dice.choice((25, 1_500))
    odd = (
        "".join(f"k{i}: 1\n" for i in range(count)),
        "".join(f"? [{i}]\n: 1\n" for i in range(count)),
        "".join(f"{i}: 1\n" for i in range(count)),
        "integrations: [" + "x, " * count + "]\n",
        "metadata: {" + ", ".join(f"k{i}: {i}" for i in range(count)) + "}\n",
        "metadata:\n  <<: {" + ", ".join(f"k{i}: x" for i in range(count)) + "}\n",
        "engine: {lora: {" + ", ".join(f"k{i}: x" for i in range(count)) + "}}\n",
        "engine: {data: {fields: {" + ", ".join(f"k{i}: '{{{{'" for i in range(count)) + "}}}\n",
        "engine: {rollout: {stop: [" + "3, " * count + "]}}\n",
    )
    return text + dice.choice(odd)


def _with_long_parts(dice: Random, text: str) -> str:
    length = dice.choice((1_000, 30_000, 300_000))
    return text + dice.choice(
        (
            f"suffix: {'x' * length}\n",
            f"{'k' * length}: 1\n",
            f'"{"k" * length}": 1\n',
            f"? {'k' * length}\n: 1\n",
            f"metadata: {{{'k' * length}: 1}}\n",
            f"# {'x' * length}\n",
            f"seed: {'1' * length}\n",
            f"metadata:\n  a: |\n{'    x y z' * (length // 10)}\n",
            f"metadata:\n  a: {'x ' * (length // 2)}\n",
            f"engine: {{model: {{chat_template: '{'{% if x %}' * (length // 10)}'}}}}\n",
            "\n" * length,
            " " * length,
            "&" + "a" * length + "\n",
            "!" + "a" * length + " x\n",
        )
    )


def _tree_changed(change: Callable[[Random, Any], Any], dice: Random, text: str) -> str:
    """The document's tree after a change, written as YAML or as JSON."""
    tree: Any = yaml.safe_load(text)
    for _ in range(dice.choice((1, 1, 2))):
        tree = change(dice, tree) if tree else tree
    if dice.random() < 0.4:
        return json.dumps(tree, indent=dice.choice((None, 2, "\t")))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=dice.random() < 0.5)


def _json_damaged(dice: Random, text: str) -> str:
    """The document as JSON, with faults that JSON knows."""
    tree: Any = yaml.safe_load(text)
    whole = json.dumps(tree, indent=dice.choice((None, 2, "\t")), ensure_ascii=dice.random() < 0.5)
    return dice.choice(
        (
            whole[: dice.randrange(len(whole))],
            whole.replace("}", ",}", 1),
            whole.replace('": ', '":', 3),
            whole.replace('"', "'"),
            whole + whole,
            f"[{whole}]",
            json.dumps(whole),
            whole.replace('": "', '": NaN, "', 1),
            '{"model": 1, "model": 2, ' + whole[1:],
            '{"seed": 1e400, ' + whole[1:],
            '{"seed": ' + "9" * 5_001 + ", " + whole[1:],
            '{"k": "\u2028\x85\x7f\ufeff\uffff", ' + whole[1:],
            '{"k": "\x01", ' + whole[1:],
            '{"k": "\\ud800", "\\udfff": 1, ' + whole[1:],
            '{"' + "k" * 2_000 + '": 1, ' + whole[1:],
            '{"<<": {"a": 1}, "=": 1, "": 2, "~": 3, ' + whole[1:],
            "\n\t " + whole + "// end",
            _pieces_put_in(dice, whole),
            _characters_lost(dice, whole),
        )
    )


TEXT_MUTATIONS: Mapping[str, Text] = {
    "pieces put in": _pieces_put_in,
    "characters lost": _characters_lost,
    "lines rearranged": _lines_rearranged,
    "indented otherwise": _indented_otherwise,
    "an odd value": _with_odd_scalar,
    "an odd key": _with_odd_key,
    "keys twice": _with_keys_twice,
    "anchors": _with_anchors,
    "laughs": _with_laughs,
    "a merged chain": _with_merged_chain,
    "nested deeply": _nested_deeply,
    "several documents": _several_documents,
    "directives": _with_directive,
    "many faults": _with_many_faults,
    "long parts": _with_long_parts,
    "damaged JSON": _json_damaged,
    **{f"tree: {n}": partial(_tree_changed, change) for n, change in TREE_CHANGES.items()},
}


# Bytes


def _bits_flipped(dice: Random, text: str) -> bytes:
    changed = bytearray(text.encode())
    for _ in range(dice.choice((1, 1, 3, 30))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _recoded(dice: Random, text: str) -> bytes:
    name = dice.choice(
        ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-7", "cp500")
    )
    return ("# é…\n" * dice.randrange(2) + text).encode(name, "replace")


BYTE_MUTATIONS: Mapping[str, Callable[[Random, str], bytes]] = {
    "bits": _bits_flipped,
    "another encoding": _recoded,
    "line ends": lambda dice, text: text.replace(
        "\n", dice.choice(("\r\n", "\r", "\u2028", "\x85", "\n\r", "\r\r\n"))
    ).encode(),
    "cut at a byte": lambda dice, text: text.encode()[: dice.randrange(len(text.encode()))],
    "random bytes": lambda dice, text: dice.randbytes(dice.choice((0, 1, 300, 9_000))),
    "random pieces": lambda dice, text: "".join(
        dice.choices((*PIECES, *ODD_SCALARS[:60], "a", "model: "), k=dice.choice((3, 40)))
    ).encode(),
    "no document": lambda dice, text: dice.choice(
        (b"", b"\n" * 99, b"null", b"---\n", b"3", b"[]", b"{}", b"\xef\xbb\xbf", b"\0", b"# x",
         b"\x1f\x8b\x08\0", b"x" * 2_000_001, b"x" * 8_000_001, b"\t", b"...", b"'", b"model")
    ),
}  # fmt: skip


# Overrides

PATHS = (
    "model",
    "seed",
    "suffix",
    "metadata",
    "metadata.note",
    "integrations",
    "training_file",
    "method",
    "method.type",
    "method.reinforcement.grader",
    "method.reinforcement.grader.type",
    "method.reinforcement.grader.graders.exact.source",
    "method.reinforcement.hyperparameters.batch_size",
    "method.reinforcement.response_format",
    "engine",
    "engine.model.chat_template",
    "engine.model.chat_template_kwargs.deep",
    "engine.data.fields.prompt",
    "engine.lora.targets",
    "engine.rollout.stop",
    "engine.training.betas",
    "engine.training.learning_rate",
    "engine.grading.python.sandbox",
    "engine.grading.similarity_model",
)


def _odd_override(dice: Random) -> str:
    """A legal key with an odd value."""
    value = dice.choice((*ODD_SCALARS, *ODD_TEXTS))
    return f"{dice.choice(PATHS)}={value}"


def _override_of_odd_key(dice: Random) -> str:
    """An odd key somewhere, with a plain value."""
    parts = dice.choice(PATHS).split(".")
    parts[dice.randrange(len(parts))] = dice.choice((*ODD_KEYS, "0", "[0]", "\udc80"))
    return ".".join(parts) + dice.choice(("=1", "=", "", "=[a]", "= x", "=={}"))


def _damaged_override(dice: Random) -> str:
    """Pieces in a legal override, bytes that are no UTF-8 among them, or no override at all."""
    value = json.dumps(replaced(dice, {"a": "x"}))
    text = f"{dice.choice(PATHS)}={value}"
    for _ in range(dice.choice((1, 3))):
        at = dice.randrange(len(text) + 1)
        text = text[:at] + dice.choice((*PIECES, "\udc80", "=", ".", "..")) + text[at:]
    return dice.choice((text, text, text, "", "=", ".", "a" * 70_000, "a." * 50 + "b=1", "--x"))


OVERRIDE_MUTATIONS: Mapping[str, Callable[[Random], str]] = {
    "override: an odd value": _odd_override,
    "override: an odd key": _override_of_odd_key,
    "override: damaged": _damaged_override,
}

MUTATIONS = (*TEXT_MUTATIONS, *BYTE_MUTATIONS, *OVERRIDE_MUTATIONS)
