"""Lean layers: where they are used, and that they change nothing."""

import pytest
import torch
from torch import Tensor, nn

import rft.lean
import rft.merged
from rft.lean import Norm, Rotation
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from tests.tiny import FAMILIES, make_adapter_large, tiny_model

GROUPS = [
    TokenGroup((5, 6, 7, 8, 9, 10, 11, 12, 13, 14), ((20, 21, 22), (23,), (24, 25, 26, 27))),
    TokenGroup((30, 31), ((40, 41), (42, 43, 44))),
]
LEAN = {
    "llama",
    "qwen2",
    "qwen2 sliding",
    "qwen3",
    "mistral sliding",
    "phi3 sliding",
    "gemma",
    "granite",
    "smollm3",
}
"""Families of the Llama pattern (granite while its multiplier is 1); the others keep their own layers."""


def large_policy(family: str, checkpointing: bool = False) -> Policy:
    policy = new_policy(tiny_model(family), LoraShape(rank=4, alpha=8), 0, checkpointing)
    make_adapter_large(policy)
    return policy


def scored(policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    with policy.updating():
        logprobs = policy.score(pack(GROUPS, policy.device), 0.8).logprobs
        weights = torch.linspace(-1, 2, logprobs.numel()).view_as(logprobs)
        (logprobs * weights).sum().backward()
    return logprobs.detach(), {
        n: p.grad for n, p in policy.parameters().items() if p.grad is not None
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_are_those_of_the_family_and_its_adapter(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = large_policy(family)
    assert lean.merged.is_lean == (family in LEAN)
    with_adapter = large_policy(family)
    monkeypatch.setattr(Policy, "merges_exactly", property(lambda self: self is lean))
    (found, found_gradients), (expected, gradients) = scored(lean), scored(with_adapter)
    assert (found - expected).abs().max() < 1e-5
    assert gradients.keys() == found_gradients.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        assert gradient.norm() > 0
        assert (found_gradients[name] - gradient).norm() < 1e-5 * gradient.norm(), name


def test_checkpointing_recomputes_lean_layers_and_changes_nothing() -> None:
    (logprobs, gradients), policy = scored(large_policy("llama")), large_policy("llama", True)
    assert policy.merged.is_lean
    calls = []
    layers = policy.merged.model.get_decoder().layers
    qkv = layers[1]._parts.qkv
    product = qkv.product
    qkv._product = lambda x: calls.append(x) or product(x)
    found, found_gradients = scored(policy)
    assert len(calls) == 2
    assert torch.equal(found, logprobs)
    assert all(torch.allclose(found_gradients[n], g, atol=1e-6) for n, g in gradients.items())


def test_layers_that_differ_from_the_pattern_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = large_policy("llama")
    plain = large_policy("llama")
    monkeypatch.setattr(rft.merged, "use_lean_layers", lambda model: False)
    assert not plain.merged.is_lean
    monkeypatch.undo()

    class Doubled(nn.SiLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for layer in policy.base.get_decoder().layers:
        layer.mlp.forward = lambda x, mlp=layer.mlp: 1.5 * type(mlp).forward(mlp, x)
    assert not policy.merged.is_lean


@pytest.mark.parametrize(
    ("layers", "all_of_them", "is_lean"),
    [(0.0, 5e-5, True), (0.0, 2e-3, False), (1e-4, 0.0, False)],
)
def test_how_much_layers_and_all_of_them_together_may_differ(
    monkeypatch: pytest.MonkeyPatch, layers: float, all_of_them: float, is_lean: bool
) -> None:
    """Thirty layers make of the last digits as much as 2e-5, which one by itself may not."""
    probe, outputs = rft.lean._probe, []

    def differing_probe(*args: object) -> Tensor:
        outputs.append(probe(*args) * (1 + all_of_them * len(outputs)))
        return outputs[-1]

    monkeypatch.setattr(rft.lean, "_probe", differing_probe)
    monkeypatch.setattr(rft.lean, "_sum", lambda x, fresh: x + fresh * (1 + layers))
    assert large_policy("llama").merged.is_lean == is_lean


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_what_changes_with_the_position_from_some_point_on_is_seen(beta: float) -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "llama_4_scaling_beta": beta,
    }
    model = tiny_model("ministral3", rope_parameters=rope)
    policy = new_policy(model, LoraShape(rank=4, alpha=8), 0)
    assert policy.merged.is_lean == (beta == 0)


def test_the_norm_and_its_gradient() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(Norm(weight, 1e-6), (x,))
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    assert torch.allclose(Norm(weight, 1e-6)(x), expected)
    with torch.no_grad():
        assert torch.allclose(Norm(weight, 1e-6)(x), expected)


def test_rotation_by_a_quarter_turn() -> None:
    heads = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    cosines, sines = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    assert Rotation()(heads, (cosines, sines)).flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_the_gradient_of_a_rotation() -> None:
    heads = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(2, 1, 2, 4, dtype=torch.float64)  # no two of them alike
    rotated = Rotation()(heads, (factors[0], factors[1]))
    assert torch.autograd.gradcheck(lambda x: Rotation()(x, (factors[0], factors[1])), (heads,))
    halves = torch.cat([-heads[..., 2:], heads[..., :2]], dim=-1)
    expected = heads * factors[0].unsqueeze(2) + halves * factors[1].unsqueeze(2)
    assert torch.allclose(rotated, expected)


def test_rotation_follows_the_positions_of_each_pass() -> None:
    rotation, heads = Rotation(), torch.randn(1, 2, 3, 4)
    ones, zeros = torch.ones(1, 2, 4), torch.zeros(1, 2, 4)
    assert torch.equal(rotation(heads, (ones, zeros)), heads)
    assert torch.equal(rotation(heads, (-ones, zeros)), -heads)
