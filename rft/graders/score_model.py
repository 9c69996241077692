"""score_model: a model gives the score."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from rft.graders.judge import JudgeReply
from rft.graders.judge_reply import score_of_reply
from rft.graders.model_grader import ModelGrader


def rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError("the range's first number is not below its second → write [0, 1]")
    return bounds


class ScoreModel(ModelGrader):
    """A model's number, cut to a range."""

    type: Literal["score_model"]
    range: Annotated[tuple[float, float], AfterValidator(rising)] = (0.0, 1.0)
    """The least and the greatest score; what lies beyond is cut to it."""

    @property
    def minimum(self) -> float:
        return self.range[0]

    @property
    def schema_name(self) -> str:
        return "float_score_classification"

    @property
    def result_schema(self) -> Mapping[str, Any]:
        if not self.is_local:
            return {"type": "number"}
        low, high = self.range
        return {"type": "number", "minimum": low, "maximum": high, "multipleOf": 0.01}

    def reward_of(self, reply: JudgeReply) -> float:
        low, high = self.range
        return min(max(score_of_reply(reply), low), high)
