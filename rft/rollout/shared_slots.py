"""Decoding rows that read their prompt's keys and values together, from one place in memory.

With a copy of the prompt in every slot, a step of a group of G completions reads G copies: decoding is bound by
that from some hundred tokens on. Here a slot holds what its completion has for itself. The queries of the rows
that go on from one prompt meet its keys in one product, their own keys in another; one softmax is over both.

B rows, p prompts, M rows of a prompt, K key-value heads, R query heads per key-value head, D head width, W that of
the values, P prompt tokens, L tokens of a completion.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rft.attention import AttentionKind, as_bias
from rft.rollout.slots import KeyValues, Prefill, in_buckets, seen_by

PROMPT_ROW_MULTIPLE = 4
"""Rows of a prompt are computed in multiples of this."""


class SharedSlots:
    """Layout of one decoding step: row b appends its token to slot b and sees its prompt and that slot so far."""

    def __init__(
        self,
        num_slots: int,
        capacity: int,
        num_prompts: int,
        prompt_capacity: int,
        device: torch.device,
    ):
        """`capacity`: tokens per slot, without the prompt; `num_prompts`: side by side, at most."""
        self._own = KeyValues(num_slots, capacity)
        self._prompts = KeyValues(num_prompts, prompt_capacity)
        self._device = device
        self._held: list[Prefill] = []
        """By place in `_prompts`."""
        self._taken: list[Prefill] = []
        """By slot: the prompt of its completion."""
        self._prompt_lengths: Int[Tensor, " B"] = torch.zeros(0, dtype=torch.long, device=device)
        self._meetings: dict[int, Meeting] = {}
        self._positions = self._prompt_lengths
        self._length = 0
        self._prompt_length = 0
        self._places: dict[int, Tensor] = {}
        self._bias: dict[tuple[int | None, int], Tensor] = {}

    def admit(self, slot: int, prefill: Prefill, count: int = 1) -> None:
        """Completions of one prompt take so many slots from this one on, the first that is free."""
        assert slot == len(self._taken)
        self._own.make_room(prefill)
        if prefill not in self._held:
            self._prompts.fill(len(self._held), prefill)
            self._held.append(prefill)
        self._taken += [prefill] * count
        self._forget_rows()

    def retire(self, slot: int, last: int, position: int) -> None:
        """The completion of `slot` has ended; that of the last taken slot, whose newest token would stand at
        `position`, takes its place."""
        ended, moved = self._taken[slot], self._taken.pop()
        if slot != last:
            self._own.move(last, slot, position - moved.length)
            self._taken[slot] = moved
        if ended not in self._taken:
            place, moved = self._held.index(ended), self._held.pop()
            if moved is not ended:
                self._prompts.move(len(self._held), place, moved.length)
                self._held[place] = moved
        self._forget_rows()

    def begin_step(self, positions: Int[Tensor, " B"]) -> None:
        """Rows 0…B−1 are about to append at `positions`; those beyond the taken slots are spare, see nothing but
        themselves, and have position 0."""
        if len(self._prompt_lengths) != len(positions):
            self._meetings = {}
            num_spare = len(positions) - len(self._taken)
            lengths = [prefill.length for prefill in self._taken] + [0] * num_spare
            self._prompt_lengths = torch.tensor(lengths, device=self._device)
        self._positions = positions - self._prompt_lengths
        self._length = in_buckets(int(self._positions.max()) + 1)
        self._prompt_length = in_buckets(max(prefill.length for prefill in self._held))
        self._places = {}
        self._bias = {}

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        num_rows, num_heads, _, width = query.shape
        num_kv_heads = key.shape[1]
        if num_kv_heads not in self._places:
            self._places[num_kv_heads] = self._own.places_of(self._positions, num_kv_heads)
        self._own.append(kind.layer, key, value, self._places[num_kv_heads])
        output = shared_attention(
            query.reshape(num_rows * num_kv_heads, -1, width),
            self._prompts.first(len(self._held), self._prompt_length, kind.layer),
            self._own.first(num_rows, self._length, kind.layer),
            self._meeting(num_rows, num_kv_heads),
            self._visibility_bias(kind.sliding_window, num_kv_heads),
            kind,
        )
        return output.view(num_rows, num_heads, 1, -1)

    def _forget_rows(self) -> None:
        """Other rows have other prompts."""
        self._prompt_lengths = self._prompt_lengths[:0]
        self._meetings = {}

    def _meeting(self, num_rows: int, num_kv_heads: int) -> "Meeting":
        if num_kv_heads not in self._meetings:
            places = {prefill: place for place, prefill in enumerate(self._held)}
            prompts = [places[prefill] for prefill in self._taken]
            self._meetings[num_kv_heads] = Meeting.of(prompts, num_rows, num_kv_heads, self._device)
        return self._meetings[num_kv_heads]

    def _visibility_bias(self, window: int | None, num_kv_heads: int) -> Float[Tensor, "BK 1 PL"]:
        if (window, num_kv_heads) not in self._bias:
            places = torch.arange(max(self._prompt_length, self._length), device=self._device)
            own = seen_by(self._positions, places[: self._length], window)
            lengths = self._prompt_lengths[:, None]
            prompt = places[: self._prompt_length] < lengths
            if window is not None:
                prompt &= (
                    places[: self._prompt_length] > lengths + self._positions[:, None] - window
                )
            bias = as_bias(torch.cat([prompt, own], dim=1), torch.float32)
            self._bias[window, num_kv_heads] = bias.repeat_interleave(num_kv_heads, dim=0)[:, None]
        return self._bias[window, num_kv_heads]


@dataclass(frozen=True, slots=True)
class Meeting:
    """Which queries meet which prompts."""

    rows: Int[Tensor, " pKM"]
    """Of rows by key-value heads, the one at each place beside a prompt; anyone where there is none."""
    places: Int[Tensor, " BK"]
    """The place of each; anyone's for rows without a prompt."""

    def beside_prompts(
        self, of_rows: Float[Tensor, "BK R I"], prompts: Float[Tensor, "pK P D"]
    ) -> Float[Tensor, "pK MR I"]:
        """What the rows of each prompt bring to it."""
        gathered = of_rows.view(of_rows.shape[0], -1).index_select(0, self.rows)
        return gathered.view(prompts.shape[0], -1, of_rows.shape[-1])

    def back(
        self, beside: Float[Tensor, "pK MR O"], query: Float[Tensor, "BK R D"]
    ) -> Float[Tensor, "BK R O"]:
        """What each row takes from there."""
        gathered = beside.view(self.rows.shape[0], -1).index_select(0, self.places)
        return gathered.view(query.shape[0], query.shape[1], -1)

    @staticmethod
    def of(prompts: list[int], num_rows: int, num_kv_heads: int, device: torch.device) -> "Meeting":
        """`prompts`: of rows 0…, which prompt each goes on from; those beyond, up to `num_rows`, from none."""
        beside: list[list[int]] = [[] for _ in range(max(prompts) + 1)]
        for row, prompt in enumerate(prompts):
            beside[prompt].append(row)
        most = max(map(len, beside))
        most = -(-most // PROMPT_ROW_MULTIPLE) * PROMPT_ROW_MULTIPLE
        rows = torch.tensor([taken + [0] * (most - len(taken)) for taken in beside])  # (p, M)
        place_of = [0] * num_rows
        for prompt, taken in enumerate(beside):
            for index, row in enumerate(taken):
                place_of[row] = prompt * num_kv_heads * most + index
        heads = torch.arange(num_kv_heads)
        return Meeting(
            (rows[:, None] * num_kv_heads + heads[:, None]).flatten().to(device),
            (torch.tensor(place_of)[:, None] + heads * most).flatten().to(device),
        )


def shared_attention(
    query: Float[Tensor, "BK R D"],
    of_prompts: tuple[Float[Tensor, "pK P D"], Float[Tensor, "pK P W"]],
    own: tuple[Float[Tensor, "BK L D"], Float[Tensor, "BK L W"]],
    meeting: Meeting,
    bias: Float[Tensor, "BK 1 PL"],
    kind: AttentionKind,
) -> Float[Tensor, "BK R W"]:
    """One query token per row against its prompt and its slot."""
    prompt_keys, prompt_values = of_prompts
    own_keys, own_values = own
    length = prompt_keys.shape[1]
    beside = meeting.beside_prompts(query, prompt_keys)
    of_prompt = meeting.back(torch.bmm(beside, prompt_keys.transpose(1, 2)), query)
    scores = torch.cat([of_prompt, torch.bmm(query, own_keys.transpose(1, 2))], dim=-1).float()
    if kind.softcap is None:
        scores = torch.add(bias, scores, alpha=kind.scaling)
    else:
        scores = bias + kind.softcap * torch.tanh(scores * (kind.scaling / kind.softcap))
    weights = scores.softmax(-1).to(own_values.dtype)
    beside = meeting.beside_prompts(weights, prompt_keys)[..., :length]
    seen = meeting.back(torch.bmm(beside, prompt_values), query)
    return torch.baddbmm(seen, weights[..., length:], own_values)
