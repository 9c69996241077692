"""Key-value memory of the native sampler: prompts computed once, then one slot per live completion.

B live rows, K key-value heads, R query heads per key-value head, D head width, W that of the values, P prompt
tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rft.attention import AttentionKind, as_bias, causal_bias, masked_attention

LENGTH_BUCKET = 32
"""Key lengths are rounded up to this: matrix kernels switch with the size of the product, and a row must
not see through its arithmetic how long its neighbours are."""


class Prefill:
    """Keys and values of one prompt, by layer, without those of the tokens it shares with others."""

    def __init__(self, length: int, prefix: "Prefill | None" = None):
        """`length`: of the whole prompt; `prefix`: of what it goes on from."""
        self.length = length
        self.prefix = prefix
        self.token = object()
        """Tells it from others, also when its keys and values are gone."""
        self.keys: dict[int, Float[Tensor, "K P D"]] = {}
        self.values: dict[int, Float[Tensor, "K P D"]] = {}

    @property
    def start(self) -> int:
        """Where its own tokens begin."""
        return self.prefix.length if self.prefix else 0


class PromptPass:
    """Layout of several prompts in one row, each computed as if alone behind its prefix, which stands before it
    in the row or was computed earlier; what is left of the row is padding."""

    def __init__(self, prompts: Sequence[Prefill]):
        self._prompts = tuple(prompts)
        self._biases: dict[tuple[int, int, int | None], Tensor | None] = {}
        """Made once for all layers."""

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs, start = [], 0
        for prompt in self._prompts:
            part = slice(start, start + prompt.length - prompt.start)
            # copies: views would keep the queries and the other prompts of the pass alive
            prompt.keys[kind.layer] = key[0, :, part].clone()
            prompt.values[kind.layer] = value[0, :, part].clone()
            keys, values = key[:, :, part], value[:, :, part]
            if prompt.prefix:
                keys = torch.cat([prompt.prefix.keys[kind.layer][None], keys], dim=2)
                values = torch.cat([prompt.prefix.values[kind.layer][None], values], dim=2)
            own = query[:, :, part]
            place = own.shape[2], prompt.start, kind.sliding_window
            if place not in self._biases:
                self._biases[place] = causal_bias(own, prompt.start, kind.sliding_window)
            outputs.append(masked_attention(kind, own, keys, values, self._biases[place]))
            start = part.stop
        padding = query.new_zeros(*query.shape[:2], query.shape[2] - start, value.shape[-1])
        return torch.cat([*outputs, padding], dim=2)


class KeyValues:
    """Keys and values of S sequences side by side, each at most C tokens long, by layer."""

    def __init__(self, num_sequences: int, capacity: int):
        """`capacity`: tokens of a sequence; it is rounded up."""
        self.num_sequences = num_sequences
        self.capacity: int = in_buckets(capacity)
        self.keys: dict[int, Float[Tensor, "S K C D"]] = {}
        self.values: dict[int, Float[Tensor, "S K C W"]] = {}
        self._stores: list[Float[Tensor, "N S K C D"]] = []
        """What `keys` and `values` are parts of: all of one shape together."""
        self._positions = torch.zeros(0, dtype=torch.long)
        self._places: dict[int, Tensor] = {}

    def fill(self, first: int, prefill: Prefill, count: int = 1) -> None:
        """Copy a prompt's keys and values, those of its prefix too, into so many sequences from this one on."""
        self.make_room(prefill)
        if prefill.prefix:
            self.fill(first, prefill.prefix, count)
        sequences, places = slice(first, first + count), slice(prefill.start, prefill.length)
        for store, source in ((self.keys, prefill.keys), (self.values, prefill.values)):
            for layer, tensor in source.items():
                store[layer][sequences, :, places] = tensor

    def make_room(self, prefill: Prefill) -> None:
        """Room for what every layer keeps of a token, as this prompt shows it; zeros, as what is not seen is
        multiplied by 0 all the same."""
        if self._stores:
            return
        parts: dict[tuple[int, int], list[tuple[dict[int, Tensor], int, Tensor]]] = {}
        for store, source in ((self.keys, prefill.keys), (self.values, prefill.values)):
            for layer, tensor in source.items():
                shape = tensor.shape[0], tensor.shape[2]
                parts.setdefault(shape, []).append((store, layer, tensor))
        for (heads, width), places in parts.items():
            size = len(places), self.num_sequences, heads, self.capacity, width
            self._stores.append(places[0][2].new_zeros(size))
            for index, (store, layer, _) in enumerate(places):
                store[layer] = self._stores[-1][index]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one sequence over another's."""
        for store in self._stores:
            store[:, target, :, :length] = store[:, source, :, :length]

    def begin_step(self, positions: Int[Tensor, " B"]) -> None:
        """Each layer is about to append a token to sequences 0…B−1 at `positions`."""
        self._positions = positions
        self._places = {}

    def append(
        self, layer: int, key: Float[Tensor, "B K 1 D"], value: Float[Tensor, "B K 1 W"]
    ) -> None:
        """This step's token of sequences 0…B−1."""
        places = self._places_of(key.shape[1])
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            store.view(-1, store.shape[-1]).index_copy_(0, places, new.flatten(0, 2))

    def _places_of(self, num_kv_heads: int) -> Int[Tensor, " BK"]:
        """Where in a layer's memory, taken as rows of one token and head, this step's tokens go."""
        if num_kv_heads not in self._places:
            rows = torch.arange(len(self._positions) * num_kv_heads, device=self._positions.device)
            positions = self._positions.repeat_interleave(num_kv_heads)
            self._places[num_kv_heads] = rows * self.capacity + positions
        return self._places[num_kv_heads]

    def first(
        self, count: int, length: int, layer: int
    ) -> tuple[Float[Tensor, "BK length D"], Float[Tensor, "BK length W"]]:
        """Keys and values of the first tokens of the first sequences."""
        return (
            _first_of(self.keys[layer], count, length),
            _first_of(self.values[layer], count, length),
        )


class Slots:
    """Layout of one decoding step: row b appends its token to slot b and sees that slot so far, which begins
    with a copy of its prompt."""

    def __init__(self, num_slots: int, capacity: int, device: torch.device):
        """`capacity`: tokens per slot."""
        self.memory = KeyValues(num_slots, capacity)
        self._offsets = torch.arange(self.memory.capacity, device=device)
        self._positions = torch.zeros(0, dtype=torch.long, device=device)
        self._length = 0
        self._bias: dict[tuple[int | None, int], Tensor] = {}

    def admit(self, slot: int, prefill: Prefill, count: int = 1) -> None:
        """Completions of one prompt take so many slots from this one on, the first that is free."""
        self.memory.fill(slot, prefill, count)

    def retire(self, slot: int, last: int, position: int) -> None:
        """The completion of `slot` has ended; that of the last taken slot, whose newest token would stand at
        `position`, takes its place."""
        if slot != last:
            self.memory.move(last, slot, position)

    def begin_step(self, positions: Int[Tensor, " B"], longest: int | None = None) -> None:
        """Rows 0…B−1 are about to append at `positions`, none beyond `longest`; None: the largest of them."""
        self._positions = positions
        self._length = in_buckets((int(positions.max()) if longest is None else longest) + 1)
        self.memory.begin_step(positions)
        self._bias = {}

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        num_rows, num_heads, _, width = query.shape
        num_kv_heads = key.shape[1]
        self.memory.append(kind.layer, key, value)
        output = grouped_attention(
            query.reshape(num_rows * num_kv_heads, -1, width),
            *self.memory.first(num_rows, self._length, kind.layer),
            self._visibility_bias(kind.sliding_window, num_kv_heads),
            kind,
        )
        return output.view(num_rows, num_heads, 1, -1)

    def _visibility_bias(
        self, window: int | None, num_kv_heads: int
    ) -> Float[Tensor, "BK 1 length"]:
        if (window, num_kv_heads) not in self._bias:
            visible = seen_by(self._positions, self._offsets[: self._length], window)
            bias = as_bias(visible, torch.float32).repeat_interleave(num_kv_heads, dim=0)
            self._bias[window, num_kv_heads] = bias[:, None]
        return self._bias[window, num_kv_heads]


def _first_of(
    store: Float[Tensor, "S K C D"], count: int, length: int
) -> Float[Tensor, "BK length D"]:
    """store[:count, :, :length] with sequences and heads as one axis, in one operation: every layer of every step
    asks for four of them."""
    num_sequences, num_heads, capacity, width = store.shape
    assert count <= num_sequences and length <= capacity  # else the memory of others would be read
    return store.as_strided((count * num_heads, length, width), (capacity * width, width, 1))


def in_buckets(length: int) -> int:
    """The smallest whole number of buckets that holds so many tokens."""
    return -(-length // LENGTH_BUCKET) * LENGTH_BUCKET


def seen_by(
    positions: Int[Tensor, " B"], key_positions: Int[Tensor, " S"], window: int | None
) -> Bool[Tensor, "B S"]:
    """Whether a token at each of `positions` sees the keys."""
    seen = key_positions <= positions[:, None]
    if window is not None:
        seen &= key_positions > positions[:, None] - window
    return seen


def grouped_attention(
    query: Float[Tensor, "BK R D"],
    keys: Float[Tensor, "BK L D"],
    values: Float[Tensor, "BK L W"],
    bias: Float[Tensor, "BK 1 L"],
    kind: AttentionKind,
) -> Float[Tensor, "BK R W"]:
    """One query token per row against its slot, without repeating keys for the heads that share them."""
    if kind.softcap is None and query.dtype == bias.dtype:
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=kind.scaling)
    else:
        scores = (query * kind.scaling) @ keys.transpose(1, 2)  # (B · K, R, L)
        if kind.softcap is not None:
            scores = kind.softcap * torch.tanh(scores / kind.softcap)
        scores = scores.float() + bias
    return scores.softmax(-1).to(values.dtype) @ values
