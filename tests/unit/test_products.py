"""Products shared by layers: values, gradients, what is computed once, and staleness."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from rft.errors import JobFailedError
from rft.policy import LoraShape, new_policy
from rft.products import Member, MergedLinear, SharedProduct
from tests.tiny import make_adapter_large, tiny_model

INPUTS, RANKS = 6, (2, 3, 0)
"""Two adapted layers of different rank and one without adapter."""


def members() -> list[Member]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = []
    for size, rank in zip((4, 5, 3), RANKS, strict=True):
        pair = {}
        if rank:
            pair = {
                "lora_a": nn.Parameter(noise(rank, INPUTS)),
                "lora_b": nn.Parameter(noise(size, rank)),
                "scaling": 0.5 + rank,
            }
        bias = noise(size) if rank != 3 else None
        found.append(Member(noise(size, INPUTS), bias, **pair))
    return found


def plain(x: Tensor, member: Member) -> Tensor:
    y = x @ member.weight.T
    if member.bias is not None:
        y = y + member.bias
    if member.lora_a is not None and member.lora_b is not None:
        y = y + member.scaling * (x @ member.lora_a.T @ member.lora_b.T)
    return y


def gradients(output: Tensor, x: Tensor, all_members: list[Member]) -> list[Tensor]:
    pairs = [p for m in all_members for p in (m.lora_a, m.lora_b) if p is not None]
    weights = torch.linspace(-1, 2, output.numel()).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [x, *pairs]))


def test_values_and_gradients_are_those_of_the_layers() -> None:
    parts = members()
    shared = SharedProduct(parts)
    x = torch.randn(2, 3, INPUTS, requires_grad=True)
    found = shared(x)
    expected = torch.cat([plain(x, part) for part in parts], dim=-1)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(gradients(found, x, parts), gradients(expected, x, parts), strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_an_input_without_gradient_still_trains_the_adapters() -> None:
    parts = members()
    x = torch.randn(4, INPUTS)
    SharedProduct(parts)(x).sum().backward()
    expected = parts[0].scaling * torch.ones(4, 4).T @ (x @ parts[0].lora_a.T)  # type: ignore[union-attr]
    assert torch.allclose(parts[0].lora_b.grad, expected, atol=1e-5)  # type: ignore[union-attr, arg-type]


def test_the_first_layer_to_read_a_tensor_computes_it_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = members()
    shared = SharedProduct(parts)
    layers = [MergedLinear(shared, index) for index in range(3)]
    calls = []
    product = shared.product
    monkeypatch.setattr(shared, "_product", lambda x: calls.append(x) or product(x))
    with torch.no_grad():
        for x in (torch.randn(2, INPUTS), torch.randn(2, INPUTS)):
            outputs = [layer(x) for layer in layers]
            for output, part in zip(outputs, parts, strict=True):
                assert torch.allclose(output, plain(x, part), atol=1e-5)
        assert len(calls) == 2
        first, second = torch.randn(1, INPUTS), torch.randn(1, INPUTS)
        layers[0](first)
        assert torch.allclose(layers[1](second), plain(second, parts[1]), atol=1e-5)
        assert torch.allclose(layers[1](second), plain(second, parts[1]), atol=1e-5)
        assert torch.allclose(layers[2](first), plain(first, parts[2]), atol=1e-5)


def test_a_pass_that_broke_off_keeps_nothing_alive_beyond_the_next() -> None:
    policy = new_policy(tiny_model("granite"), LoraShape(rank=4, alpha=8), 0)
    (shared, *_) = (p for p in policy.merged._products if len(p.members) > 1)
    x = torch.randn(1, shared.product.shape[1])
    output = weakref.ref(shared.output(x, 0))
    assert output() is not None
    policy.merged.begin_pass()
    assert output() is None


def test_a_changed_adapter_is_seen_as_stale_until_refreshed() -> None:
    parts = members()
    shared = SharedProduct(parts)
    x = torch.randn(2, INPUTS)
    assert not shared.is_stale
    with torch.no_grad():
        parts[1].lora_b.mul_(3)  # type: ignore[union-attr]
        assert shared.is_stale
        shared.refresh()
        assert not shared.is_stale
        expected = torch.cat([plain(x, part) for part in parts], dim=-1)
        assert torch.allclose(shared(x), expected, atol=1e-5)


def test_an_optimizer_step_makes_it_stale() -> None:
    for foreach in (False, True):
        parts = members()
        shared = SharedProduct(parts)
        pairs = [p for m in parts for p in (m.lora_a, m.lora_b) if p is not None]
        shared(torch.randn(2, INPUTS)).sum().backward()
        torch.optim.AdamW(pairs, lr=1e-3, foreach=foreach).step()
        assert shared.is_stale


def test_a_policy_refuses_to_score_with_stale_weights() -> None:
    from rft.packing import TokenGroup, pack

    policy = new_policy(tiny_model(), LoraShape(rank=4, alpha=8), 0)
    make_adapter_large(policy)
    batch = pack([TokenGroup((5, 6), ((7, 8),))], policy.device)
    policy.score(batch, 1.0)
    with torch.no_grad():
        next(iter(policy.parameters().values())).add_(1)
    with pytest.raises(JobFailedError, match="older than the adapter"):
        policy.score(batch, 1.0)
    policy.refresh()
    policy.score(batch, 1.0)
