"""What flows through a step: Example → Prompt → Completion → Grade → Rollout → Group.

Everything here is frozen and complete when constructed. Index t of a per-token field speaks of token t.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Message = Mapping[str, Any]
"""One chat message: `role`, `content` and whatever else the chat template reads."""

Item = Mapping[str, Any]
"""One row of a data file as graders see it (`item.*`)."""

Tool = Mapping[str, Any]
"""A function that a model may call, as in chat completions: type, function with name and parameters."""

Sample = Mapping[str, Any]
"""One completion as graders see it (`sample.*`): output_text, choices, output_tools, perhaps output_json
and parse_errors."""

MAX_UNGRADED_FRACTION = 0.05
"""An evaluation with a larger share of ungraded samples never ranks."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data file."""

    row: int
    """Index of the row among the rows of its source, from 0."""
    messages: tuple[Message, ...]
    """The conversation up to and including the user's last message."""
    item: Item
    """The entire row, for graders."""
    tools: tuple[Tool, ...] = ()
    """What the model may call in its answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """An example rendered by the chat template and tokenised."""

    example: Example
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy answered to a prompt, token by token."""

    token_ids: tuple[int, ...]
    """All sampled tokens; the end token is the last one when the policy ended by itself."""
    sampling_logprobs: tuple[float, ...]
    """log p(token t | prompt, tokens < t), nats, under the distribution token t was drawn from
    (temperature applied, `allowed_tokens` applied); at temperature 0, under the untempered one."""
    finish_reason: FinishReason
    """`stop`: an end token or stop string; `length`: cut at the token limit, without an end token."""
    text: str
    """The tokens as text, without special tokens."""
    output_text: str
    """`text` as graders see it: without a thinking block, cut before a stop string."""
    num_reasoning_tokens: int = 0
    """Tokens of the thinking block, its markers included."""
    marked_text: str | None = None
    """`output_text` with its special tokens kept, which some families mark tool calls with; None where
    it has none."""
    ends_in_thinking: bool = False
    """Whether the thinking block was never closed, so that there is no answer."""
    allowed_tokens: NDArray[np.uint8] | None = None
    """(num_tokens, ceil(V / 8)) bits, `numpy.packbits` order: the tokens token t was drawn from, when
    top_p or a grammar left some out; None when all were open."""

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's word on one completion. A failure is a grade too, never an exception."""

    name: str
    """The grader's name."""
    type: str
    """The grader's type, such as `string_check`."""
    reward: float | None
    """Finite, or None: ungraded, through no fault of the completion; it then leaves its group."""
    sub_grades: Mapping[str, "Grade"] = field(default_factory=dict)
    """The parts of a multi grader by their key; empty for the others."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """The product's error flags that are raised, each with its details."""
    latency: float = 0.0
    """Seconds of wall-clock time spent grading; 0 only where an earlier grade was used again."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens spent by model graders: prompt_tokens, completion_tokens, cached_tokens."""
    model: str = ""
    """The model that judged, by the name it goes by; empty for other graders."""

    @property
    def sub_rewards(self) -> dict[str, float | None]:
        return {key: grade.reward for key, grade in self.sub_grades.items()}


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with its grade."""

    completion: Completion
    grade: Grade


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt: a reward means something only against its group."""

    ordinal: int
    """Place of the prompt in the stream of all prompts ever drawn by the job, from 0."""
    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def graded(self) -> tuple[Rollout, ...]:
        return tuple(rollout for rollout in self.rollouts if rollout.grade.reward is not None)

    @property
    def has_signal(self) -> bool:
        """At least two graded rollouts, and not all with exactly the same reward."""
        rewards = {rollout.grade.reward for rollout in self.graded}
        return len(self.graded) >= 2 and len(rewards) > 1
