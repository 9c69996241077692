"""multi: several graders of one sample, and a formula that makes their rewards one."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rft.errors import GraderError, Problem
from rft.graders.endpoint import Endpoint
from rft.graders.fault import GradingFault
from rft.graders.formula import FUNCTIONS, Formula, is_name, parse_formula
from rft.graders.grader import Document, Grader, GradingSettings, bounded, reward_of_fault
from rft.graders.label_model import LabelModel
from rft.graders.python import Python
from rft.graders.score_model import ScoreModel
from rft.graders.string_check import StringCheck
from rft.graders.template import Template
from rft.graders.text_similarity import TextSimilarity
from rft.types import Grade, Item, Sample

Part = Annotated[
    StringCheck | TextSimilarity | Python | Endpoint | ScoreModel | LabelModel,
    Field(discriminator="type"),
]
MAY_BE_NAMELESS = ("python", "endpoint")


class Multi(Document):
    """Combines graders by a formula; the reward is not clipped."""

    type: Literal["multi"]
    name: str = Field(default="multi", min_length=1)
    graders: dict[str, Part] = Field(min_length=1)
    """Graders by the key that the formula calls them; none of them a multi."""
    calculate_output: str
    """Formula over the keys: + - * / ^, parentheses, min max abs floor ceil exp sqrt log."""

    @field_validator("graders", mode="before")
    @classmethod
    def _name_by_key(cls, graders: object) -> object:
        """A part whose type does without a name takes its key for one."""
        if not isinstance(graders, Mapping):
            return graders
        return {
            key: {"name": key, **part}
            if isinstance(part, Mapping) and part.get("type") in MAY_BE_NAMELESS and key
            else part
            for key, part in graders.items()
        }

    @field_validator("graders", mode="before")
    @classmethod
    def _refuse_nesting(cls, graders: object) -> object:
        parts = graders.items() if isinstance(graders, Mapping) else ()
        nested = [
            str(key)
            for key, part in parts
            if isinstance(part, Mapping) and part.get("type") == "multi"
        ]
        if nested:
            raise ValueError(
                f"{', '.join(nested)}: a multi grader cannot stand inside another → "
                "move its parts into the outer one"
            )
        return graders

    def problems(self, where: str) -> list[Problem]:
        return [
            *(key_problem(key, f"{where}.graders") for key in self.graders if not is_name(key)),
            *self._name_problems(where),
            *(
                problem
                for key, part in self.graders.items()
                for problem in part.problems(f"{where}.graders.{key}")
            ),
            *formula_problems(self.calculate_output, self.graders, f"{where}.calculate_output"),
        ]

    def settings_problems(self, where: str, settings: GradingSettings) -> list[Problem]:
        return [
            problem
            for key, part in self.graders.items()
            for problem in part.settings_problems(f"{where}.graders.{key}", settings)
        ]

    def warnings(self) -> list[str]:
        return [warning for part in self.graders.values() for warning in part.warnings()]

    def _name_problems(self, where: str) -> list[Problem]:
        """Metrics are told apart by the graders' names, so each needs its own."""
        problems = []
        taken = {self.name: where}
        for key, part in self.graders.items():
            place = f"{where}.graders.{key}"
            if part.name in taken:
                what = f"the name {part.name!r} is taken by {taken[part.name]}"
                problems.append(Problem(what, f"{place}.name", "give each grader its own name"))
            taken.setdefault(part.name, place)
        return problems

    def templates(self, where: str) -> dict[str, Template]:
        templates: dict[str, Template] = {}
        for key, part in self.graders.items():
            templates |= part.templates(f"{where}.graders.{key}")
        return templates

    def parts(self) -> list[Document]:
        return [self, *self.graders.values()]

    def open(self, settings: GradingSettings) -> Grader:
        formula = parse_formula(self.calculate_output, self.graders, "calculate_output")
        parts: dict[str, Grader] = {}
        with ExitStack() as opened:
            for key, part in self.graders.items():
                parts[key] = part.open(settings)
                opened.callback(parts[key].close)
            opened.pop_all()
        return MultiGrader(self, settings, formula, parts)


@dataclass(frozen=True)
class MultiGrader(Grader):
    """Grades by each part in turn, then by the formula."""

    document: Multi
    settings: GradingSettings
    formula: Formula
    parts: Mapping[str, Grader]

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def type(self) -> str:
        return self.document.type

    def grade(self, sample: Sample, item: Item) -> Grade:
        started = time.perf_counter()
        grades = {key: part.grade(sample, item) for key, part in self.parts.items()}
        errors = merge_errors(grades)
        reward: float | None = None
        rewards = {key: grade.reward for key, grade in grades.items()}
        known = {key: value for key, value in rewards.items() if value is not None}
        if self.formula.names <= known.keys():
            try:
                reward = bounded(self.formula.value(known))
            except GradingFault as fault:
                reward = reward_of_fault(fault, self.settings)
                errors[fault.flag] = "; ".join(
                    filter(None, [errors.get(fault.flag), fault.details])
                )
        latency = time.perf_counter() - started
        usage = sum_usage(grades)
        return Grade(self.name, self.type, reward, grades, errors, latency, usage)

    def check(self) -> None:
        for part in self.parts.values():
            part.check()

    def close(self) -> None:
        # a part that fails to close does not keep the others open
        with ExitStack() as closing:
            for part in self.parts.values():
                closing.callback(part.close)


def key_problem(key: str, where: str) -> Problem:
    what = f"{key!r} cannot be a name in calculate_output"
    remedy = "use letters, digits and _, beginning with a letter; not " + ", ".join(FUNCTIONS)
    return Problem(what, where, remedy)


def formula_problems(text: str, keys: Mapping[str, object], where: str) -> list[Problem]:
    try:
        parse_formula(text, keys, where)
    except GraderError as error:
        return list(error.problems)
    return []


def merge_errors(grades: Mapping[str, Grade]) -> dict[str, str]:
    """The flags raised by any part, with the details of each behind its key."""
    errors: dict[str, str] = {}
    for key, grade in grades.items():
        for flag, details in grade.errors.items():
            line = f"{key}: {details}"
            errors[flag] = f"{errors[flag]}; {line}" if flag in errors else line
    return errors


def own_errors(grade: Grade) -> dict[str, str]:
    """The flags that the grader raised itself: its errors without those merged in from its parts."""
    merged = merge_errors(grade.sub_grades)
    return {
        flag: details.removeprefix(f"{merged[flag]}; ") if flag in merged else details
        for flag, details in grade.errors.items()
        if details != merged.get(flag)
    }


def sum_usage(grades: Mapping[str, Grade]) -> dict[str, int]:
    usage: dict[str, int] = {}
    for grade in grades.values():
        for kind, count in grade.usage.items():
            usage[kind] = usage.get(kind, 0) + count
    return usage
