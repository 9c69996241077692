"""Linear layers, merged with their adapters, as products that those reading the same tensor share.

N tokens, I inputs of a product, O outputs of all its layers together, Oᵢ of one, r rank, s = alpha / rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rft.linear import Product, transposed_product


@dataclass(frozen=True)
class Member:
    """A linear layer of the base, with its adapter if it has one."""

    weight: Float[Tensor, "Oi I"]
    bias: Float[Tensor, " Oi"] | None
    lora_a: Float[nn.Parameter, "r I"] | None = None
    lora_b: Float[nn.Parameter, "Oi r"] | None = None
    scaling: float = 0.0

    def merged(self) -> Float[Tensor, "Oi I"]:
        if self.lora_a is None or self.lora_b is None:
            return self.weight
        return torch.addmm(self.weight, self.lora_b, self.lora_a, alpha=self.scaling)


class SharedProduct:
    """x ↦ x (W + s B A)ᵀ + b for all layers that read x, their outputs side by side."""

    def __init__(self, members: Sequence[Member]):
        self.members = tuple(members)
        self.sizes: list[int] = [len(member.weight) for member in members]
        self._product: Product | None = None
        self._reading: tuple[Tensor, Sequence[Tensor], set[int]] | None = None
        self.refresh()

    @property
    def product(self) -> Product:
        """The merged matrices, (O, I)."""
        assert self._product is not None
        return self._product

    @torch.no_grad()
    def refresh(self) -> None:
        matrix = _joined([member.merged() for member in self.members])
        if self._product is None:
            self._product = Product(matrix, _joined_biases(self.members))
        else:
            self._product.replace(matrix)
        self._seen = self._versions()

    @property
    def is_stale(self) -> bool:
        return self._seen != self._versions()

    def __call__(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """What all the layers make of `x`; gradient flows to `x` and the adapters."""
        if not torch.is_grad_enabled():
            return self.product(x)
        pairs = [p for m in self.members for p in (m.lora_a, m.lora_b) if p is not None]
        if not pairs and not x.requires_grad:
            return self.product(x)
        return _SharedProduct.apply(x, self, *pairs)  # type: ignore[no-any-return, no-untyped-call]

    def output(self, x: Float[Tensor, "*batch I"], index: int) -> Float[Tensor, "*batch Oi"]:
        """What one of the layers makes of `x`; the first to ask computes it for all."""
        if len(self.members) == 1:
            return self(x)
        if self._reading is None or self._reading[0] is not x or index not in self._reading[2]:
            split = torch.split(self(x), self.sizes, dim=-1)
            self._reading = x, split, set(range(len(self.members)))
        _, outputs, awaited = self._reading
        awaited.remove(index)
        if not awaited:
            self._reading = None
        return outputs[index]

    def forget(self) -> None:
        """Drop what a pass that did not end has computed for layers that never asked."""
        self._reading = None

    def transposed(self, y: Float[Tensor, "N O"]) -> Float[Tensor, "N I"]:
        """y W without the adapter."""
        return transposed_product(y, [member.weight for member in self.members])

    def _versions(self) -> list[int]:
        """Counters that torch advances whenever an A or B is written to, but not through `.data`."""
        pairs = (pair for m in self.members for pair in (m.lora_a, m.lora_b) if pair is not None)
        return [parameter._version for parameter in pairs]


class MergedLinear(nn.Module):
    """Stands where a linear layer of the base stood."""

    def __init__(self, shared: SharedProduct, index: int):
        super().__init__()
        self.shared = shared
        self.index = index

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch Oi"]:
        return self.shared.output(x, self.index)

    def __deepcopy__(self, memo: dict[int, object]) -> "MergedLinear":
        return self


class _SharedProduct(torch.autograd.Function):
    """∂x = ∂y (W + s B A), ∂A = s (∂y B)ᵀ x, ∂B = s ∂yᵀ (x Aᵀ)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: SharedProduct, *pairs: Tensor) -> Tensor:
        ctx.shared = shared
        ctx.save_for_backward(x, *pairs)
        return shared.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *pairs = ctx.saved_tensors
        shared: SharedProduct = ctx.shared
        gradient, inputs = gradients[0].flatten(0, -2), x.flatten(0, -2)  # (N, O), (N, I)
        gradient_x = shared.transposed(gradient) if ctx.needs_input_grad[0] else None
        if not pairs:
            return gradient_x.view_as(x) if gradient_x is not None else None, None
        parts = torch.split(gradient, shared.sizes, dim=-1)
        adapted = [
            (p, m) for p, m in zip(parts, shared.members, strict=True) if m.lora_a is not None
        ]
        lora_a = _joined(pairs[0::2])  # (k r, I)
        inner = torch.cat(
            [(p @ b) * m.scaling for (p, m), b in zip(adapted, pairs[1::2], strict=True)], dim=-1
        )  # (N, k r)
        outer = inputs @ lora_a.T  # (N, k r)
        ranks = [len(a) for a in pairs[0::2]]
        if gradient_x is not None:
            gradient_x = gradient_x.addmm_(inner, lora_a).view_as(x)
        gradients_a = (inner.T @ inputs).split(ranks)
        gradients_b = [
            (p.T @ o).mul_(m.scaling)
            for (p, m), o in zip(adapted, outer.split(ranks, dim=-1), strict=True)
        ]
        both = [g for pair in zip(gradients_a, gradients_b, strict=True) for g in pair]
        return gradient_x, None, *both


def member_of(layer: nn.Module, adapter: str | None) -> Member:
    """A linear layer of the base, adapted or not, as it stands in a product; None leaves the adapter out."""
    if isinstance(layer, nn.Linear):
        return Member(layer.weight.detach(), _detached(layer.bias))
    assert isinstance(layer, LoraLayer)
    linear = layer.get_base_layer()
    fan_in_first = getattr(layer, "fan_in_fan_out", False)
    weight = linear.weight.detach().T if fan_in_first else linear.weight.detach()
    if adapter is None:
        return Member(weight, _detached(linear.bias))
    return Member(
        weight,
        _detached(linear.bias),
        layer.lora_A[adapter].weight,
        layer.lora_B[adapter].weight,
        layer.scaling[adapter],
    )


def _joined(matrices: Sequence[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))


def _joined_biases(members: Sequence[Member]) -> Tensor | None:
    if all(member.bias is None for member in members):
        return None
    zeros = (member.weight.new_zeros(len(member.weight)) for member in members)
    return torch.cat([z if m.bias is None else m.bias for m, z in zip(members, zeros, strict=True)])


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
