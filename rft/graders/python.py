"""python: the user's `grade(sample, item)`, run in a process of its own for every sample.

The source runs once when its process starts; each sample is graded in a fork of that process, so
nothing a sample leaves behind reaches the next. What goes wrong becomes

    grade raises, ends its process, or returns no finite number   the sample's fault: the minimum
    timeout, memory limit, source that fails before any sample    reward None
        both under python_grader_runtime_error
    the sandbox itself fails                                      reward None
        under python_grader_server_error
"""

import json
from typing import Literal

from pydantic import Field

from rft.errors import GraderError, Problem
from rft.graders.fault import GradingFault
from rft.graders.grader import (
    Document,
    Grader,
    GradingSettings,
    PassThreshold,
    make_grade,
    shape_by_threshold,
)
from rft.graders.lockdown import readable_paths
from rft.graders.monty import MontySandbox
from rft.graders.monty_source import monty_source_problems
from rft.graders.python_source import source_problems, source_warnings, unreadable_problems
from rft.graders.sandbox import Limits, Sandbox
from rft.graders.tiers import require_tier, tier_problem
from rft.types import Grade, Item, Sample


class Python(Document):
    """Grades by a function of the user's."""

    type: Literal["python"]
    name: str = Field(default="python_grader", min_length=1)
    source: str
    """Python that defines `grade(sample, item)`, which returns a finite number."""
    image_tag: str | None = None
    """Names the product's set of packages; here the source finds those installed beside rft."""
    pass_threshold: PassThreshold = None
    """A reward of at least this passes; it becomes 1, any other 0, only with
    `engine.grading.pass_threshold_shapes_reward`."""

    def problems(self, where: str) -> list[Problem]:
        return source_problems(self.source, f"{where}.source")

    def settings_problems(self, where: str, settings: GradingSettings) -> list[Problem]:
        if tier_problem(settings.sandbox) or self.problems(where):
            return []  # a sandbox that is not there is told when the grader opens
        if settings.sandbox == "kernel":
            return unreadable_problems(self.source, readable_paths(), f"{where}.source")
        return (
            monty_source_problems(self.source, f"{where}.source")
            if settings.sandbox == "monty"
            else []
        )

    def warnings(self) -> list[str]:
        return [f"{self.name}: source {warning}" for warning in source_warnings(self.source)]

    def open(self, settings: GradingSettings) -> Grader:
        problems = self.problems(self.name)
        if problems:
            raise GraderError(problems)
        require_tier(settings.sandbox)
        if problems := self.settings_problems(self.name, settings):
            raise GraderError(problems)
        return PythonGrader(self, settings)


class PythonGrader(Grader):
    """Hands samples to a sandbox; as many processes as calls at the same time."""

    def __init__(self, document: Python, settings: GradingSettings):
        self._document = document
        self._settings = settings
        limits = Limits(settings.timeout_seconds, settings.memory_mb)
        self._sandbox: Sandbox | MontySandbox
        if settings.sandbox == "monty":
            self._sandbox = MontySandbox(document.source, limits)
        else:
            self._sandbox = Sandbox(document.source, limits, settings.sandbox)

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def type(self) -> str:
        return self._document.type

    def grade(self, sample: Sample, item: Item) -> Grade:
        return make_grade(self._document, self._settings, lambda: self._reward(sample, item))

    def close(self) -> None:
        self._sandbox.close()

    def _reward(self, sample: Sample, item: Item) -> float:
        request = json.dumps({"sample": sample, "item": item}, default=str).encode()
        outcome = self._sandbox.run(request)
        if outcome.kind == "reward":
            return shape_by_threshold(outcome.reward, self._document.pass_threshold, self._settings)
        if outcome.kind == "sandbox":
            raise GradingFault("python_grader_server_error", outcome.details, of_sample=False)
        of_sample = outcome.kind == "fault"
        raise GradingFault("python_grader_runtime_error", outcome.details, of_sample=of_sample)
