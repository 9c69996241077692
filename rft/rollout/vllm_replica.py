"""What the vLLM sampler asks of one running vLLM, be it a server or a part of this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rft.types import FinishReason

SETTING = "engine.rollout.vllm.servers"
"""Where the job document says which vLLMs there are."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's max_lora_rank takes; an adapter fits one that is not below its rank."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion to be drawn."""

    prompt_ids: tuple[int, ...]
    seed: int
    temperature: float
    """0 = greedy."""
    max_tokens: int
    stop: tuple[str, ...]
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens drawn for an ask, the one that ended it included."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from, nats."""
    finish_reason: FinishReason


@runtime_checkable
class Replica(Protocol):
    """One copy of the base model behind vLLM, with the adapters that were loaded into it.

    Every method raises MachineError when vLLM does not answer, or not as it should; `adapter` None
    is the bare base model.
    """

    place: str
    """What an error calls it."""
    version: str
    """vLLM's."""
    asks_per_call: int | None
    """Asks that one call of `complete` should hold; None: as many as there are."""

    def complete(self, asks: Sequence[Ask], adapter: str | None) -> list[Answer]:
        """An answer to each ask, in their order; safe to call from several threads."""

    def next_logprobs(
        self,
        prompts: Sequence[tuple[int, ...]],
        candidates: Sequence[int],
        temperature: float,
        adapter: str | None,
    ) -> list[list[float]]:
        """log p(candidate | prompt) as sampling at that temperature would record it, per prompt."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Make a PEFT folder usable under a name that was never used before."""

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there; works after `close` too."""

    def close(self) -> None:
        """End calls in flight; none but `unload_adapter` may follow."""


def fitting_lora_rank(rank: int) -> int:
    """The smallest max_lora_rank of vLLM that holds the rank; raises StopIteration above the largest."""
    return next(size for size in LORA_RANKS if size >= rank)
