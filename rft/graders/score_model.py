"""score_model: a model gives the score."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from rft.graders.grader import (
    MAX_REWARD,
    GradingSettings,
    PassThreshold,
    shape_by_threshold,
)
from rft.graders.judge import JudgeReply
from rft.graders.judge_reply import score_of_reply
from rft.graders.model_grader import ModelGrader

MIN_WIDTH = 1e-6
"""Of a range."""


def rising(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not low < high:
        raise ValueError("the range's first number is not below its second → write [0, 1]")
    if max(abs(low), abs(high)) > MAX_REWARD or high - low < MIN_WIDTH:
        raise ValueError(
            f"the range is beyond ±{MAX_REWARD:g} or under {MIN_WIDTH:g} wide → write [0, 1]"
        )
    return bounds


class ScoreModel(ModelGrader):
    """A model's number, cut to a range."""

    type: Literal["score_model"]
    range: Annotated[tuple[float, float], AfterValidator(rising)] = (0.0, 1.0)
    """The least and the greatest score; what lies beyond is cut to it."""

    pass_threshold: PassThreshold = None
    """A reward of at least this passes; it becomes 1, any other 0, only with
    `engine.grading.pass_threshold_shapes_reward`."""

    def least_reward(self, settings: GradingSettings) -> float:
        return shape_by_threshold(self.range[0], self.pass_threshold, settings)

    @property
    def schema_name(self) -> str:
        return "float_score_classification"

    @property
    def result_schema(self) -> Mapping[str, Any]:
        if not self.is_local:
            return {"type": "number"}
        low, high = self.range
        digits = 2 - math.floor(math.log10(high - low))
        if digits <= 0:
            return {"type": "integer", "minimum": math.ceil(low), "maximum": math.floor(high)}
        return {"type": "number", "minimum": low, "maximum": high, "multipleOf": 10.0**-digits}

    def reward_of(self, reply: JudgeReply, settings: GradingSettings) -> float:
        low, high = self.range
        score = min(max(score_of_reply(reply), low), high)
        return shape_by_threshold(score, self.pass_threshold, settings)
