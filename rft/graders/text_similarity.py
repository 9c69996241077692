"""text_similarity: how alike two texts are, from 0 to 1, by one of eleven metrics."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from rft.errors import GraderError, Problem
from rft.graders.grader import Grader, GradingSettings
from rft.graders.meteor import Meteor, wordnet_folder, wordnet_problem
from rft.graders.text_metrics import bleu, fuzzy_match, gleu, rouge_l, rouge_n
from rft.graders.text_pair import TextPair, TextPairGrader

MAX_CHARACTERS = 100_000
METRICS: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "rouge_1": partial(rouge_n, n=1),
    "rouge_2": partial(rouge_n, n=2),
    "rouge_3": partial(rouge_n, n=3),
    "rouge_4": partial(rouge_n, n=4),
    "rouge_5": partial(rouge_n, n=5),
    "rouge_l": rouge_l,
}


class TextSimilarity(TextPair):
    """Compares two texts by a metric."""

    type: Literal["text_similarity"]
    evaluation_metric: Literal[
        "fuzzy_match", "bleu", "gleu", "meteor",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip
    pass_threshold: float | None = None
    """Shapes the reward only with `engine.grading.pass_threshold_shapes_reward`."""

    def problems(self, where: str) -> list[Problem]:
        problems = super().problems(where)
        if self.evaluation_metric == "meteor":
            missing = wordnet_problem(f"{where}.evaluation_metric")
            problems += [missing] if missing else []
        return problems

    def open(self, settings: GradingSettings) -> Grader:
        templates = self.templates(self.name)
        metric = open_metric(self.evaluation_metric)
        return TextPairGrader(
            self, settings, metric, templates, MAX_CHARACTERS, self.pass_threshold
        )


def open_metric(name: str) -> Callable[[str, str], float]:
    """The metric's function; raises GraderError when its data is missing."""
    if name != "meteor":
        return METRICS[name]
    problem = wordnet_problem("evaluation_metric")
    folder = wordnet_folder()
    if problem or folder is None:
        raise GraderError(problem or "meteor needs WordNet")
    return Meteor(folder)
