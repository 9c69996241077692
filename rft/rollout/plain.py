"""The plain sampler, for model families that the native one does not serve: prompts of equal length decode
together through the model's own cache, whatever that holds, until the last of them is finished. Slower.

B rows, t tokens so far, V vocabulary.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from llguidance import LLMatcher
from numpy.typing import NDArray
from torch import Tensor

from rft.policy import Policy
from rft.rollout.draw import draw
from rft.rollout.grammar import Grammars
from rft.rollout.randomness import uniforms
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings, require_finite
from rft.rollout.transcribe import Transcriber
from rft.types import FinishReason
from rft.unpacked import takes_logits_to_keep


@dataclass(slots=True)
class _Row:
    """A completion being decoded."""

    request: int
    sample: int
    prompt_ids: tuple[int, ...]
    uniforms: NDArray[np.float64]
    matcher: LLMatcher | None
    """Where the completion is in the grammar of its schema."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed_tokens: list[NDArray[np.uint8]] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class PlainSampler:
    """Samples through the adapter, unmerged, as the unpacked training pass sees it."""

    def __init__(
        self,
        policy: Policy,
        transcriber: Transcriber,
        num_slots: int,
        why_uncached: str | None = None,
    ):
        """`num_slots`: most rows that decode together. `why_uncached`: why the model's cache is not to be
        trusted, in words; each token then takes a pass over all before it."""
        self._policy = policy
        self._model = policy.base
        self._transcriber = transcriber
        self._num_slots = num_slots
        self._why_uncached = why_uncached
        self._uses_cache = why_uncached is None
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._grammars = Grammars(
            transcriber.tokenizer,
            transcriber.end_token_ids,
            len(self._model.get_output_embeddings().weight),
            torch.get_num_threads(),
        )

    @property
    def is_exact(self) -> bool:
        """Whether sampling logprobs are the trainer's up to float32 rounding."""
        return self._policy.merges_exactly

    @property
    def facts(self) -> Mapping[str, object]:
        facts = {"sampler": "plain", "why_plain": self._policy.why_unpacked, "bitwise": False}
        if self._why_uncached is None:
            return facts
        return {**facts, "sampler": "plain, uncached", "why_uncached": self._why_uncached}

    @property
    def spent(self) -> Mapping[str, float]:
        return dict(self._spent)

    def refresh(self) -> None:
        """Nothing is derived from the LoRA matrices."""

    def share_prefix(self, prefix_ids: Sequence[int]) -> None:
        """Prompts are computed whole: the model's own cache is not taken apart."""

    @property
    def num_slots(self) -> int:
        """Completions side by side, at most."""
        return self._num_slots

    def halve_slots(self) -> None:
        """Decode half as many from the next `sample` on, at least one."""
        self._num_slots = max(1, self._num_slots // 2)

    def release_memory(self) -> bool:
        """Nothing is kept between calls."""
        return False

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        by_length: defaultdict[int, list[_Row]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_length[len(request.prompt_ids)] += self._rows_of(index, request, settings)
        for rows in by_length.values():
            for first in range(0, len(rows), self._num_slots):
                yield from self._decode(rows[first : first + self._num_slots], settings)

    def _rows_of(
        self, index: int, request: SampleRequest, settings: SamplingSettings
    ) -> list[_Row]:
        key = (request.seed, request.purpose, request.step, request.ordinal)
        ids, schema = request.prompt_ids, settings.schema
        return [
            _Row(
                index,
                sample,
                ids,
                uniforms(*key, sample, settings.max_tokens),
                None if schema is None else self._grammars.start(schema, ids, settings.may_think),
            )
            for sample in range(request.num_samples)
        ]

    def _decode(self, rows: list[_Row], settings: SamplingSettings) -> Iterator[Sampled]:
        """Token after token for rows of equal length; a finished row stays and is not looked at."""
        device = self._policy.device
        input_ids = torch.tensor([row.prompt_ids for row in rows], device=device)  # (B, t)
        state: dict[str, object] = {
            "attention_mask": torch.ones_like(input_ids),
            "use_cache": self._uses_cache,
        }
        if takes_logits_to_keep(self._model):
            state["logits_to_keep"] = 1
        live, stage = list(range(len(rows))), "prefill"
        while live:
            began = time.monotonic()
            logits, state = self._next_logits(input_ids, state, is_first=stage == "prefill")
            self._append([rows[index] for index in live], logits[live], settings)
            newest = torch.tensor([row.token_ids[-1:] for row in rows], device=device)
            input_ids = torch.cat([input_ids, newest], dim=1)
            num_tokens = len(live) if stage == "decode" else len(rows) * len(rows[0].prompt_ids)
            self._spent[stage] += time.monotonic() - began
            self._spent[f"{stage}_tokens"] += num_tokens
            finished = [index for index in live if rows[index].finish_reason is not None]
            live = [index for index in live if rows[index].finish_reason is None]
            yield from (self._sampled(rows[index], settings) for index in finished)
            stage = "decode"

    def _next_logits(
        self, input_ids: Int[Tensor, "B t"], state: dict[str, object], is_first: bool
    ) -> tuple[Float[Tensor, "B V"], dict[str, object]]:
        """Logits after the newest token, float32, and the state as transformers' own generation keeps it."""
        inputs = self._model.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=1 if self._uses_cache and not is_first else None,
            is_first_iteration=is_first,
            **state,
        )
        output = self._model(**inputs, return_dict=True)
        logits = output.logits[:, -1].float()
        return logits, self._model._update_model_kwargs_for_generation(output, state)

    def _append(
        self, rows: list[_Row], logits: Float[Tensor, "B V"], settings: SamplingSettings
    ) -> None:
        points = [row.uniforms[len(row.token_ids)] for row in rows]
        matchers = [row.matcher for row in rows if row.matcher is not None]
        drawn = draw(
            logits,
            torch.tensor(points, dtype=torch.float32, device=logits.device),
            settings.temperature,
            settings.top_p,
            self._grammars.allowed(matchers) if matchers else None,
        )
        token_ids, logprobs = drawn.token_ids.tolist(), drawn.logprobs.tolist()
        require_finite(logprobs)
        for index, row in enumerate(rows):
            if row.matcher is not None:
                if row.matcher.is_error():  # too complex to go on: truncated here
                    row.finish_reason = "length"
                    continue
                row.matcher.consume_token(token_ids[index])
            row.token_ids.append(token_ids[index])
            row.logprobs.append(logprobs[index])
            if drawn.allowed_tokens is not None and settings.keeps_allowed_tokens:
                row.allowed_tokens.append(drawn.allowed_tokens[index].copy())  # not all rows'
            row.finish_reason = self._transcriber.finish_reason(row.token_ids, settings)

    def _sampled(self, row: _Row, settings: SamplingSettings) -> Sampled:
        assert row.finish_reason is not None
        completion = self._transcriber.completion(
            row.token_ids,
            row.logprobs,
            row.finish_reason,
            row.prompt_ids,
            settings,
            np.stack(row.allowed_tokens) if row.allowed_tokens else None,
        )
        return Sampled(row.request, row.sample, completion)
