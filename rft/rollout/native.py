"""The native sampler: each prompt computed once, one slot per live completion, refilled as rows finish.

A completion depends on its prompt, its uniforms and the weights, never on its neighbours: linear layers
never see fewer rows than `row_invariance` found safe, attention runs per row, and prompts are computed alone.

B live rows, V vocabulary.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rft.errors import ModelError
from rft.linear import Product
from rft.policy import Policy
from rft.rollout.draw import Drawn, draw
from rft.rollout.graphs import (
    CudaRecorder,
    DecodeGraphs,
    Recorder,
    RecorderWithFallback,
    SlotStep,
)
from rft.rollout.invariance import RowInvariance, row_invariance
from rft.rollout.randomness import uniforms
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.slots import Prefill, Slots
from rft.rollout.transcribe import Transcriber


@dataclass(slots=True)
class _Live:
    """A completion being decoded."""

    request: int
    sample: int
    uniforms: NDArray[np.float64]
    prompt_length: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed_tokens: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the newest token stands: it is the next input."""
        return self.prompt_length + len(self.token_ids) - 1


class NativeSampler:
    """Samples from the policy with a merged float32 copy, or through the adapter where none is exact."""

    def __init__(
        self,
        policy: Policy,
        transcriber: Transcriber,
        num_slots: int,
        recorder: Recorder | None = None,
    ):
        """`recorder`: how decoding steps are repeated; None = CUDA graphs on such a device, else not at all."""
        self._policy = policy
        self._transcriber = transcriber
        self._model: PreTrainedModel = policy.base
        self._products: Sequence[Product] = ()
        if policy.merges_exactly:
            self._model, self._products = policy.merged.model, policy.merged.products
        self.invariance: RowInvariance = row_invariance(
            self._model, policy.head, num_slots, self._products
        )
        self._num_slots = num_slots
        self._slots: Slots | None = None
        if recorder is None and policy.device.type == "cuda":
            recorder = RecorderWithFallback(CudaRecorder(policy.device))
        self._recorder = recorder
        self._graphs: DecodeGraphs | None = None
        self.calls: Counter[tuple[str, int]] = Counter()
        """How often the model ran, by stage (`prefill`, `decode`) and rows of its matrix products."""
        self._spent: defaultdict[str, float] = defaultdict(float)

    @property
    def is_exact(self) -> bool:
        """Whether sampling logprobs are the trainer's up to float32 rounding."""
        return self._policy.merges_exactly

    @property
    def facts(self) -> Mapping[str, object]:
        invariance = self.invariance
        return {
            "sampler": "native",
            "bitwise": invariance.is_bitwise,
            "min_rows": invariance.min_rows,
            **(self._recorder.facts if self._recorder else {}),
        }

    @property
    def spent(self) -> Mapping[str, float]:
        return dict(self._spent)

    def refresh(self) -> None:
        self._policy.refresh()

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        if self.is_exact:
            self._policy.merged.require_fresh()
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        slots = self._slots_for(longest + settings.max_tokens)
        waiting = deque(range(len(requests)))
        ready: deque[tuple[_Live, Prefill, Tensor]] = deque()
        live: list[_Live] = []
        while waiting or ready or live:
            while len(live) < self._num_slots and (waiting or ready):
                if not ready:
                    began = time.monotonic()
                    ready += self._prefill(waiting.popleft(), requests, settings)
                    self._count("prefill", ready[0][0].prompt_length, began)
                live += self._admit(ready, slots, len(live), settings)
                yield from self._retire(live, slots, requests, settings)
            if live:
                began = time.monotonic()
                self._decode(live, slots, settings)
                self._count("decode", len(live), began)
                yield from self._retire(live, slots, requests, settings)

    def _count(self, stage: str, num_tokens: int, began: float) -> None:
        self.calls[stage, max(num_tokens, self.invariance.min_rows)] += 1
        self._spent[stage] += time.monotonic() - began
        self._spent[f"{stage}_tokens"] += num_tokens

    def _slots_for(self, capacity: int) -> Slots:
        if self._slots is None or self._slots.capacity < capacity:
            num_slots = self.invariance.padded(self._num_slots)
            self._slots = Slots(num_slots, capacity, self._policy.device)
            self._graphs = self._graphs_of(self._slots)
        if self._graphs:
            self._graphs.begin()
        return self._slots

    def _graphs_of(self, slots: Slots) -> DecodeGraphs | None:
        if self._recorder is None:
            return None
        step = SlotStep(self._model, self._policy.head, slots, self._products)
        return DecodeGraphs(step, self._recorder, self.invariance.min_rows)

    def _prefill(
        self, index: int, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[tuple[_Live, Prefill, Tensor]]:
        """Compute one prompt alone: all its completions, ready to be admitted."""
        request = requests[index]
        length = len(request.prompt_ids)
        num_padded = max(length, self.invariance.min_rows)
        padding = (0,) * (num_padded - length)
        input_ids = torch.tensor([request.prompt_ids + padding], device=self._policy.device)
        positions = torch.arange(num_padded, device=self._policy.device)[None]
        prefill = Prefill(length)
        hidden = self._hidden(input_ids, positions, prefill)[0, length - 1 : length]
        logits = self._logits(hidden)
        if not logits.isfinite().all():
            raise ModelError(
                "the model's logits are not finite",
                where="engine.model.dtype",
                remedy="use float32 or bfloat16; if it is so already, the weights are damaged",
            )
        return [
            (_Live(index, sample, _uniforms_of(request, sample, settings), length), prefill, logits)
            for sample in range(request.num_samples)
        ]

    def _admit(
        self,
        ready: deque[tuple[_Live, Prefill, Tensor]],
        slots: Slots,
        first_slot: int,
        settings: SamplingSettings,
    ) -> list[_Live]:
        """Give free slots to completions of one prompt and draw their first tokens from its logits."""
        admitted: list[_Live] = []
        logits = ready[0][2]
        while ready and ready[0][2] is logits and first_slot + len(admitted) < self._num_slots:
            completion, prefill, _ = ready.popleft()
            slots.fill(first_slot + len(admitted), prefill)
            admitted.append(completion)
        self._append(admitted, logits.expand(len(admitted), -1), settings)
        return admitted

    def _decode(self, live: list[_Live], slots: Slots, settings: SamplingSettings) -> None:
        """One token for every live row."""
        if self._graphs:
            self._take(live, self._graphs.step(*_inputs(live), settings), settings)
            return
        num_rows = self.invariance.padded(len(live))
        spare = [0] * (num_rows - len(live))
        last_ids = [row.token_ids[-1] for row in live] + spare
        positions = torch.tensor([row.position for row in live] + spare, device=self._policy.device)
        input_ids = torch.tensor(last_ids, device=self._policy.device)[:, None]
        slots.begin_step(positions, max(row.position for row in live))
        hidden = self._hidden(input_ids, positions[:, None], slots)[:, 0]
        self._append(live, self._logits(hidden)[: len(live)], settings)

    def _append(
        self, rows: list[_Live], logits: Float[Tensor, "B V"], settings: SamplingSettings
    ) -> None:
        points = [row.uniforms[len(row.token_ids)] for row in rows]
        uniforms = torch.tensor(points, dtype=torch.float32, device=logits.device)
        self._take(rows, draw(logits, uniforms, settings.temperature, settings.top_p), settings)

    def _take(self, rows: list[_Live], drawn: Drawn, settings: SamplingSettings) -> None:
        token_ids, logprobs = drawn.token_ids.tolist(), drawn.logprobs.tolist()
        for index, row in enumerate(rows):
            row.token_ids.append(token_ids[index])
            row.logprobs.append(logprobs[index])
            if drawn.allowed_tokens is not None and settings.keeps_allowed_tokens:
                row.allowed_tokens.append(drawn.allowed_tokens[index])

    def _retire(
        self,
        live: list[_Live],
        slots: Slots,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
    ) -> Iterator[Sampled]:
        """Take finished rows out of `live`, keeping the others in slots 0…B−1."""
        index = 0
        while index < len(live):
            row = live[index]
            reason = self._transcriber.finish_reason(row.token_ids, settings)
            if reason is None:
                index += 1
                continue
            last = live.pop()
            if last is not row:
                slots.move(len(live), index, last.position)
                live[index] = last
            allowed = np.stack(row.allowed_tokens) if row.allowed_tokens else None
            completion = self._transcriber.completion(
                row.token_ids,
                row.logprobs,
                reason,
                requests[row.request].prompt_ids,
                settings,
                allowed,
            )
            yield Sampled(row.request, row.sample, completion)

    def _hidden(self, input_ids: Tensor, positions: Tensor, layout: Prefill | Slots) -> Tensor:
        decoder = self._model.get_decoder()
        output = decoder(
            input_ids=input_ids, position_ids=positions, use_cache=False, layout=layout
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _logits(self, hidden: Float[Tensor, "B E"]) -> Float[Tensor, "B V"]:
        num_rows = self.invariance.padded(len(hidden))
        spare = hidden[:1].expand(num_rows - len(hidden), -1)
        return self._policy.head.logits(torch.cat([hidden, spare]))[: len(hidden)]


def _inputs(live: list[_Live]) -> tuple[list[int], list[int], list[float]]:
    """Newest token, its position and the uniform of the next token, of every row."""
    return (
        [row.token_ids[-1] for row in live],
        [row.position for row in live],
        [float(row.uniforms[len(row.token_ids)]) for row in live],
    )


def _uniforms_of(
    request: SampleRequest, sample: int, settings: SamplingSettings
) -> NDArray[np.float64]:
    return uniforms(
        request.seed, request.purpose, request.step, request.ordinal, sample, settings.max_tokens
    )
