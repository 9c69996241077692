"""From sampled token ids to a `Completion`: when it ends, and what graders read."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rft.models.thinking import ends_in_thinking, find_thinking
from rft.rollout.sampler import SamplingSettings
from rft.types import Completion, FinishReason

MARGIN = 16
"""Characters beyond a stop string that are decoded with it: the first ones of a part of a text may be others than in
the whole, where the cut goes through a character, or a space belongs to the token before."""


class Transcriber:
    """Knows the tokenizer and the tokens that end an answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int]):
        self.tokenizer = tokenizer
        self.end_token_ids = frozenset(end_token_ids)
        added = tokenizer.added_tokens_decoder.items()
        self._special_token_ids = {token_id for token_id, token in added if token.special}

    def finish_reason(
        self, token_ids: Sequence[int], settings: SamplingSettings
    ) -> FinishReason | None:
        """Why a completion ends with its newest token, or None while it goes on; to be asked at every token."""
        if token_ids[-1] in self.end_token_ids:
            return "stop"
        if settings.stop and self._has_stop(token_ids, settings.stop):
            return "stop"
        return "length" if len(token_ids) >= settings.max_tokens else None

    def _has_stop(self, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the newest token completes a stop string: the last tokens show it, and only where they do is the
        whole completion decoded."""
        enough = max(map(len, stop)) + MARGIN
        count = enough
        while True:
            tail = self._text(token_ids[-count:])
            if count >= len(token_ids):
                return _first_stop(tail, stop) is not None
            if len(tail) >= enough:
                break
            count *= 2  # special tokens are no text, and some characters are several tokens
        if _first_stop(tail, stop) is None:
            return False
        return _first_stop(self._text(token_ids), stop) is not None

    def completion(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: FinishReason,
        prompt_ids: Sequence[int],
        settings: SamplingSettings,
        allowed_tokens: NDArray[np.uint8] | None = None,
    ) -> Completion:
        ended = token_ids[-1] in self.end_token_ids
        answer_ids = (
            token_ids[:-1] if ended else token_ids
        )  # an end token need not be a special one
        text = self._text(answer_ids)
        is_json = settings.schema is not None
        num_reasoning_tokens, output_text = find_thinking(
            answer_ids, self.tokenizer, prompt_ids, only_at_start=is_json
        )
        cut = _first_stop(output_text, settings.stop)
        return Completion(
            token_ids=tuple(token_ids),
            sampling_logprobs=tuple(logprobs),
            finish_reason=finish_reason,
            text=text,
            output_text=output_text if cut is None else output_text[:cut],
            marked_text=self._marked_text(answer_ids, prompt_ids, settings),
            num_reasoning_tokens=num_reasoning_tokens,
            ends_in_thinking=num_reasoning_tokens > 0
            and ends_in_thinking(answer_ids, self.tokenizer, prompt_ids, is_json),
            allowed_tokens=allowed_tokens,
        )

    def _marked_text(
        self, answer_ids: Sequence[int], prompt_ids: Sequence[int], settings: SamplingSettings
    ) -> str | None:
        """The answer with its special tokens kept; None when it has none."""
        if self._special_token_ids.isdisjoint(answer_ids):
            return None
        marked = find_thinking(answer_ids, self.tokenizer, prompt_ids, skip_special_tokens=False)[1]
        cut = _first_stop(marked, settings.stop)
        return marked if cut is None else marked[:cut]

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins."""
    places = [place for place in (text.find(string) for string in stop) if place >= 0]
    return min(places, default=None)
