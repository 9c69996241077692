"""What every sampling engine offers: requests in, token ids and logprobs out, each as it finishes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rft.errors import ModelError
from rft.rollout.randomness import Purpose
from rft.types import Completion


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are drawn."""

    temperature: float
    """0 = greedy."""
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are sampled and trained, and cut from `output_text`."""
    keeps_allowed_tokens: bool = True
    """Whether completions carry what each token was drawn from; only training has a use for it."""
    schema: str | None = None
    """JSON text of the JSON schema that completions keep to; None: they are free."""
    may_think: bool = True
    """Whether a thinking block may stand before the JSON of a schema."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask for `num_samples` completions of one prompt."""

    prompt_ids: tuple[int, ...]
    num_samples: int
    seed: int
    purpose: Purpose
    step: int
    ordinal: int
    """The prompt's number: with seed, purpose, step and sample it determines the uniforms."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One finished completion of a request."""

    request: int
    """Index of its request."""
    sample: int
    """Index among the request's completions."""
    completion: Completion


@runtime_checkable
class Sampler(Protocol):
    """Draws completions from the policy as it was at the last `refresh`."""

    @property
    def is_exact(self) -> bool:
        """Whether sampling logprobs are the trainer's up to float32 rounding."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What env.json says of it; `bitwise` is whether completions are independent bit for bit."""

    @property
    def spent(self) -> Mapping[str, float]:
        """Since the sampler was made: seconds of `prefill` and `decode`, and `prefill_tokens` and
        `decode_tokens` that went through the model in them; empty where an engine cannot tell."""
        return {}

    def refresh(self) -> None:
        """Take over the policy's current weights."""

    def share_prefix(self, prefix_ids: Sequence[int]) -> None:
        """Prompts that go on from these tokens may have them computed once a call.

        To be told once for a whole job: its completions would otherwise depend, in their last digits, on
        what else a call asks for. An engine may have no use for it.
        """

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        """All completions asked for, each as soon as it is finished, in no particular order.

        Raises NotFiniteError.
        """


class NotFiniteError(ModelError):
    """The model's logits are NaN or infinite: a fault of its weights or their number format."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not finite",
            where="engine.model.dtype",
            remedy="use float32 or bfloat16; if it is so already, the weights are damaged",
        )


def require_finite(logprobs: Sequence[float]) -> None:
    """Raise NotFiniteError unless each drawn token has a finite logprob."""
    if not all(map(math.isfinite, logprobs)):
        raise NotFiniteError
