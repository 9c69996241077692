"""The sampler's key-value memory against plain attention over whole sequences."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rft.attention import AttentionKind, as_bias, causal_visibility, masked_attention
from rft.rollout.shared_slots import SharedSlots
from rft.rollout.slots import KeyValues, Prefill, PromptPass, Slots

CPU = torch.device("cpu")
NUM_HEADS, NUM_KV_HEADS, WIDTH = 4, 2, 8
KINDS = [
    AttentionKind(0, 0.3, None, None),
    AttentionKind(0, 0.3, 4, None),
    AttentionKind(0, 0.3, None, 2.0),
    AttentionKind(0, 0.3, 3, 2.0),
]

Sequence = tuple[Tensor, Tensor, Tensor]
"""Query, key and value of a whole sequence, (1, heads, tokens, width)."""


Make = Callable[[int, int], Slots | SharedSlots]
"""From a number of slots and the most tokens of prompt and completion."""


def with_copies(num_slots: int, capacity: int) -> Slots:
    return Slots(num_slots, capacity, CPU)


def with_shared_prompts(num_slots: int, capacity: int) -> SharedSlots:
    return SharedSlots(num_slots, capacity, num_slots, capacity, CPU, row_multiple=1)


def with_shared_prompts_of_whole_rows(num_slots: int, capacity: int) -> SharedSlots:
    return SharedSlots(num_slots, capacity, num_slots, capacity, CPU, row_multiple=4)


BOTH = pytest.mark.parametrize(
    "make", [with_copies, with_shared_prompts, with_shared_prompts_of_whole_rows]
)


def make_sequence(num_tokens: int, seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, heads, num_tokens, WIDTH, generator=generator) * 2
        for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )
    return query, key, value


def plain(kind: AttentionKind, sequence: Sequence) -> Tensor:
    """Attention over the whole sequence at once, (heads, tokens, width)."""
    num_tokens = sequence[0].shape[2]
    visible = causal_visibility(num_tokens, 0, kind.sliding_window, CPU)
    return masked_attention(kind, *sequence, as_bias(visible, torch.float32))[0]


def upto(sequence: Sequence, num_tokens: int) -> Sequence:
    query, key, value = (tensor[:, :, :num_tokens] for tensor in sequence)
    return query, key, value


def after(sequence: Sequence, num_tokens: int) -> Sequence:
    query, key, value = (tensor[:, :, num_tokens:] for tensor in sequence)
    return query, key, value


def joined(first: Sequence, second: Sequence) -> Sequence:
    query, key, value = (torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))
    return query, key, value


def prefilled(kind: AttentionKind, sequence: Sequence, length: int) -> Prefill:
    prefill = Prefill(length)
    PromptPass([prefill]).attend(kind, *upto(sequence, length))
    return prefill


def decode(
    kind: AttentionKind, slots: Slots | SharedSlots, sequences: list[Sequence], places: list[int]
) -> Tensor:
    """One step of slots 0…B−1: row b appends token `places[b]` of its sequence, (B, heads, width)."""
    slots.begin_step(torch.tensor(places))
    query, key, value = (
        torch.cat(
            [
                sequence[part][:, :, place : place + 1]
                for sequence, place in zip(sequences, places, strict=True)
            ]
        )
        for part in range(3)
    )
    return slots.attend(kind, query, key, value)[:, :, 0]


@BOTH
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_prompt_then_tokens_one_by_one(kind: AttentionKind, make: Make) -> None:
    """Rows of unlike lengths cross the borders of the length buckets."""
    sequences = [make_sequence(48, seed) for seed in range(3)]
    prompt_lengths = [1, 12, 28]
    slots = make(4, 48)
    for slot, (sequence, length) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        slots.admit(slot, prefilled(kind, sequence, length))
    expected = [plain(kind, sequence) for sequence in sequences]
    for step in range(20):
        places = [length + step for length in prompt_lengths]
        found = decode(kind, slots, sequences, places)
        for row, place in enumerate(places):
            torch.testing.assert_close(found[row], expected[row][:, place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_prompts_computed_together_with_spare_rows(kind: AttentionKind) -> None:
    sequences = [make_sequence(12, 0), make_sequence(9, 1)]
    prefills = [Prefill(12), Prefill(9)]
    rows = [
        torch.cat([one, two, one[:, :, :3]], dim=2) for one, two in zip(*sequences, strict=True)
    ]
    output = PromptPass(prefills).attend(kind, *rows)
    assert output.shape == rows[0].shape
    for start, sequence, prefill in zip((0, 12), sequences, prefills, strict=True):
        part = output[0, :, start : start + prefill.length]
        torch.testing.assert_close(part, plain(kind, sequence), rtol=1e-4, atol=1e-5)
        alone = PromptPass([Prefill(prefill.length)]).attend(kind, *sequence)
        assert torch.equal(part, alone[0])
        assert torch.equal(prefill.keys[0], sequence[1][0])
        assert torch.equal(prefill.values[0], sequence[2][0])
        for kept in (prefill.keys[0], prefill.values[0]):
            assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


@BOTH
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_prompts_behind_a_shared_prefix(kind: AttentionKind, make: Make) -> None:
    """In the pass that computes the prefix, in a later one, and in a slot that decoding goes on from."""
    one = make_sequence(16, 0)
    other = tuple(
        torch.cat([a[:, :, :7], b[:, :, 7:]], dim=2)
        for a, b in zip(one, make_sequence(16, 1), strict=True)
    )
    prefix = Prefill(7)
    first, second = Prefill(12, prefix), Prefill(9, prefix)
    output = PromptPass([prefix, first]).attend(kind, *upto(one, 12))
    torch.testing.assert_close(output[0], plain(kind, upto(one, 12)), rtol=1e-4, atol=1e-5)
    own = tuple(part[:, :, 7:9] for part in other)
    later = PromptPass([second]).attend(kind, *own)
    torch.testing.assert_close(later[0], plain(kind, upto(other, 9))[:, 7:], rtol=1e-4, atol=1e-5)
    again = PromptPass([Prefill(9, prefix), Prefill(12, prefix)])
    beside = [torch.cat([a, b[:, :, 7:12]], dim=2) for a, b in zip(own, one, strict=True)]
    assert torch.equal(again.attend(kind, *beside)[:, :, :2], later)
    slots = make(2, 16)
    slots.admit(0, first)
    slots.admit(1, second)
    found = decode(kind, slots, [one, other], [12, 9])
    for row, (sequence, place) in enumerate(((one, 12), (other, 9))):
        torch.testing.assert_close(
            found[row], plain(kind, sequence)[:, place], rtol=1e-4, atol=1e-5
        )


@BOTH
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_a_slot_held_before_does_not_matter(kind: AttentionKind, make: Make) -> None:
    old, new = make_sequence(24, 1), make_sequence(24, 2)
    used, fresh = make(1, 24), make(1, 24)
    used.admit(0, prefilled(kind, old, 20))
    decode(kind, used, [old], [20])
    used.retire(0, last=0, position=21)
    for slots in (used, fresh):
        slots.admit(0, prefilled(kind, new, 3))
    for place in (3, 4, 5):
        found = decode(kind, used, [new], [place])
        assert torch.equal(found, decode(kind, fresh, [new], [place]))


@BOTH
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_moved_row_goes_on_where_it_was(kind: AttentionKind, make: Make) -> None:
    first, second = make_sequence(24, 1), make_sequence(24, 2)
    slots = make(2, 24)
    slots.admit(0, prefilled(kind, first, 9))
    slots.admit(1, prefilled(kind, second, 6))
    decode(kind, slots, [first, second], [9, 6])
    slots.retire(0, last=1, position=7)
    found = decode(kind, slots, [second], [7])
    torch.testing.assert_close(found[0], plain(kind, second)[:, 7], rtol=1e-4, atol=1e-5)


def test_a_move_copies_no_more_than_it_is_told() -> None:
    kind, first, second = KINDS[0], make_sequence(8, 1), make_sequence(8, 2)
    memory = KeyValues(2, 8)
    memory.fill(0, prefilled(kind, first, 8))
    memory.fill(1, prefilled(kind, second, 8))
    memory.move(source=1, target=0, length=3)
    assert torch.equal(memory.keys[0][0, :, :3], second[1][0, :, :3])
    assert torch.equal(memory.keys[0][0, :, 3:8], first[1][0, :, 3:])
    assert torch.equal(memory.values[0][0, :, :3], second[2][0, :, :3])


def test_what_is_read_is_of_these_sequences_and_this_layer_alone() -> None:
    memory, prefill = KeyValues(3, 64), Prefill(40)
    for layer in (0, 1):
        prefill.keys[layer] = torch.randn(2, 40, WIDTH)
        prefill.values[layer] = torch.randn(2, 40, WIDTH + 3)
    memory.fill(0, prefill, 3)
    for layer in (0, 1):
        keys, values = memory.first(2, 32, layer)
        assert torch.equal(keys, memory.keys[layer][:2, :, :32].flatten(0, 1))
        assert torch.equal(values, memory.values[layer][:2, :, :32].flatten(0, 1))
    for count, length in ((4, 32), (2, 96)):
        with pytest.raises(AssertionError):
            memory.first(count, length, 0)


@BOTH
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_neighbours_do_not_matter(kind: AttentionKind, make: Make) -> None:
    """A row alone, and beside one whose bucket of lengths is larger."""
    short, long = make_sequence(80, 1), make_sequence(80, 2)
    alone, together = make(4, 80), make(4, 80)
    for slots in (alone, together):
        slots.admit(0, prefilled(kind, short, 5))
    together.admit(1, prefilled(kind, long, 62))
    for step in range(4):
        beside = decode(kind, together, [short, long], [5 + step, 62 + step])
        torch.testing.assert_close(
            beside[:1], decode(kind, alone, [short], [5 + step]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("asked", "capacity"), [(1, 32), (32, 32), (33, 64), (64, 64)])
def test_capacity_is_whole_buckets(asked: int, capacity: int) -> None:
    memory = KeyValues(2, asked)
    assert memory.capacity == capacity
    memory.fill(1, prefilled(KINDS[0], make_sequence(asked, 0), asked))
    assert memory.keys[0].shape == (2, NUM_KV_HEADS, capacity, WIDTH)
    assert memory.keys[0][0].abs().sum() == 0


@BOTH
def test_layers_are_kept_apart(make: Make) -> None:
    slots, prefill = make(1, 8), Prefill(4)
    sequences = {layer: make_sequence(5, layer) for layer in (0, 1)}
    for layer, sequence in sequences.items():
        PromptPass([prefill]).attend(AttentionKind(layer, 0.3, None, None), *upto(sequence, 4))
    slots.admit(0, prefill)
    for layer, sequence in sequences.items():
        kind = AttentionKind(layer, 0.3, None, None)
        found = decode(kind, slots, [sequence], [4])
        torch.testing.assert_close(found[0], plain(kind, sequence)[:, 4], rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_groups_come_and_go(kind: AttentionKind, seed: int, make: Make) -> None:
    """Completions of few prompts, some behind a prefix, are admitted and end in any order, prompts come back,
    and spare rows stand behind the live ones: each row sees its prompt and itself, no other."""
    chance = random.Random(seed)
    slots, capacity = make(10, 40), 40
    prompts = [make_sequence(chance.randint(8, 34), seed) for seed in range(5)]
    shared = Prefill(7)
    PromptPass([shared]).attend(kind, *upto(prompts[0], 7))
    prefills = []
    for index, prompt in enumerate(prompts):
        length = prompt[0].shape[2]
        if index < 2:  # these two begin alike
            prompts[index] = prompt = joined(upto(prompts[0], 7), after(prompt, 7))
            prefills.append(Prefill(length, shared))
            PromptPass([prefills[-1]]).attend(kind, *after(prompt, 7))
        else:
            prefills.append(prefilled(kind, prompt, length))
    live: list[tuple[Sequence, int]] = []
    """What a row's tokens are in the end, and how many of them stand in its slot."""
    for step in range(40):
        while len(live) < 9 and chance.random() < 0.5:
            index = chance.randrange(5)
            count = chance.choice([1, 1, 2, 3, 9])
            count = min(count, 9 - len(live))
            slots.admit(len(live), prefills[index], count)
            length = prompts[index][0].shape[2]
            for sample in range(count):
                own = make_sequence(capacity - length, 1000 * step + sample)
                live.append((joined(prompts[index], own), length))
        if not live:
            continue
        spare = [(make_sequence(1, 0), 0)] * chance.randint(0, 1)
        sequences, places = zip(*live, *spare, strict=True)
        found = decode(kind, slots, list(sequences), list(places))
        assert found.isfinite().all()
        for row, (sequence, place) in enumerate(live):
            expected = plain(kind, upto(sequence, place + 1))[:, -1]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
        live = [(sequence, place + 1) for sequence, place in live]
        for row in reversed(range(len(live))):
            if live[row][1] == capacity or chance.random() < 0.15:
                last = live.pop()
                slots.retire(row, len(live), last[1])
                if row < len(live):
                    live[row] = last
