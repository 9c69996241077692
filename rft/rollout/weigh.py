"""How likely a model is to give each of the few replies that a question can have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from rft.errors import MachineError
from rft.head import CHUNK_TOKENS
from rft.models.thinking import MARKERS
from rft.packing import PackedBatch, TokenGroup, pack
from rft.policy import Scored
from rft.rollout.invariance import RowInvariance
from rft.rollout.memory import is_out_of_memory
from rft.rollout.sampler import NotFiniteError

LINE_END = "\n"
"""What a prompt ends with as a rule."""


@runtime_checkable
class WeighingModel(Protocol):
    """A model apart from its sampler."""

    device: torch.device

    def score(self, batch: PackedBatch, temperature: float) -> Scored:
        """Logprobs of the completions of a packed batch."""


@dataclass(frozen=True, slots=True)
class Replies:
    """Texts of which one is the reply, as token ids."""

    texts: tuple[str, ...]
    beginning: tuple[int, ...]
    """What stands before each and what they share."""
    endings: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Of the longest."""
        return len(self.beginning) + max(map(len, self.endings))


def encode_replies(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, opened: str | None = None
) -> Replies:
    """`opened`: the marker of a thinking block that the prompt has opened; it is closed first."""
    closing = "" if opened is None else MARKERS[opened]
    encoded = [_encode_after(closing or LINE_END, text, tokenizer) for text in texts]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*encoded, strict=False))
    num_shared = min(sum(1 for _ in alike), min(map(len, encoded)) - 1)
    closing_ids = tokenizer.encode(closing, add_special_tokens=False) if closing else ()
    beginning = (*closing_ids, *encoded[0][:num_shared])
    return Replies(tuple(texts), beginning, tuple(ids[num_shared:] for ids in encoded))


def _encode_after(before: str, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of `text` behind another: some tokenizers put a blank before the first of all."""
    first = tokenizer.encode(before, add_special_tokens=False)
    ids = tokenizer.encode(before + text, add_special_tokens=False)
    if ids[: len(first)] != first:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    return tuple(ids[len(first) :])


class Weigher:
    """Gives probabilities by passes over questions with all their replies behind them.

    They depend on the question alone: several share a pass only where that is so bit for bit.
    """

    def __init__(self, model: WeighingModel, invariance: RowInvariance | None):
        """`invariance`: of the model's products, where it is known."""
        self._model = model
        self._invariance = invariance
        shared = invariance is not None and invariance.is_bitwise
        self._most_rows = invariance.max_prompt_rows if invariance and shared else 0

    def probabilities(
        self, asked: Sequence[tuple[Sequence[int], Replies]]
    ) -> Iterator[tuple[float, ...]]:
        """For each prompt and its replies, in order, p(reply | prompt, one of the replies) at temperature 1.

        Raises NotFiniteError; MachineError when memory does not suffice for one question.
        """
        groups = [
            TokenGroup((*prompt_ids, *replies.beginning), replies.endings)
            for prompt_ids, replies in asked
        ]
        for together in self._together(groups):
            yield from self._within_memory(together)

    def _together(self, groups: Sequence[TokenGroup]) -> Iterator[list[TokenGroup]]:
        together: list[TokenGroup] = []
        for group in groups:
            num_rows = sum(g.num_input_tokens for g in [*together, group])
            if together and num_rows >= self._most_rows:
                yield together
                together = []
            together.append(group)
        if together:
            yield together

    def _within_memory(self, groups: Sequence[TokenGroup]) -> Iterator[tuple[float, ...]]:
        """A pass over all of them; when memory runs out, over each."""
        try:
            yield from self._pass(groups)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(groups) == 1:
                raise MachineError(
                    "memory does not suffice to judge a single completion",
                    where="method.reinforcement.grader",
                    remedy="shorten the judge's prompt, or take a smaller judge, or one behind a server",
                ) from error
        else:
            return
        for group in groups:
            yield from self._within_memory([group])

    def _pass(self, groups: Sequence[TokenGroup]) -> list[tuple[float, ...]]:
        batch = pack(self._padded(groups), self._model.device, are_apart=True)
        with torch.no_grad():
            logprobs = self._model.score(batch, temperature=1.0).logprobs.double().sum(1)
        if not logprobs.isfinite().all():
            raise NotFiniteError
        sizes = [len(group.completions) for group in groups]
        own = torch.split(logprobs[: sum(sizes)], sizes)
        return [tuple(one.softmax(0).tolist()) for one in own]

    def _padded(self, groups: Sequence[TokenGroup]) -> list[TokenGroup]:
        """With a group behind them that is there for the number of rows alone: those of the layers become one at
        which rows are independent, those of the head whole chunks."""
        if self._invariance is None or not self._most_rows:
            return list(groups)
        num_rows = 1 + sum(group.num_input_tokens for group in groups)
        num_targets = sum(len(ids) for group in groups for ids in group.completions)
        spare = 1 + self._invariance.padded_prompts(num_rows) - num_rows
        return [*groups, TokenGroup((0,) * spare, ((0,),) * (-num_targets % CHUNK_TOKENS or 1))]
