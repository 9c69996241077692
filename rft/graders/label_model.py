"""label_model: a model chooses a label; some labels pass."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from rft.errors import Problem
from rft.graders.grader import GradingSettings
from rft.graders.judge import JudgeReply
from rft.graders.judge_reply import label_of_reply
from rft.graders.model_grader import ModelGrader


class LabelModel(ModelGrader):
    """1 for a label that passes, 0 for another; a part of a `multi`."""

    type: Literal["label_model"]
    labels: tuple[str, ...] = Field(min_length=1)
    """What the judge chooses from."""
    passing_labels: tuple[str, ...] = Field(min_length=1)
    """Those that earn 1."""

    def problems(self, where: str) -> list[Problem]:
        problems = super().problems(where)
        if len(set(self.labels)) < len(self.labels):
            problems.append(Problem("a label stands twice", f"{where}.labels", "keep one"))
        if strange := [label for label in self.passing_labels if label not in self.labels]:
            what = f"{strange[0]!r} is none of the labels"
            problems.append(Problem(what, f"{where}.passing_labels", "add it to labels"))
        return problems

    @property
    def schema_name(self) -> str:
        return "label_classification"

    @property
    def result_schema(self) -> Mapping[str, Any]:
        return {"type": "string", "enum": list(self.labels)}

    @property
    def results(self) -> tuple[str, ...]:
        return self.labels

    def reward_of(self, reply: JudgeReply, settings: GradingSettings) -> float:
        return float(label_of_reply(reply, self.labels) in self.passing_labels)
