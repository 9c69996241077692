"""text_similarity: how alike two texts are, from 0 to 1, by one of eleven metrics."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from rft.errors import GraderError, Problem
from rft.graders.cosine import Cosine, load_embedder, package_problem, similarity_model_problem
from rft.graders.grader import Grader, GradingSettings, PassThreshold
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
        "cosine", "fuzzy_match", "bleu", "gleu", "meteor",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip
    pass_threshold: PassThreshold = None
    """A reward of at least this passes; it becomes 1, any other 0, only with
    `engine.grading.pass_threshold_shapes_reward`."""

    def problems(self, where: str) -> list[Problem]:
        problems = super().problems(where)
        missing = None
        if self.evaluation_metric == "meteor":
            missing = wordnet_problem(f"{where}.evaluation_metric")
        elif self.evaluation_metric == "cosine":
            missing = package_problem(f"{where}.evaluation_metric")
        return [*problems, missing] if missing else problems

    def settings_problems(self, where: str, settings: GradingSettings) -> list[Problem]:
        if self.evaluation_metric != "cosine":
            return []
        problem = similarity_model_problem(settings.similarity_model, f"{where}.evaluation_metric")
        return [problem] if problem else []

    def open(self, settings: GradingSettings) -> Grader:
        templates = self.both_templates()
        metric = open_metric(self.evaluation_metric, settings)
        return TextPairGrader(
            self, settings, metric, templates, MAX_CHARACTERS, self.pass_threshold
        )


def open_metric(name: str, settings: GradingSettings) -> Callable[[str, str], float]:
    """The metric's function; raises GraderError when something it needs is missing."""
    if name == "cosine":
        return open_cosine(settings.similarity_model)
    if name != "meteor":
        return METRICS[name]
    problem = wordnet_problem("evaluation_metric")
    folder = wordnet_folder()
    if problem or folder is None:
        raise GraderError(problem or "meteor needs WordNet")
    return Meteor(folder)


def open_cosine(model: str | None) -> Callable[[str, str], float]:
    where = "evaluation_metric"
    problem = package_problem(where) or similarity_model_problem(model, where)
    if problem or model is None:
        raise GraderError(problem or "cosine needs a model")
    return Cosine(load_embedder(model))
