"""The native sampler: each prompt computed once, one slot per live completion, refilled as rows finish.

A completion depends on its prompt, its uniforms and the weights, never on its neighbours: linear layers
see only numbers of rows that `row_invariance` found safe, and attention runs per row and per prompt.

B live rows, V vocabulary.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from llguidance import LLMatcher
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rft.linear import Product
from rft.packing import is_worth_sharing
from rft.policy import BareModel, Policy
from rft.rollout.draw import Drawn, draw
from rft.rollout.grammar import Grammars
from rft.rollout.graphs import DecodeGraphs, SlotStep
from rft.rollout.invariance import RowInvariance, row_invariance
from rft.rollout.randomness import uniforms
from rft.rollout.recorders import CudaRecorder, Recorder, RecorderWithFallback
from rft.rollout.sampler import (
    NotFiniteError,
    Sampled,
    SampleRequest,
    SamplingSettings,
    require_finite,
)
from rft.rollout.shared_slots import SharedSlots
from rft.rollout.slots import Prefill, PromptPass, Slots
from rft.rollout.transcribe import Transcriber

AnySlots = Slots | SharedSlots


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens to compute in a pass over prompts: those that a prompt has for itself, or the job's prefix."""

    request: int | None
    """None: the prefix."""
    token_ids: tuple[int, ...]
    prefill: Prefill


@dataclass(slots=True)
class _Live:
    """A completion being decoded."""

    request: int
    sample: int
    uniforms: NDArray[np.float64]
    prompt_length: int
    matcher: LLMatcher | None
    """Where the completion is in the grammar of its schema."""
    is_stuck: bool = False
    """The grammar has become too complex to go on: the completion ends here, truncated."""
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
        policy: Policy | BareModel,
        transcriber: Transcriber,
        num_slots: int,
        recorder: Recorder | None = None,
    ):
        """`recorder`: how decoding steps are repeated; None = CUDA graphs on such a device, else not at all."""
        self._policy = policy
        self._transcriber = transcriber
        self._model: PreTrainedModel = policy.base
        self._products: Sequence[Product] = ()
        if policy.uses_merged:
            self._model, self._products = policy.merged.model, policy.merged.products
        self.invariance: RowInvariance = row_invariance(
            self._model, policy.head, num_slots, self._products
        )
        self._grammars = Grammars(
            transcriber.tokenizer,
            transcriber.end_token_ids,
            len(policy.head.weight),
            torch.get_num_threads(),
        )
        self._num_slots = num_slots
        if recorder is None and policy.device.type == "cuda":
            recorder = RecorderWithFallback(CudaRecorder(policy.device))
        self._recorder = recorder
        self._graphs: DecodeGraphs | None = None
        self._prefix_ids: tuple[int, ...] = ()
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
            "layers": "lean"
            if self._policy.uses_merged and self._policy.merged.is_lean
            else "plain",
            "bitwise": invariance.is_bitwise,
            "min_rows": invariance.min_rows,
            **(self._recorder.facts if self._recorder else {}),
        }

    @property
    def spent(self) -> Mapping[str, float]:
        return dict(self._spent)

    def refresh(self) -> None:
        self._policy.refresh()

    def share_prefix(self, prefix_ids: Sequence[int]) -> None:
        self._prefix_ids = tuple(prefix_ids)

    @property
    def num_slots(self) -> int:
        """Completions decoded side by side."""
        return self._num_slots

    def halve_slots(self) -> None:
        """Decode half as many completions side by side from now on, at least one."""
        self._num_slots = max(1, self._num_slots // 2)
        self.release_memory()

    def release_memory(self) -> bool:
        """Give back slots and recordings, which the next `sample` makes again; whether there were any."""
        had_any = self._graphs is not None
        self._graphs = None
        return had_any

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        if self.is_exact:
            self._policy.merged.begin_pass()
        slots = self._slots_for(requests, settings.max_tokens)
        waiting = deque(self._pieces(requests))
        ready: deque[tuple[_Live, Prefill, Tensor]] = deque()
        live: list[_Live] = []
        while waiting or ready or live:
            while len(live) < self._num_slots and (waiting or ready):
                while not ready:
                    together = self._next_pieces(waiting, requests, self._num_slots - len(live))
                    ready += self._prefill(together, requests, settings)
                live += self._admit(ready, slots, len(live), settings)
                yield from self._retire(live, slots, requests, settings)
            if live:
                self._decode(live, slots, settings)
                yield from self._retire(live, slots, requests, settings)

    @contextmanager
    def _counted(self, stage: str, num_tokens: int, num_rows: int) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.calls[stage, num_rows] += 1
        self._spent[stage] += time.monotonic() - began
        self._spent[f"{stage}_tokens"] += num_tokens

    def _pieces(self, requests: Sequence[SampleRequest]) -> Iterator[_Piece]:
        """One per prompt, behind that of the prefix where there are prompts that go on from it."""
        shared = Prefill(len(self._prefix_ids))
        pieces = []
        for index, request in enumerate(requests):
            ids = request.prompt_ids
            goes_on = ids[: shared.length] == self._prefix_ids != ids
            shares = shared.length and goes_on and is_worth_sharing(shared.length, len(ids))
            prefill = Prefill(len(ids), shared if shares else None)
            pieces.append(_Piece(index, ids[prefill.start :], prefill))
        if any(piece.prefill.prefix for piece in pieces):
            yield _Piece(None, self._prefix_ids, shared)
        yield from pieces

    def _next_pieces(
        self, waiting: deque[_Piece], requests: Sequence[SampleRequest], num_free: int
    ) -> list[_Piece]:
        """Take from `waiting` what to compute in one pass: as much as slots and rows ask for."""
        together: list[_Piece] = []
        num_samples = num_tokens = 0
        while waiting and num_samples < num_free:
            piece = waiting[0]
            num_tokens += len(piece.token_ids)
            if together and num_tokens > self.invariance.max_prompt_rows:
                break
            together.append(waiting.popleft())
            if piece.request is not None:
                num_samples += requests[piece.request].num_samples
        return together

    def _slots_for(self, requests: Sequence[SampleRequest], max_tokens: int) -> AnySlots:
        num_slots, device = self.invariance.padded(self._num_slots), self._policy.device
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        row_multiple = self.invariance.prompt_row_multiple
        if self._recorder is None and row_multiple:
            num_prompts = min(self._num_slots, len(requests))
            return SharedSlots(num_slots, max_tokens, num_prompts, longest, device, row_multiple)
        capacity = longest + max_tokens
        if self._recorder is None:
            return Slots(num_slots, capacity, device)
        # kept between calls: recordings would have to be made again
        if self._graphs is None or self._graphs.slots.memory.capacity < capacity:
            slots = Slots(num_slots, capacity, device)
            step = SlotStep(self._model, self._policy.head, slots, self._products)
            self._graphs = DecodeGraphs(step, self._recorder, self.invariance.min_rows)
        self._graphs.begin()
        return self._graphs.slots

    def _prefill(
        self,
        together: Sequence[_Piece],
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
    ) -> list[tuple[_Live, Prefill, Tensor]]:
        """Compute prompts in one pass: all their completions, ready to be admitted."""
        prefills = [piece.prefill for piece in together]
        lengths = torch.tensor([len(piece.token_ids) for piece in together])
        num_rows = self.invariance.padded_prompts(int(lengths.sum()))
        spare = [0] * (num_rows - int(lengths.sum()))
        input_ids = torch.tensor([[*chain.from_iterable(p.token_ids for p in together), *spare]])
        positions = [*(torch.arange(p.start, p.length) for p in prefills), torch.tensor(spare)]
        device = self._policy.device
        with self._counted("prefill", int(lengths.sum()), num_rows):
            hidden = self._hidden(
                input_ids.to(device),
                torch.cat(positions)[None].long().to(device),
                PromptPass(prefills),
            )
            asked = {place: p.request for place, p in enumerate(together) if p.request is not None}
            if not asked:
                return []
            ends = (lengths.cumsum(0) - 1)[list(asked)]
            logits = self._logits(hidden[0, ends.to(device)])
            if not logits.isfinite().all():
                raise NotFiniteError
        return [
            (
                self._live(index, sample, requests[index], settings),
                prefills[place],
                logits[row : row + 1],
            )
            for row, (place, index) in enumerate(asked.items())
            for sample in range(requests[index].num_samples)
        ]

    def _live(
        self, index: int, sample: int, request: SampleRequest, settings: SamplingSettings
    ) -> _Live:
        schema = settings.schema
        matcher = (
            None
            if schema is None
            else self._grammars.start(schema, request.prompt_ids, settings.may_think)
        )
        points = _uniforms_of(request, sample, settings)
        return _Live(index, sample, points, len(request.prompt_ids), matcher)

    def _admit(
        self,
        ready: deque[tuple[_Live, Prefill, Tensor]],
        slots: AnySlots,
        first_slot: int,
        settings: SamplingSettings,
    ) -> list[_Live]:
        """Give free slots to completions of one prompt and draw their first tokens from its logits."""
        admitted: list[_Live] = []
        prompt, logits = ready[0][1:]
        while ready and ready[0][1] is prompt and first_slot + len(admitted) < self._num_slots:
            admitted.append(ready.popleft()[0])
        slots.admit(first_slot, prompt, len(admitted))
        self._append(admitted, logits.expand(len(admitted), -1), settings)
        return admitted

    def _decode(self, live: list[_Live], slots: AnySlots, settings: SamplingSettings) -> None:
        """One token for every live row."""
        num_rows = self.invariance.padded(len(live))
        with self._counted("decode", len(live), num_rows):
            if self._graphs:
                drawn = self._graphs.step(*_inputs(live), settings, lambda: self._allowed(live))
                self._take(live, drawn, settings)
            else:
                self._decode_eagerly(live, num_rows, slots, settings)

    def _decode_eagerly(
        self, live: list[_Live], num_rows: int, slots: AnySlots, settings: SamplingSettings
    ) -> None:
        spare = [0] * (num_rows - len(live))
        last_ids = [row.token_ids[-1] for row in live] + spare
        positions = torch.tensor([row.position for row in live] + spare, device=self._policy.device)
        input_ids = torch.tensor(last_ids, device=self._policy.device)[:, None]
        slots.begin_step(positions)
        hidden = self._hidden(input_ids, positions[:, None], slots)[:, 0]
        self._append(live, self._logits(hidden)[: len(live)], settings)

    def _append(
        self, rows: list[_Live], logits: Float[Tensor, "B V"], settings: SamplingSettings
    ) -> None:
        points = [row.uniforms[len(row.token_ids)] for row in rows]
        uniforms = torch.tensor(points, dtype=torch.float32, device=logits.device)
        allowed = self._allowed(rows)
        drawn = draw(logits, uniforms, settings.temperature, settings.top_p, allowed)
        self._take(rows, drawn, settings)

    def _allowed(self, rows: list[_Live]) -> NDArray[np.uint8] | None:
        """The tokens each row may go on with, where a schema says so: for all rows or for none."""
        matchers = [row.matcher for row in rows if row.matcher is not None]
        return self._grammars.allowed(matchers) if matchers else None

    def _take(self, rows: list[_Live], drawn: Drawn, settings: SamplingSettings) -> None:
        token_ids, logprobs = drawn.token_ids.tolist(), drawn.logprobs.tolist()
        for index, row in enumerate(rows):
            if row.matcher is not None:
                row.is_stuck = row.matcher.is_error()
                if row.is_stuck:
                    continue
                row.matcher.consume_token(token_ids[index])
            row.token_ids.append(token_ids[index])
            row.logprobs.append(logprobs[index])
            if drawn.allowed_tokens is not None and settings.keeps_allowed_tokens:
                row.allowed_tokens.append(drawn.allowed_tokens[index].copy())  # not all rows'
        require_finite(logprobs)

    def _retire(
        self,
        live: list[_Live],
        slots: AnySlots,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
    ) -> Iterator[Sampled]:
        """Take finished rows out of `live`, keeping the others in slots 0…B−1."""
        index = 0
        while index < len(live):
            row = live[index]
            reason = self._transcriber.finish_reason(row.token_ids, settings)
            if row.is_stuck:
                reason = "length"
            if reason is None:
                index += 1
                continue
            last = live.pop()
            slots.retire(index, len(live), last.position)
            if last is not row:
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

    def _hidden(
        self, input_ids: Tensor, positions: Tensor, layout: PromptPass | AnySlots
    ) -> Tensor:
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
