"""Decoding on a device in few launches: the kernels of a step are recorded once per shape and replayed.

A step of a small model is some fifty kernels a layer, each cheaper to run than to launch. Recorded as a
CUDA graph they are launched together. A recording has fixed shapes and addresses, so rows and key lengths
are rounded up to buckets, inputs and outputs live in buffers that never move, and what must not move
besides (weights, keys, values) is compared before each sampling. A token costs one copy to the device, two
launches (the decoder by rows and length; head and draw by rows and settings) and one copy back.

R rows of a bucket, B live rows, E hidden width, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from rft.head import Head
from rft.linear import Product
from rft.rollout.draw import Drawn, draw
from rft.rollout.invariance import ROW_MULTIPLE
from rft.rollout.recorders import Kernels, Recorder, Recording
from rft.rollout.sampler import SamplingSettings
from rft.rollout.slots import LENGTH_BUCKET, Slots

MAX_RECORDINGS = 96
"""Beyond it the one unused for longest goes."""

MAX_RECORDING_BYTES = 2 * 2**30
"""Device memory that recordings may hold together."""


@dataclass(frozen=True)
class SlotStep:
    """One token for rows 0…R−1 of the slots, as work on tensors alone."""

    model: PreTrainedModel
    head: Head
    slots: Slots
    products: Sequence[Product] = ()
    """Matrices of the model that are no tensors of its modules."""

    def hidden(
        self, input_ids: Int[Tensor, "R 1"], positions: Int[Tensor, "R 1"], length: int
    ) -> Float[Tensor, "R E"]:
        """Append the tokens at their positions, all below `length`, and compute what follows from them."""
        self.slots.begin_step(positions[:, 0], length - 1)
        output = self.model.get_decoder()(
            input_ids=input_ids, position_ids=positions, use_cache=False, layout=self.slots
        )
        return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]

    def tensors(self) -> Iterable[Tensor]:
        """What a recording reads and writes outside its own memory, besides `products`."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield self.head.weight
        yield from self.slots.memory.keys.values()
        yield from self.slots.memory.values.values()

    def fingerprint(self) -> Hashable:
        """Equal as long as a recording made before still does what this step does now."""
        places = [(t.data_ptr(), t.shape, t.dtype) for t in self.tensors()]
        products = [product.addresses for product in self.products]
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        adapters = [(layer.disable_adapters, tuple(layer.active_adapters)) for layer in layers]
        return tuple(places), tuple(products), tuple(adapters)


class DecodeGraphs:
    """Decoding steps of one set of slots, recorded when a shape is first met."""

    def __init__(self, step: SlotStep, recorder: Recorder, min_rows: int = 1):
        """`min_rows`: fewer are never computed together."""
        num_rows = step.slots.memory.num_sequences
        self._recorder = recorder
        self._step = step
        self._row_buckets = row_buckets(num_rows, min_rows)
        self._length_buckets = length_buckets(step.slots.memory.capacity)
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._fingerprint: Hashable = None
        weight = step.head.weight
        self._device, is_cuda = weight.device, weight.is_cuda
        with torch.inference_mode(False):
            self._staged = torch.zeros(3, num_rows, dtype=torch.long, pin_memory=is_cuda)
            self._inputs = torch.zeros_like(self._staged, device=self._device, pin_memory=False)
            self._hidden = weight.new_zeros(num_rows, weight.shape[1])
            self._drawn = self._inputs.new_zeros(2, num_rows, dtype=torch.float64)
            self._fetched = torch.zeros(2, num_rows, dtype=torch.float64, pin_memory=is_cuda)
        self._token_ids, self._positions = self._inputs[0], self._inputs[1]
        self._uniforms = self._inputs[2].view(torch.float64)  # one copy brings all three

    @property
    def slots(self) -> Slots:
        return self._step.slots

    @property
    def num_recordings(self) -> int:
        return len(self._recordings)

    def begin(self) -> None:
        """To be called before each sampling: recordings of weights or slots that moved are dropped."""
        if self._recordings and self._fingerprint != self._step.fingerprint():
            self._recordings.clear()

    @torch.inference_mode()
    def step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        uniforms: Sequence[float],
        settings: SamplingSettings,
        allowed: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> Drawn:
        """The next token of live row b, which stands in slot b, after `token_ids[b]` at `positions[b]`.

        `allowed` gives (B, ceil(V / 8)) bits of the tokens to draw from, or None for all; it is called while the
        device computes. Gives tensors on the CPU; on the device where some tokens are left out.
        """
        num_live = len(token_ids)
        num_rows = _bucket(num_live, self._row_buckets)
        length = _bucket(max(positions) + 1, self._length_buckets)
        self._stage(token_ids, positions, uniforms)
        self._run(("decoder", num_rows, length), self._decoder_kernels(num_rows, length))
        open_tokens = allowed()
        has_nucleus = settings.top_p < 1 and settings.temperature > 0
        if has_nucleus or open_tokens is not None:  # which tokens were open leaves the device
            logits = self._step.head.logits(self._hidden[:num_rows])[:num_live]
            points = self._uniforms[:num_live].float()
            return draw(logits, points, settings.temperature, settings.top_p, open_tokens)
        drawing = "draw", num_rows, settings.temperature
        self._run(drawing, self._draw_kernels(num_rows, settings))
        self._fetched.copy_(self._drawn, non_blocking=True)
        if self._fetched.is_pinned():
            torch.cuda.current_stream(self._device).synchronize()
        drawn_ids, logprobs = self._fetched[:, :num_live]
        return Drawn(drawn_ids.long(), logprobs.float(), None)

    def _stage(
        self, token_ids: Sequence[int], positions: Sequence[int], uniforms: Sequence[float]
    ) -> None:
        """Bring the inputs to the device. Spare rows append token 0 at position 0 of the free slot they
        stand in, which the next prompt overwrites."""
        staged = self._staged.numpy()
        staged[:] = 0
        live = slice(len(token_ids))
        staged[0, live], staged[1, live] = token_ids, positions
        staged[2].view("f8")[live] = uniforms
        self._inputs.copy_(self._staged, non_blocking=True)

    def _decoder_kernels(self, num_rows: int, length: int) -> Kernels:
        input_ids, positions = self._token_ids[:num_rows, None], self._positions[:num_rows, None]

        def kernels() -> None:
            self._hidden[:num_rows] = self._step.hidden(input_ids, positions, length)

        return kernels

    def _draw_kernels(self, num_rows: int, settings: SamplingSettings) -> Kernels:
        def kernels() -> None:
            logits = self._step.head.logits(self._hidden[:num_rows])
            points = self._uniforms[:num_rows].float()
            drawn = draw(logits, points, settings.temperature, 1.0)
            self._drawn[0, :num_rows], self._drawn[1, :num_rows] = drawn.token_ids, drawn.logprobs

        return kernels

    def _run(self, key: Hashable, kernels: Kernels) -> None:
        if key not in self._recordings:
            if not self._recordings:
                self._fingerprint = self._step.fingerprint()
            self._recordings[key] = self._recorder.record(kernels)
            self._forget_oldest()
        self._recordings.move_to_end(key)
        self._recordings[key].replay()

    def _forget_oldest(self) -> None:
        while len(self._recordings) > 1 and (
            len(self._recordings) > MAX_RECORDINGS
            or sum(one.num_bytes for one in self._recordings.values()) > MAX_RECORDING_BYTES
        ):
            self._recordings.popitem(last=False)


def row_buckets(num_rows: int, min_rows: int) -> tuple[int, ...]:
    """Row counts that are recorded: 2ᵏ and 3 · 2ᵏ times ROW_MULTIPLE, from `min_rows` on, and `num_rows` itself."""
    steps = sorted(base << k for base in (2, 3) for k in range(num_rows.bit_length()))
    counts = [step * ROW_MULTIPLE for step in steps]
    return (*(n for n in (ROW_MULTIPLE, *counts) if min_rows <= n < num_rows), num_rows)


def length_buckets(capacity: int) -> tuple[int, ...]:
    """Key lengths that are recorded: whole `LENGTH_BUCKET`s, at most a quarter more than are needed."""
    steps = sorted(base << k for base in (4, 5, 6, 7) for k in range(capacity.bit_length()))
    lengths = [LENGTH_BUCKET, 2 * LENGTH_BUCKET, 3 * LENGTH_BUCKET]
    lengths += [step * LENGTH_BUCKET for step in steps]
    return (*(n for n in lengths if n < capacity), capacity)


def _bucket(needed: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds what is needed."""
    return next(bucket for bucket in buckets if bucket >= needed)
