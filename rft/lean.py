"""Decoder layers of the Llama pattern with few operations: less to dispatch per token, less to keep for gradients.

A layer is replaced only where it has the pattern's parts, and a model only where the result is the same.

N tokens (any leading axes), E hidden width, H query heads, K key-value heads, D head width, F feed-forward width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rft.attention import AttentionKind, Layout, PackedGroups, PackedSpan
from rft.products import MergedLinear, SharedProduct

PROBE_TOKENS = 8
"""Length of the pass on which lean and plain layers are compared."""

WORST_ERROR = 1e-5
"""Of what a layer adds to its input, relative, beyond which the plain layers stay; each is compared by itself,
as the layers behind it enlarge a difference of the last digits."""

WORST_OUTPUT_ERROR = 1e-3
"""The same of the decoder's output, where rounding may have grown as much as that."""


@torch.no_grad()
def use_lean_layers(model: PreTrainedModel) -> bool:
    """Replace the layers of a model whose linear layers are merged; False, and nothing done, where that
    does not give the same output."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return False
    plain, watch = list(layers), _Watch()
    with _noting_calls(plain) as calls:
        expected = _probe(model, watch)
    rotation = Rotation()
    lean = [
        _lean_layer(layer, watch.seen[index], rotation) if index in watch.seen else None
        for index, layer in enumerate(plain)
    ]
    if None in lean:
        return False
    decoder.layers = nn.ModuleList(layer for layer in lean if layer is not None)
    is_same = False
    try:
        pairs = zip(decoder.layers, calls, strict=True)  # ValueError where one is not called once
        is_same = all(_is_same(layer, call) for layer, call in pairs) and bool(
            (_probe(model, watch) - expected).norm() <= WORST_OUTPUT_ERROR * expected.norm()
        )
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        pass  # the layers do or hold what the pattern does not have
    finally:
        if not is_same:
            decoder.layers = nn.ModuleList(plain)
    return is_same


_Call = tuple[tuple[Any, ...], dict[str, Any], Any]
"""A layer's arguments and its output."""


@contextmanager
def _noting_calls(layers: Sequence[nn.Module]) -> Iterator[list[_Call]]:
    """What each layer is called with, in the order of the calls."""
    calls: list[_Call] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _is_same(layer: nn.Module, call: _Call) -> bool:
    """Whether a layer does with its input what that of the call did."""
    args, kwargs, expected = call
    hidden = args[0] if args else kwargs["hidden_states"]
    rounding = torch.finfo(expected.dtype).eps * expected.norm()
    error = (layer(*args, **kwargs) - expected).norm()
    return bool(error <= WORST_ERROR * (expected - hidden).norm() + rounding)


class LeanLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """x + attention(norm(x)), then x + down(act(gate(norm(x))) · up(norm(x)))."""

    def __init__(self, parts: "_Parts"):
        super().__init__()
        self._parts = parts

    def forward(
        self,
        hidden_states: Float[Tensor, "B Q E"],
        position_embeddings: tuple[Tensor, Tensor],
        layout: Layout,
        **unused: Any,
    ) -> Float[Tensor, "B Q E"]:
        parts = self._parts
        attended = self._attention(parts.attention_norm(hidden_states), position_embeddings, layout)
        x = _sum(hidden_states, attended)
        gate_and_up = parts.gate_up(parts.feed_forward_norm(x))
        return _sum(x, parts.down(_gated(gate_and_up, parts.activation)))

    def _attention(
        self, x: Float[Tensor, "B Q E"], position_embeddings: tuple[Tensor, Tensor], layout: Layout
    ) -> Float[Tensor, "B Q E"]:
        parts, attended = self._parts, self._parts.attended
        heads = [attended.num_heads, attended.num_kv_heads]
        joined = parts.qkv(x).view(*x.shape[:2], -1, attended.head_width)  # (B, Q, H + 2 K, D)
        rotated, value = torch.split(joined, [sum(heads), heads[1]], dim=2)
        if parts.query_norm is not None and parts.key_norm is not None:
            query, key = torch.split(rotated, heads, dim=2)
            rotated = torch.cat([parts.query_norm(query), parts.key_norm(key)], dim=2)
        if parts.rotation is not None:
            rotated = parts.rotation(rotated, position_embeddings)
        query, key = torch.split(rotated.transpose(1, 2), heads, dim=1)
        output = layout.attend(attended.kind, query, key, value.transpose(1, 2))
        return parts.output(output.transpose(1, 2).flatten(-2))


_Factors = tuple[Tensor, Tensor, Tensor]
"""Of a rotation: what a number is multiplied by, and what its partner is, in the first half and in the second."""


class Rotation:
    """Rotary position embedding (Su et al. 2021) of the half-split kind, one for all layers."""

    def __init__(self) -> None:
        self._cosines: Tensor | None = None
        self._factors: _Factors | None = None

    def __call__(
        self, heads: Float[Tensor, "B Q heads D"], position_embeddings: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "B Q heads D"]:
        """heads · cos + (−second half, first half) · sin."""
        factors = self._factors_of(position_embeddings)
        if torch.is_grad_enabled():
            return _Rotation.apply(heads, *factors)  # type: ignore[no-untyped-call, no-any-return]
        return _rotated(heads, *factors)

    def _factors_of(self, position_embeddings: tuple[Tensor, Tensor]) -> _Factors:
        cosines, sines = position_embeddings
        if self._factors is None or self._cosines is not cosines:
            first, second = sines.unsqueeze(2).chunk(2, dim=-1)
            self._cosines, self._factors = cosines, (cosines.unsqueeze(2), -first, second)
        return self._factors


def _rotated(heads: Tensor, cosines: Tensor, of_second: Tensor, of_first: Tensor) -> Tensor:
    rotated = heads * cosines
    (first, second), (into_first, into_second) = heads.chunk(2, dim=-1), rotated.chunk(2, dim=-1)
    into_first.addcmul_(second, of_second)
    into_second.addcmul_(first, of_first)
    return rotated


class _Rotation(torch.autograd.Function):
    """The gradient is rotated back: the partners' factors change places."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        return _rotated(heads, *factors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosines, of_second, of_first = ctx.saved_tensors
        return _rotated(gradients[0], cosines, of_first, of_second), None, None, None


class Norm:
    """x · weight / rms(x) (Zhang & Sennrich 2019), the weight frozen."""

    def __init__(self, weight: Float[Tensor, " E"], epsilon: float):
        self._weight = weight
        self._epsilon = epsilon
        self._least = weight.new_tensor(epsilon)

    def __call__(self, x: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch E"]:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Norm.apply(x, self._weight, self._least)  # type: ignore[no-untyped-call, no-any-return]
        if x.is_cpu:  # torch's own takes sixteen times as long there, from some rows on
            return _normed(x, _inverse_rms(x, self._least), self._weight)
        return F.rms_norm(x, self._weight.shape, self._weight, self._epsilon)


def _inverse_rms(x: Float[Tensor, "*batch E"], epsilon: Float[Tensor, ""]) -> Tensor:
    """1 / √(mean x² + epsilon), (*batch, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse: Tensor = torch.addcmul(epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return inverse


def _normed(x: Tensor, inverse_rms: Tensor, weight: Tensor) -> Tensor:
    normed: Tensor = (x * inverse_rms).mul_(weight)
    return normed


class _Norm(torch.autograd.Function):
    """With u = ∂y · weight and r = 1 / rms(x): ∂x = r u − r³ x · mean(u · x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: Tensor) -> Tensor:
        inverse = _inverse_rms(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return _normed(x, inverse, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        scaled = gradients[0] * weight
        mean = torch.linalg.vecdot(scaled, x).unsqueeze(-1).div_(x.shape[-1])
        return scaled.mul_(inverse).addcmul_(x, mean * inverse**3, value=-1), None, None


def _gated(gate_and_up: Float[Tensor, "*batch F2"], activation: nn.Module) -> Tensor:
    """activation(gate) · up."""
    if torch.is_grad_enabled() and isinstance(activation, nn.SiLU):
        return _GatedSilu.apply(gate_and_up)  # type: ignore[no-any-return, no-untyped-call]
    gate, up = gate_and_up.chunk(2, dim=-1)
    activated: Tensor = activation(gate)
    return activated * up if torch.is_grad_enabled() else activated.mul_(up)


def _sum(x: Tensor, fresh: Tensor) -> Tensor:
    """x + fresh, in the memory of `fresh` where no gradient asks for it."""
    return x + fresh if torch.is_grad_enabled() else fresh.add_(x)


class _GatedSilu(torch.autograd.Function):
    """silu(gate) · up, keeping nothing but its input."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        slopes = torch.empty_like(gate_and_up)
        gate_slope, up_slope = slopes.chunk(2, dim=-1)
        torch.mul(gradients[0], F.silu(gate), out=up_slope)
        torch.ops.aten.silu_backward(gradients[0] * up, gate, grad_input=gate_slope)
        return (slopes,)


@dataclass(frozen=True)
class _Parts:
    """What a lean layer is made of."""

    attended: "_Attended"
    attention_norm: Norm
    feed_forward_norm: Norm
    query_norm: Norm | None
    key_norm: Norm | None
    rotation: Rotation | None
    qkv: SharedProduct
    output: SharedProduct
    gate_up: SharedProduct
    down: SharedProduct
    activation: nn.Module


@dataclass(frozen=True)
class _Attended:
    """One layer's attention as the model asked for it."""

    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_width: int


class _Watch:
    """A layout that notes what each layer asks."""

    def __init__(self) -> None:
        self._layout = PackedGroups([PackedSpan(0, PROBE_TOKENS, ())])
        self.seen: dict[int, _Attended] = {}

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.seen[kind.layer] = _Attended(kind, query.shape[1], key.shape[1], query.shape[-1])
        return self._layout.attend(kind, query, key, value)


def _probe(model: PreTrainedModel, layout: Layout) -> Float[Tensor, "1 Q E"]:
    embeddings = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(embeddings), (1, PROBE_TOKENS), generator=generator)
    # over all that the model was made for: some scale by position from a certain one on
    last = getattr(model.config.get_text_config(), "max_position_embeddings", PROBE_TOKENS) - 1
    positions = torch.linspace(0, last, PROBE_TOKENS, device=embeddings.device).long()[None]
    decoder = model.get_decoder()
    output = decoder(
        input_ids=ids.to(embeddings.device), position_ids=positions, use_cache=False, layout=layout
    )
    return output.last_hidden_state  # type: ignore[no-any-return]


def _lean_layer(layer: nn.Module, attended: _Attended, rotation: Rotation) -> LeanLayer | None:
    """The same layer in few operations, or None where a part of the pattern is missing."""
    attention, feed_forward = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    qkv = _together(attention, "q_proj", "k_proj", "v_proj") or _together(attention, "qkv_proj")
    gate_up = _together(feed_forward, "gate_proj", "up_proj")
    gate_up = gate_up or _together(feed_forward, "gate_up_proj")
    output, down = _together(attention, "o_proj"), _together(feed_forward, "down_proj")
    attention_norm = _norm(layer, "input_layernorm")
    feed_forward_norm = _norm(layer, "post_attention_layernorm")
    activation = getattr(feed_forward, "act_fn", getattr(feed_forward, "activation_fn", None))
    if (
        qkv is None
        or output is None
        or gate_up is None
        or down is None
        or attention_norm is None
        or feed_forward_norm is None
        or not isinstance(activation, nn.Module)
    ):
        return None
    lean = LeanLayer(
        _Parts(
            attended=attended,
            attention_norm=attention_norm,
            feed_forward_norm=feed_forward_norm,
            query_norm=_norm(attention, "q_norm"),
            key_norm=_norm(attention, "k_norm"),
            rotation=rotation if getattr(attention, "use_rope", True) else None,
            qkv=qkv,
            output=output,
            gate_up=gate_up,
            down=down,
            activation=activation,
        )
    )
    if getattr(layer, "gradient_checkpointing", False):
        lean.gradient_checkpointing = True
        lean._gradient_checkpointing_func = layer._gradient_checkpointing_func
    return lean


def _together(parent: nn.Module | None, *names: str) -> SharedProduct | None:
    """The product that these layers, in this order, make up by themselves."""
    found = [getattr(parent, name, None) for name in names]
    layers = [layer for layer in found if isinstance(layer, MergedLinear)]
    if len(layers) < len(names):
        return None
    shared = layers[0].shared
    in_order = all(layer.shared is shared and layer.index == i for i, layer in enumerate(layers))
    return shared if in_order and len(shared.sizes) == len(layers) else None


def _norm(parent: nn.Module | None, name: str) -> Norm | None:
    """A module's RMS norm, whether its weight counts from 0 or from 1."""
    module = getattr(parent, name, None)
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module is None or not isinstance(weight, Tensor) or not isinstance(epsilon, float):
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(weight), generator=generator).to(weight.device, weight.dtype)
    expected = module(x)
    for candidate in (weight.detach(), 1 + weight.detach()):
        norm = Norm(candidate, epsilon)
        if weight.ndim == 1 and (norm(x) - expected).norm() <= WORST_ERROR * expected.norm():
            return norm
    return None
