"""The unpacked training pass against the packed one, and how it keeps within the memory of a packed batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rft import unpacked
from rft.packing import PackedBatch, TokenGroup, pack
from rft.policy import Policy, Scored
from rft.unpacked import plainest_attention, takes_logits_to_keep, unpacked_logprobs
from tests.tiny import tiny_model, tiny_policy

CPU = torch.device("cpu")
TEMPERATURE = 0.7


def ids(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(4, 250, (length,), generator=generator).tolist())


GROUPS = [
    TokenGroup(ids(1, 6), (ids(2, 9), ids(3, 1), ids(4, 5))),
    TokenGroup(ids(5, 11), (ids(6, 1),)),
    TokenGroup(ids(7, 1), (ids(8, 4), ids(9, 4))),
]
LONG_PROMPT = TokenGroup(ids(1, 40), (ids(2, 3), ids(3, 5), ids(4, 1), ids(5, 2)))


def packed_and_unpacked(batch: PackedBatch) -> tuple[Policy, Scored, Scored]:
    policy, other = tiny_policy(), tiny_policy()
    other.stop_packing("a test")
    return other, policy.score(batch, TEMPERATURE), other.score(batch, TEMPERATURE)


def gradients(policy: Policy, batch: PackedBatch) -> list[Tensor]:
    logprobs = policy.score(batch, TEMPERATURE).logprobs
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(0))
    return list(torch.autograd.grad((logprobs * weights).sum(), list(policy.parameters().values())))


def test_it_says_what_the_packed_pass_says() -> None:
    _, packed, found = packed_and_unpacked(pack(GROUPS, CPU))
    torch.testing.assert_close(found.logprobs, packed.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropies, packed.entropies, rtol=1e-5, atol=1e-5)
    assert not found.entropies.requires_grad


def test_tokens_that_were_left_out_stay_out() -> None:
    """Half of the vocabulary, the token itself included, was open to each token."""
    group = GROUPS[0]
    allowed = []
    for completion in group.completions:
        open_tokens = np.zeros((len(completion), 260), bool)
        open_tokens[:, ::2] = True
        open_tokens[np.arange(len(completion)), list(completion)] = True
        allowed.append(np.packbits(open_tokens, axis=1))
    restricted = pack([replace(group, allowed_tokens=tuple(allowed))], CPU)
    policy, packed, found = packed_and_unpacked(restricted)
    torch.testing.assert_close(found.logprobs, packed.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropies, packed.entropies, rtol=1e-5, atol=1e-5)
    everything = policy.score(pack([group], CPU), TEMPERATURE).logprobs
    assert (found.logprobs - everything)[restricted.completion_mask].min() > 0.1


def test_the_reference_is_the_bare_base() -> None:
    policy = tiny_policy()
    expected = policy.reference_logprobs(pack(GROUPS, CPU), TEMPERATURE)
    policy.stop_packing("a test")
    found = policy.reference_logprobs(pack(GROUPS, CPU), TEMPERATURE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - policy.score(pack(GROUPS, CPU), TEMPERATURE).logprobs).abs().max() > 0.1


@pytest.mark.parametrize("max_tokens", [1, 30, 88, 10_000])
def test_blocks_hold_all_completions_in_order(max_tokens: int) -> None:
    batch = pack([*GROUPS, LONG_PROMPT], CPU)
    blocks = list(unpacked._blocks(batch, max_tokens))
    assert torch.equal(torch.cat([block.target_ids for block in blocks]), batch.target_ids)
    for block in blocks:
        assert block.input_ids.numel() <= max_tokens or len(block.input_ids) == 1
    expected = [g.prompt_ids + c[:-1] for g in (*GROUPS, LONG_PROMPT) for c in g.completions]
    found = []
    for block in blocks:
        prompt_length = block.input_ids.shape[1] - int(block.completion_lengths.max()) + 1
        for row, length in zip(block.input_ids.tolist(), block.completion_lengths, strict=True):
            found.append(tuple(row[: prompt_length + int(length) - 1]))
    assert found == expected


def test_a_long_prompt_is_computed_again_in_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """46 packed tokens are 4 · 44 in rows: more than twice as many."""
    policy, batch = tiny_policy(), pack([LONG_PROMPT], CPU)
    expected = gradients(policy, batch)
    policy.stop_packing("a test")
    sizes: list[tuple[int, ...]] = []
    policy.base.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    found = gradients(policy, batch)
    lengths = [42, 44, 40, 41]
    assert sizes[:4] == [(1, length) for length in lengths]
    assert sorted(sizes[4:]) == sorted(sizes[:4])  # once more, one after the other
    sizes.clear()
    monkeypatch.setattr(unpacked, "KEPT_RATIO", 100)
    at_once = gradients(policy, batch)
    assert sizes == [(4, 44)]
    for a, b, c in zip(found, at_once, expected, strict=True):
        assert (a - c).norm() < 2e-5 * c.norm() and (b - c).norm() < 2e-5 * c.norm()


def test_without_gradient_nothing_is_computed_twice() -> None:
    policy, batch = tiny_policy(), pack([LONG_PROMPT], CPU)
    policy.stop_packing("a test")
    sizes: list[tuple[int, ...]] = []
    policy.base.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    with torch.no_grad():
        unpacked_logprobs(policy.base, batch, TEMPERATURE)
    assert sum(rows for rows, _ in sizes) == 4


def test_attention_goes_back_to_what_it_was() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    with plainest_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == before != "eager"
    with pytest.raises(ValueError, match="no such row"), plainest_attention(model):
        raise ValueError("no such row")
    assert model.config._attn_implementation == before


def test_a_model_that_gives_all_its_logits_is_as_good() -> None:
    policy, batch = tiny_policy(), pack(GROUPS, CPU)
    policy.stop_packing("a test")
    expected = policy.score(batch, TEMPERATURE).logprobs
    own = policy.base.forward
    assert takes_logits_to_keep(policy.base)

    def forward(input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return own(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    policy.base.forward = forward
    assert not takes_logits_to_keep(policy.base)
    torch.testing.assert_close(policy.score(batch, TEMPERATURE).logprobs, expected)
