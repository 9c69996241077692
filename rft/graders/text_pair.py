"""What the graders of two texts share: a template for each, and a function that scores the pair."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from rft.errors import GraderError, Problem
from rft.graders.fault import GradingFault
from rft.graders.grader import (
    Document,
    Grader,
    GradingSettings,
    make_grade,
    shape_by_threshold,
)
from rft.graders.template import Template, field_problems, parse_template
from rft.types import Grade, Item, Sample


class TextPair(Document):
    """A grader of two texts."""

    input: str
    """Template of the text that is graded."""
    reference: str
    """Template of the text it is compared with."""

    def problems(self, where: str) -> list[Problem]:
        return [
            *field_problems(self.input, f"{where}.input"),
            *field_problems(self.reference, f"{where}.reference"),
        ]

    def templates(self, where: str) -> dict[str, Template]:
        templates = {}
        for name, text in (("input", self.input), ("reference", self.reference)):
            with suppress(GraderError):  # `problems` tells it
                templates[f"{where}.{name}"] = parse_template(text, f"{where}.{name}")
        return templates

    def both_templates(self) -> dict[str, Template]:
        """Those of input and reference; raises GraderError with all that is malformed in them."""
        problems = TextPair.problems(self, self.name)
        if problems:
            raise GraderError(problems)
        return self.templates(self.name)


@dataclass(frozen=True)
class TextPairGrader(Grader):
    """Fills in both templates and scores the pair."""

    document: TextPair
    settings: GradingSettings
    score: Callable[[str, str], float]
    """From input and reference to a reward."""
    templates: Mapping[str, Template]
    """Those of input and reference, in this order, by their field."""
    max_characters: int | None = None
    """A longer text is a fault: of the sample, where its template reads the sample."""
    pass_threshold: float | None = None

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def type(self) -> str:
        return self.document.type

    def grade(self, sample: Sample, item: Item) -> Grade:
        return make_grade(self.document, self.settings, lambda: self._reward(sample, item))

    def _reward(self, sample: Sample, item: Item) -> float:
        text, reference = (
            self._fill_in(field, template, sample, item)
            for field, template in self.templates.items()
        )
        score = self.score(text, reference)
        return shape_by_threshold(score, self.pass_threshold, self.settings)

    def _fill_in(self, field: str, template: Template, sample: Sample, item: Item) -> str:
        text = template.render(sample, item)
        if self.max_characters is not None and len(text) > self.max_characters:
            details = f"{field} has {len(text)} characters, more than {self.max_characters}"
            raise GradingFault("other_error", details, of_sample=template.reads_sample)
        return text
