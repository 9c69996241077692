"""The job document with every `auto` replaced: the same sections with narrower types."""

from typing import Annotated, Literal

from pydantic import Field

from rft.graders import Tier
from rft.job.document import (
    BatchSize,
    ComputeMultiplier,
    Epochs,
    Hyperparameters,
    Job,
    Method,
    Reinforcement,
)
from rft.job.engine import (
    Engine,
    EvaluationSettings,
    GradingRules,
    GroupSize,
    LearningRate,
    ModelSettings,
    PythonGraderRules,
    RolloutSettings,
    TrainingSettings,
)
from rft.job.section import Count, NotNegative, Positive


class ResolvedHyperparameters(Hyperparameters):
    n_epochs: Epochs
    batch_size: BatchSize
    eval_interval: Count
    eval_samples: Count
    learning_rate_multiplier: Positive
    compute_multiplier: ComputeMultiplier


class ResolvedReinforcement(Reinforcement):
    hyperparameters: ResolvedHyperparameters


class ResolvedMethod(Method):
    reinforcement: ResolvedReinforcement


class ResolvedModelSettings(ModelSettings):
    dtype: Literal["float32", "bfloat16", "float16"]
    device: Annotated[str, Field(pattern=r"^(cpu|cuda|cuda:[0-9]{1,3})$")]


class ResolvedRolloutSettings(RolloutSettings):
    group_size: GroupSize
    max_prompt_tokens: Count
    max_completion_tokens: Count
    slots: Count


class ResolvedTrainingSettings(TrainingSettings):
    learning_rate: LearningRate
    token_budget: Count
    gradient_checkpointing: bool


class ResolvedEvaluationSettings(EvaluationSettings):
    temperature: NotNegative


class ResolvedPythonGraderRules(PythonGraderRules):
    sandbox: Tier


class ResolvedGradingRules(GradingRules):
    concurrency: Count
    python: ResolvedPythonGraderRules


class ResolvedEngine(Engine):
    model: ResolvedModelSettings
    rollout: ResolvedRolloutSettings
    training: ResolvedTrainingSettings
    evaluation: ResolvedEvaluationSettings
    grading: ResolvedGradingRules


class ResolvedJob(Job):
    """A job document in which nothing is left to choose."""

    method: ResolvedMethod
    engine: ResolvedEngine

    @property
    def hyperparameters(self) -> ResolvedHyperparameters:
        return self.method.reinforcement.hyperparameters

    @property
    def effective_learning_rate(self) -> float:
        """The peak learning rate of the optimizer."""
        multiplier = self.hyperparameters.learning_rate_multiplier
        return multiplier * self.engine.training.learning_rate

    @property
    def num_updates_per_step(self) -> int:
        """Optimizer updates that one rollout batch feeds."""
        return self.engine.training.num_iterations * self.engine.training.minibatches

    def steps(self, num_rows: int) -> int:
        """Steps of the whole job over so many training rows, before any budget."""
        return self.hyperparameters.n_epochs * num_rows // self.hyperparameters.batch_size
