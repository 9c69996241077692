"""Graders: from a sample and its item to a grade."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field

from rft.errors import Problem
from rft.graders.grader import Grader, GradingSettings
from rft.graders.multi import Multi
from rft.graders.python import Python
from rft.graders.string_check import StringCheck
from rft.graders.template import MissingVariable, Template
from rft.graders.text_similarity import TextSimilarity
from rft.graders.tiers import Tier, best_tier
from rft.types import Item

__all__ = [
    "Grader",
    "GraderDocument",
    "GradingSettings",
    "Multi",
    "Python",
    "StringCheck",
    "TextSimilarity",
    "Tier",
    "best_tier",
    "grader_parts",
    "not_yet",
    "open_grader",
    "problems_of",
    "template_problems",
]

GraderDocument = Annotated[
    StringCheck | TextSimilarity | Python | Multi, Field(discriminator="type")
]
"""A grader as the job document has it."""

MAX_ROW_PROBLEMS = 20
LATER_TYPES = ("score_model", "label_model", "endpoint")


def open_grader(document: GraderDocument, settings: GradingSettings = GradingSettings()) -> Grader:
    """The grader at work; its processes start with the first sample.

    Raises GraderError when the document cannot be used, MachineError when this machine lacks what it
    needs.
    """
    return document.open(settings)


def problems_of(document: GraderDocument, where: str = "grader") -> list[Problem]:
    """The faults of a document that can be seen without a sample, all at once."""
    return document.problems(where)


def grader_parts(document: GraderDocument) -> list[tuple[str, str]]:
    """Name and type of the grader and, for a multi, of its children, in document order."""
    return [(part.name, part.type) for part in document.parts()]


def template_problems(
    document: GraderDocument, items: Iterable[tuple[str, Item]], where: str = "grader"
) -> list[Problem]:
    """The `item.*` variables of the grader's templates that rows lack; each row comes with its place.

    At most 20 problems, then one that counts the rest. Raises GraderError for a malformed template.
    """
    templates = document.templates(where)
    problems: list[Problem] = []
    num_left_out = 0
    for place, item in items:
        found = row_problems(templates, place, item)
        room = MAX_ROW_PROBLEMS - len(problems)
        problems += found[:room]
        num_left_out += len(found[room:])
    if num_left_out:
        problems.append(Problem(f"{num_left_out} more variables are missing from rows", where))
    return problems


def row_problems(templates: Mapping[str, Template], place: str, item: Item) -> list[Problem]:
    """The variables of the templates that one row lacks."""
    problems = []
    for field, template in templates.items():
        for variable in template.variables:
            if variable.namespace != "item":
                continue
            try:
                variable.resolve(item)
            except MissingVariable as missing:
                what = f"{{{{ {variable.text} }}}} of {field}: {missing}"
                problems.append(Problem(what, place, "add it to the row or mend the template"))
    return problems


def not_yet(raw: object) -> str | None:
    """What a raw grader document asks for that is legal but not built yet, in words, or None."""
    if not isinstance(raw, Mapping):
        return None
    parts = raw.get("graders") if raw.get("type") == "multi" else None
    if not isinstance(parts, Mapping):
        return part_not_yet(raw)
    for key, part in parts.items():
        if isinstance(part, Mapping) and (what := part_not_yet(part)):
            return f"{what} (graders.{key})"
    return None


def part_not_yet(raw: Mapping[Any, Any]) -> str | None:
    if raw.get("type") in LATER_TYPES:
        return f"a grader of type {raw['type']}"
    if raw.get("type") == "text_similarity" and raw.get("evaluation_metric") == "cosine":
        return "a text_similarity grader by cosine"
    return None
