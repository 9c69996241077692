"""Decoding rows that read their prompt's keys and values together, from one place in memory.

With a copy of the prompt in every slot, a step of a group of G completions reads G copies: decoding is bound by
that from some hundred tokens on. Here a slot holds what its completion has for itself. The queries of the rows
that go on from one prompt meet its keys in one product, their own keys in another; one softmax is over both.

B rows, p prompts, M rows of a prompt, K key-value heads, R query heads per key-value head, D head width, W that of
the values, P prompt tokens, L tokens of a completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rft.attention import AttentionKind, as_bias
from rft.rollout.slots import KeyValues, Prefill, in_buckets, seen_by

MOST_SPARE = 2
"""Times the rows there are, up to which the rows of all prompts are computed in one product, each prompt's
padded to the largest number."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One that stands in memory."""

    token: object
    length: int


class SharedSlots:
    """Layout of one decoding step: row b appends its token to slot b and sees its prompt and that slot so far."""

    def __init__(
        self,
        num_slots: int,
        capacity: int,
        num_prompts: int,
        prompt_capacity: int,
        device: torch.device,
        row_multiple: int,
    ):
        """`capacity`: tokens per slot, without the prompt; `num_prompts`: side by side, at most;
        `row_multiple`: of rows that meet a prompt, as `RowInvariance.prompt_row_multiple` says."""
        self._own = KeyValues(num_slots, capacity)
        self._prompts = KeyValues(num_prompts, prompt_capacity)
        self._device = device
        self._row_multiple = row_multiple
        self._held: list[_Prompt] = []
        """By place in `_prompts`."""
        self._taken: list[_Prompt] = []
        """By slot: the prompt of its completion."""
        self._prompt_lengths: Int[Tensor, " B"] = torch.zeros(0, dtype=torch.long, device=device)
        self._meetings: dict[int, Meeting] = {}
        self._positions = self._prompt_lengths
        self._length = 0
        self._prompt_length = 0
        self._bias: dict[tuple[int | None, int], Tensor] = {}

    def admit(self, slot: int, prefill: Prefill, count: int = 1) -> None:
        """Completions of one prompt take so many slots from this one on, the first that is free."""
        assert slot == len(self._taken)
        self._own.make_room(prefill)
        prompt = _Prompt(prefill.token, prefill.length)
        if prompt not in self._held:
            self._prompts.fill(len(self._held), prefill)
            self._held.append(prompt)
        self._taken += [prompt] * count
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
            if moved != ended:
                self._prompts.move(len(self._held), place, moved.length)
                self._held[place] = moved
        self._forget_rows()

    def begin_step(self, positions: Int[Tensor, " B"]) -> None:
        """Rows 0…B−1 are about to append at `positions`; those beyond the taken slots are spare and have position
        0: what becomes of them is of no account."""
        if len(self._prompt_lengths) != len(positions):
            self._meetings = {}
            num_spare = len(positions) - len(self._taken)
            lengths = [prompt.length for prompt in self._taken] + [0] * num_spare
            self._prompt_lengths = torch.tensor(lengths, device=self._device)
        self._positions = positions - self._prompt_lengths
        self._length = in_buckets(int(self._positions.max()) + 1)
        self._prompt_length = in_buckets(max(prompt.length for prompt in self._held))
        self._own.begin_step(self._positions)
        self._bias = {}

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        num_rows, num_heads, _, width = query.shape
        num_kv_heads = key.shape[1]
        self._own.append(kind.layer, key, value)
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
            places = {prompt: place for place, prompt in enumerate(self._held)}
            self._meetings[num_kv_heads] = Meeting.of(
                [places[prompt] for prompt in self._taken],
                num_rows,
                num_kv_heads,
                self._device,
                self._row_multiple,
            )
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

    num_beside: tuple[int, ...]
    """Rows that meet each prompt, spare ones among them: M₁ … Mₚ."""
    rows: Int[Tensor, " KM"]
    """Of rows by key-value heads, the one at each place beside a prompt, M being all of them; anyone where there is
    none."""
    places: Int[Tensor, " BK"]
    """The place of each; anyone's for rows without a prompt."""

    @staticmethod
    def of(
        prompts: Sequence[int],
        num_rows: int,
        num_kv_heads: int,
        device: torch.device,
        row_multiple: int,
    ) -> "Meeting":
        """`prompts`: of rows 0…, which prompt each goes on from; those beyond, up to `num_rows`, from none."""
        beside: list[list[int]] = [[] for _ in range(max(prompts) + 1)]
        for row, prompt in enumerate(prompts):
            beside[prompt].append(row)
        counts = [-(-len(taken) // row_multiple) * row_multiple for taken in beside]
        if max(counts) * len(counts) <= MOST_SPARE * sum(counts):
            counts = [max(counts)] * len(counts)
        rows: list[int] = []
        places = [0] * (num_rows * num_kv_heads)
        for taken, count in zip(beside, counts, strict=True):
            for head in range(num_kv_heads):
                for index, row in enumerate(taken):
                    places[row * num_kv_heads + head] = len(rows) + index
                rows += [row * num_kv_heads + head for row in taken]
                rows += [0] * (count - len(taken))
        return Meeting(
            tuple(counts),
            torch.tensor(rows, device=device),
            torch.tensor(places, device=device),
        )

    def meet(
        self, of_rows: Float[Tensor, "BK R J"], matrices: Float[Tensor, "pK I O"]
    ) -> Float[Tensor, "BK R O"]:
        """What the rows bring to their prompts, the first I of it, times the matrix there."""
        num_rows, num_queries, width = of_rows.shape
        beside = of_rows.view(num_rows, -1).index_select(0, self.rows)  # (K M, R J)
        products = self._products(beside.view(-1, width)[:, : matrices.shape[1]], matrices)
        back = products.view(self.rows.shape[0], -1).index_select(0, self.places)
        return back.view(num_rows, num_queries, -1)

    def _products(
        self, beside: Float[Tensor, "KMR I"], matrices: Float[Tensor, "pK I O"]
    ) -> Float[Tensor, "KMR O"]:
        width = beside.shape[1]
        if len(set(self.num_beside)) == 1:
            return torch.bmm(beside.view(matrices.shape[0], -1, width), matrices).flatten(0, 1)
        num_heads = matrices.shape[0] // len(self.num_beside)
        per_row = beside.shape[0] // sum(self.num_beside)
        parts = torch.split(beside, [count * per_row for count in self.num_beside])
        products = [
            torch.bmm(part.view(num_heads, -1, width), matrix).flatten(0, 1)
            for part, matrix in zip(parts, torch.split(matrices, num_heads), strict=True)
        ]
        return torch.cat(products)


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
    of_prompt = meeting.meet(query, prompt_keys.transpose(1, 2))
    scores = torch.cat([of_prompt, torch.bmm(query, own_keys.transpose(1, 2))], dim=-1).float()
    if kind.softcap is None:
        scores = torch.add(bias, scores, alpha=kind.scaling)
    else:
        scores = bias + kind.softcap * torch.tanh(scores * (kind.scaling / kind.softcap))
    weights = scores.softmax(-1).to(own_values.dtype)
    return torch.baddbmm(meeting.meet(weights, prompt_values), weights[..., length:], own_values)
