"""Templates in grader fields: `{{ item.answer }}`, `{{ sample.choices[0].message.content }}`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from rft.errors import GraderError, Problem
from rft.graders.fault import GradingFault
from rft.types import Item, Sample

NAME = r"\.([\w-]+)"
INDEX = r"\[([0-9]{1,9})\]"
KEY = r"""\["([^"]*)"\]|\['([^']*)'\]"""
STEP = re.compile(f"{NAME}|{KEY}|{INDEX}")
EXPRESSION = re.compile(
    rf"\{{\{{\s*((item|sample)((?:{NAME}|{KEY})(?:{NAME}|{KEY}|{INDEX})*))\s*\}}\}}"
)
LEGAL_FORMS = (
    "write {{ item.field }}, {{ item.list[0].field }}, "
    '{{ item["any key"] }} or {{ sample.output_text }}'
)
SAMPLE_VARIABLES = ("output_text", "output_json", "output_tools", "choices")
LATER_SAMPLE_VARIABLES = ("output_audio",)


MISSING = object()


class MissingVariable(LookupError):
    """A path leads nowhere; the text says at which step."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One `{{ … }}` of a template."""

    text: str
    """As written, without braces: `item.list[0]`."""
    namespace: Literal["item", "sample"]
    path: tuple[str | int, ...]

    def resolve(self, root: Mapping[str, Any]) -> Any:
        """The value the path leads to; raises MissingVariable."""
        value: Any = root
        for depth, step in enumerate(self.path):
            found = step_into(value, step)
            if found is MISSING:
                if self.namespace == "sample" and depth == 0:
                    raise MissingVariable(f"this sample has no {step!r}")
                place = spelled(self.namespace, self.path[:depth])
                raise MissingVariable(f"{place} {why_missing(value, step)}")
            value = found
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """A text with variables, ready to be filled in."""

    pieces: tuple[str | Variable, ...]

    @property
    def variables(self) -> list[Variable]:
        return [piece for piece in self.pieces if isinstance(piece, Variable)]

    @property
    def reads_sample(self) -> bool:
        return any(variable.namespace == "sample" for variable in self.variables)

    def render(self, sample: Sample, item: Item) -> str:
        """The text; strings go in as they are, all else as JSON. A missing variable is a fault."""
        roots = {"sample": sample, "item": item}
        texts = []
        for piece in self.pieces:
            if isinstance(piece, str):
                texts.append(piece)
                continue
            if piece.namespace == "sample":
                refuse_unreadable(piece.path[0], sample)
            try:
                texts.append(as_text(piece.resolve(roots[piece.namespace])))
            except MissingVariable as missing:
                raise GradingFault(
                    "invalid_variable_error",
                    f"{{{{ {piece.text} }}}}: {missing}",
                    of_sample=piece.namespace == "sample",
                ) from None
        return "".join(texts)


def refuse_unreadable(root: str | int, sample: Sample) -> None:
    """A part of the completion that could not be read is the sample's fault, not a missing variable."""
    if (details := sample.get("parse_errors", {}).get(root)) is not None:
        raise GradingFault("sample_parse_error", f"{root}: {details}", of_sample=True)


def is_of_answer(flag: str, details: str) -> bool:
    """Whether an error says that a completion is not what a template reads: no JSON, no call, no such key."""
    is_missing = flag == "invalid_variable_error" and details.startswith(
        ("{{ sample.", "{{ sample[")
    )
    return is_missing or flag == "sample_parse_error"


def parse_template(text: str, where: str) -> Template:
    """The template in a text; raises GraderError with every malformed expression."""
    pieces: list[str | Variable] = []
    problems = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        pieces.append(text[position:start])
        match = EXPRESSION.match(text, start)
        if match is None and (inner := EXPRESSION.match(text, start + 1)):
            pieces.append("{")  # of `{{{ item.x }}}` the outer braces are text
            match = inner
        if match is None:
            seen, position = malformed(text, start)
            what = f"`{seen}` is not a template expression"
            problems.append(Problem(what, where, LEGAL_FORMS))
            continue
        pieces.append(parse_variable(match))
        position = match.end()
    if problems:
        raise GraderError(problems)
    pieces.append(text[position:])
    return Template(tuple(piece for piece in pieces if piece != ""))


def parse_variable(match: re.Match[str]) -> Variable:
    text, namespace, steps = match.group(1, 2, 3)
    path: list[str | int] = []
    for step in STEP.finditer(steps):
        *keys, index = step.groups()
        path.append(int(index) if index else next(key for key in keys if key is not None))
    return Variable(text, "item" if namespace == "item" else "sample", tuple(path))


def malformed(text: str, start: int) -> tuple[str, int]:
    """The expression that begins at `start`, shortened for a message, and where to read on."""
    following = text.find("{{", start + 2)
    # no further than the next one: many without an end would each search all that follows
    close = text.find("}}", start, following + 1 if following >= 0 else len(text))
    if close < 0:
        stop = following if following >= 0 else len(text)
        return f"{shorten(text[start:stop].rstrip())}` without `}}}}", stop
    return shorten(text[start : close + 2]), close + 2


def shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def step_into(value: Any, step: str | int) -> Any:
    """What one step of a path finds in a value, or MISSING."""
    if isinstance(value, Mapping):
        return value.get(step, MISSING) if isinstance(step, str) else MISSING
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value[step] if isinstance(step, int) and step < len(value) else MISSING
    return MISSING


def spelled(namespace: str, path: Sequence[str | int]) -> str:
    """A path as a template writes it."""
    steps = [
        f".{step}" if isinstance(step, str) and re.fullmatch(NAME, f".{step}") else f"[{step!r}]"
        for step in path
    ]
    return namespace + "".join(steps)


def why_missing(value: Any, step: str | int) -> str:
    """What a value is, that it has not what a path asks of it."""
    if isinstance(value, Mapping):
        return f"has no {step!r}{nearest(str(step), value)}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"is a list of {len(value)}, which has no {step!r}"
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
    return f"is {kinds.get(type(value), 'text')}, which has no {step!r}"


def nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    matches = get_close_matches(name, [str(key) for key in known], n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def as_text(value: Any) -> str:
    """A string as it is; anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def field_problems(text: str, where: str) -> list[Problem]:
    """Malformed expressions, and `sample.*` variables that no sample can have."""
    try:
        template = parse_template(text, where)
    except GraderError as error:
        return list(error.problems)
    known = ", ".join(f"sample.{name}" for name in SAMPLE_VARIABLES)
    problems = []
    for variable in template.variables:
        root = str(variable.path[0])
        if variable.namespace == "item" or root in SAMPLE_VARIABLES:
            continue
        what = f"`{{{{ {variable.text} }}}}`: a sample has no {root!r}"
        if root in LATER_SAMPLE_VARIABLES:
            what += " yet"
        remedy = f"use one of {known}{nearest(root, SAMPLE_VARIABLES)}"
        problems.append(Problem(what, where, remedy))
    return problems
