"""What all graders share: their settings, their protocol, and how a fault becomes a grade."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from rft.errors import Problem
from rft.graders.fault import GradingFault
from rft.graders.judge import Judge, JudgeSettings
from rft.graders.template import Template
from rft.graders.tiers import Tier
from rft.types import Grade, Item, Sample

MAX_REWARD = 1e9


@dataclass(frozen=True, slots=True)
class GradingSettings:
    """How graders run; the same for all graders of a job."""

    timeout_seconds: float = 120
    """Wall-clock seconds one call of a python grader may take."""
    memory_mb: int = 2048
    """Address space of a process that runs a python grader, MiB."""
    sandbox: Tier = "kernel"
    """What keeps python graders from files, network and other processes."""
    on_exception: Literal["minimum", "exclude"] = "minimum"
    """What a sample's own fault earns: the grader's minimum, or None (it leaves its group)."""
    pass_threshold_shapes_reward: bool = False
    """Rewards become 1 or 0 by the grader's `pass_threshold`, where it has one."""
    similarity_model: str | None = None
    """Folder or hub id of the sentence-transformers model behind `cosine`."""
    endpoint_timeout_seconds: float = 600
    """Seconds one call of an endpoint grader may take, retries included."""
    private_hosts: tuple[str, ...] = ()
    """Hosts that endpoint graders and judges may call although their address is not public."""
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """Where model graders find their judge, if they do not say."""
    local_judges: Mapping[str, Judge] = field(default_factory=dict)
    """The judges of this process, by the `model` that graders name."""


PassThreshold = Annotated[float, Field(strict=True)] | None
"""A reward of at least this passes; None: the grader does not say."""


@runtime_checkable
class Grader(Protocol):
    """Turns samples into grades; safe to call from several threads; `grade` never raises."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    def grade(self, sample: Sample, item: Item) -> Grade: ...

    def check(self) -> None:
        """Try what can be tried without a sample; raises GraderError where the grader cannot work."""
        return

    def close(self) -> None:
        """Frees what the grader holds; it grades nothing afterwards."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Document(BaseModel):
    """A grader as a job document describes it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    type: str
    name: str = Field(min_length=1)
    """Names the grader in metrics and errors."""

    def least_reward(self, settings: GradingSettings) -> float:
        """What a fault of the sample earns, and in an evaluation a sample without a reward."""
        return 0.0

    @abstractmethod
    def problems(self, where: str) -> list[Problem]:
        """The faults that can be seen without a sample."""

    def settings_problems(self, where: str, settings: GradingSettings) -> list[Problem]:
        """The faults that can be seen without a sample, given how graders run."""
        return []

    def warnings(self) -> list[str]:
        """What is legal in the document but likely a mistake."""
        return []

    @abstractmethod
    def open(self, settings: GradingSettings) -> Grader:
        """The grader at work; raises GraderError when the document cannot be used."""

    def templates(self, where: str) -> dict[str, Template]:
        """The readable templates of the document by their dotted field."""
        return {}

    def parts(self) -> list["Document"]:
        """The grader itself and its children, in document order."""
        return [self]


def make_grade(document: Document, settings: GradingSettings, reward: Callable[[], float]) -> Grade:
    """The grade of one sample from a function that returns its reward or raises a fault."""
    started = time.perf_counter()
    try:
        value = bounded(reward())
    except (
        Exception
    ) as error:  # a grade is data: whatever went wrong, the job goes on and counts it
        return grade_of_error(document, settings, error, time.perf_counter() - started)
    latency = time.perf_counter() - started
    return Grade(document.name, document.type, value, latency=latency)


def grade_of_error(
    document: Document,
    settings: GradingSettings,
    error: Exception,
    latency: float,
    minimum: float = 0.0,
) -> Grade:
    """The grade of a sample that could not be graded; `minimum` is what a fault of the sample earns."""
    if isinstance(error, GradingFault):
        value = reward_of_fault(error, settings, minimum)
        errors: dict[str, str] = {error.flag: error.details}
        usage, model = error.usage, error.model
    else:
        value, errors = None, {"other_error": f"{type(error).__name__}: {error}"}
        usage, model = {}, ""
    return Grade(
        document.name,
        document.type,
        value,
        errors=errors,
        latency=latency,
        usage=usage,
        model=model,
    )


def bounded(reward: float) -> float:
    """The reward; one so large that sums and squares would overflow is a fault of the sample."""
    if abs(reward) > MAX_REWARD:
        details = f"the reward {reward:g} lies beyond ±{MAX_REWARD:g}"
        raise GradingFault("other_error", details, of_sample=True)
    return reward


def reward_of_fault(
    fault: GradingFault, settings: GradingSettings, minimum: float = 0.0
) -> float | None:
    """The minimum for a fault of the sample, None for any other."""
    return minimum if fault.of_sample and settings.on_exception == "minimum" else None


def shape_by_threshold(reward: float, threshold: float | None, settings: GradingSettings) -> float:
    """1 or 0 by the threshold where the settings ask for it; otherwise the reward as it is."""
    if threshold is None or not settings.pass_threshold_shapes_reward:
        return reward
    return 1.0 if reward >= threshold else 0.0
