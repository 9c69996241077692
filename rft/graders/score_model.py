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

ROUNDING = 1e-6
"""Of a step, by which 0.1 × 100 and the like may miss a whole number."""
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
        digits = decimals(low, high)
        if digits == 0:
            return {"type": "integer", "minimum": math.ceil(low), "maximum": math.floor(high)}
        return {"type": "number", "minimum": low, "maximum": high, "multipleOf": 10.0**-digits}

    def warnings(self) -> list[str]:
        threshold = self.pass_threshold
        if threshold is None or threshold < self.range[1] or not self.weighed_replies:
            return super().warnings()
        what = f"{self.name}: nothing passes, as the mean of what a judge could give never reaches {threshold:g}"
        return [
            *super().warnings(),
            f"{what}: lower pass_threshold, or raise max_completions_tokens to 128",
        ]

    @property
    def results(self) -> tuple[float, ...]:
        return levels(*self.range)

    def reward_of(self, reply: JudgeReply, settings: GradingSettings) -> float:
        """Of a judge that weighs its replies, the score it expects to give (Liu et al. 2023, G-Eval, equation 1)."""
        low, high = self.range
        score = score_of_reply(reply)
        if reply.probabilities:
            weighed = zip(reply.probabilities, self.results, strict=True)
            score = sum(probability * result for probability, result in weighed)
        score = min(max(score, low), high)
        return shape_by_threshold(score, self.pass_threshold, settings)


def decimals(low: float, high: float) -> int:
    """Of the scores within a range that a judge in this process can write: a hundred at least, where they are not
    whole numbers."""
    return max(0, 2 - math.floor(math.log10(high - low)))


def levels(low: float, high: float) -> tuple[float, ...]:
    """The scores that rubrics use: whole numbers where a range has three to eleven of them, ends included, else its
    quarters."""
    if float(low).is_integer() and float(high).is_integer() and 2 <= high - low <= 10:
        return tuple(range(int(low), int(high) + 1))
    digits = decimals(low, high)
    scale = 10**digits
    first, last = math.ceil(low * scale - ROUNDING), math.floor(high * scale + ROUNDING)
    quarters = (round(round(first + (last - first) * n / 4) / scale, digits) for n in range(5))
    return tuple(int(q) if float(q).is_integer() else q for q in quarters)
