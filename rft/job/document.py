"""The job document: the fields of a fine-tuning job request, and the `engine` block."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rft.graders import GraderDocument, GradingSettings, best_tier
from rft.graders.judge import JudgeSettings
from rft.job.engine import Engine
from rft.job.response_format import ResponseFormat
from rft.job.section import (
    MAY_BE_EMPTY,
    NULL_IS_NO_LIST,
    Auto,
    Count,
    Positive,
    Section,
    Text,
    Texts,
)

Epochs = Annotated[int, Field(ge=1, le=50)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
ComputeMultiplier = Annotated[float, Field(gt=0.00001, le=10)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


def _run_if_null(value: Any) -> Any:
    return "run" if value is None else value


def _zero_if_null(value: Any) -> Any:
    return 0 if value is None else value


class Hyperparameters(Section):
    """The knobs of the hosted product, with its ranges."""

    n_epochs: Auto | Epochs = "auto"
    """Passes over the training file; auto: ceil(100 · batch_size / rows), within 1…10."""
    batch_size: Auto | BatchSize = "auto"
    """Prompts per step; auto: min(8, rows)."""
    eval_interval: Auto | Count = "auto"
    """Steps between evaluations; auto: max(1, steps // 10)."""
    eval_samples: Auto | Count = "auto"
    """Completions per validation prompt; auto: 1."""
    learning_rate_multiplier: Auto | Positive = "auto"
    """Times engine.training.learning_rate; auto: 1.0."""
    compute_multiplier: Auto | ComputeMultiplier = "auto"
    """Times 8 completions per prompt; auto: 1.0."""
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    """How much the model thinks: handed to a chat template that knows `reasoning_effort`, or switches
    `enable_thinking` (low: off); and the measure of an automatic max_completion_tokens."""


class Reinforcement(Section):
    """The reinforcement method."""

    grader: GraderDocument
    """What gives a completion its reward."""
    response_format: ResponseFormat | None = None
    """The form of a completion; null: free text."""
    hyperparameters: Annotated[Hyperparameters, MAY_BE_EMPTY] = Hyperparameters()
    """The knobs of the hosted product."""


class Method(Section):
    """How the model is fine-tuned."""

    type: Literal["reinforcement"]
    """The method."""
    reinforcement: Reinforcement
    """Its settings."""


class Wandb(Section):
    """Where Weights & Biases files the run."""

    project: Text
    """The project."""
    name: str | None = None
    """The run's name there."""
    entity: str | None = None
    """The team or user."""
    tags: Annotated[Texts, NULL_IS_NO_LIST] = ()
    """Tags of the run."""


class Integration(Section):
    """A service that follows the job."""

    type: Literal["wandb"]
    """The service."""
    wandb: Wandb
    """Its settings."""


class Job(Section):
    """A whole job document; `auto` stands where the engine is to choose."""

    model: Text
    """A built-in name, a folder, a GGUF file, a hub id; or RUN@step or an adapter folder, to
    continue from it."""
    training_file: Text
    """A path, relative to the job file, or hf://owner/name?config=main&split=train."""
    validation_file: Text
    """As training_file; its rows are never trained on."""
    suffix: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$"), BeforeValidator(_run_if_null)] = (
        "run"
    )
    """Names the run."""
    seed: Annotated[int, Field(ge=0, le=2147483647), BeforeValidator(_zero_if_null)] = 0
    """Decides sampling, adapter initialisation and data order."""
    metadata: Annotated[
        Mapping[MetadataKey, MetadataValue], Field(max_length=16), MAY_BE_EMPTY
    ] = {}
    """The person's own notes: up to 16 texts by key."""
    integrations: Annotated[
        tuple[Integration, ...], Field(strict=False, max_length=5), NULL_IS_NO_LIST
    ] = ()
    """Services that follow the job; a wandb entry turns tracking on."""
    method: Method
    """How the model is fine-tuned."""
    engine: Annotated[Engine, MAY_BE_EMPTY] = Engine()
    """What only a local engine has."""

    @property
    def hyperparameters(self) -> Hyperparameters:
        return self.method.reinforcement.hyperparameters

    @property
    def grader(self) -> GraderDocument:
        return self.method.reinforcement.grader

    @property
    def completion_schema(self) -> str | None:
        """JSON text of the schema that completions keep to; None where they are free."""
        response_format = self.method.reinforcement.response_format
        return None if response_format is None else response_format.schema_text

    @property
    def grading_settings(self) -> GradingSettings:
        """What `rft.graders.open_grader` needs to know; an `auto` sandbox is the best one here."""
        rules = self.engine.grading
        sandbox = rules.python.sandbox
        return GradingSettings(
            timeout_seconds=rules.python.timeout_seconds,
            memory_mb=rules.python.memory_mb,
            sandbox=best_tier() if sandbox == "auto" else sandbox,
            on_exception=rules.on_exception,
            pass_threshold_shapes_reward=rules.pass_threshold_shapes_reward,
            similarity_model=rules.similarity_model,
            endpoint_timeout_seconds=rules.endpoint.timeout_seconds,
            private_hosts=tuple(rules.endpoint.private_hosts),
            judge=JudgeSettings(**dict(rules.judge)),
        )
