"""One attention function for every transformers model, and the packed layout of the training pass.

A model prepared by `use_layouts` is called with `layout=…`; each attention layer then asks the layout to attend.
The layout knows which token sees which: `PackedGroups` here for training, prefill and decode in `rft.rollout`.

Shapes: B rows, H query heads, K key-value heads (H = K · R), Q query tokens, S key tokens, D head width,
W that of the values, which is D in most families.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from rft.errors import ModelError

NAME = "rft_layout"


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What distinguishes one layer's attention from another's."""

    layer: int
    scaling: float
    sliding_window: int | None
    """A token sees itself and the `sliding_window - 1` before it; None = all before it."""
    softcap: float | None


@runtime_checkable
class Layout(Protocol):
    """Decides which tokens see which in one forward pass."""

    def attend(
        self,
        kind: AttentionKind,
        query: Float[Tensor, "B H Q D"],
        key: Float[Tensor, "B K Q D"],
        value: Float[Tensor, "B K Q W"],
    ) -> Float[Tensor, "B H Q W"]: ...


def use_layouts(model: PreTrainedModel) -> None:
    """Make `model` take a `layout=` argument in place of an attention mask."""
    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    family = type(module).__name__
    if layout is None:
        raise ModelError(
            f"{family} does not pass its keyword arguments on to attention",
            remedy="this model family is not supported yet",
        )
    unknown = [name for name in ("s_aux", "position_bias") if extra.get(name) is not None]
    if unknown:
        raise ModelError(
            f"{family} asks attention for {', '.join(unknown)}",
            remedy="this model family is not supported yet",
        )
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = module.layer_idx
    assert isinstance(layer, int)
    if sliding_window is None and _is_windowed(module.config, layer):
        raise ModelError(
            f"{family} keeps its window in a mask of its own",
            remedy="this model family is not supported yet",
        )
    kind = AttentionKind(layer, scaling, sliding_window, softcap)
    return layout.attend(kind, query, key, value).transpose(1, 2).contiguous(), None


def _is_windowed(config: PretrainedConfig, layer: int) -> bool:
    """Whether by its configuration a layer sees only a part of what comes before a token."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is not None
    return "sliding" in kinds[layer] or "chunked" in kinds[layer]


def masked_attention(
    kind: AttentionKind,
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S W"],
    visible: Bool[Tensor, "Q S"] | None,
) -> Float[Tensor, "B H Q W"]:
    """Softmax attention; `visible=None` means plain causal over Q = S tokens."""
    grouped = query.shape[1] != key.shape[1]
    if kind.softcap is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            is_causal=visible is None,
            scale=kind.scaling,
            enable_gqa=grouped,
        )
    if visible is None:
        visible = causal_visibility(query.shape[2], 0, None, query.device)
    if grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query * kind.scaling) @ key.transpose(-1, -2)  # (B, H, Q, S)
    scores = kind.softcap * torch.tanh(scores / kind.softcap)
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value


def causal_visibility(
    num_queries: int, num_before: int, window: int | None, device: torch.device
) -> Bool[Tensor, "Q S"]:
    """Which of `num_before + num_queries` keys each query sees, when query i stands at num_before + i."""
    query_position = torch.arange(num_queries, device=device)[:, None] + num_before
    key_position = torch.arange(num_before + num_queries, device=device)[None, :]
    visible = key_position <= query_position
    if window is not None:
        visible &= key_position > query_position - window
    return visible


@dataclass(frozen=True, slots=True)
class PackedSpan:
    """Where one group lies in a packed row: its prompt, then the tokens of its completions."""

    start: int
    prompt_length: int
    completion_lengths: tuple[int, ...]
    """Input tokens of each completion (its last token is predicted, never an input); may be 0."""

    @property
    def stop(self) -> int:
        return self.start + self.prompt_length + sum(self.completion_lengths)


class PackedGroups:
    """Whole groups in one row: a completion sees its group's prompt and itself, nothing else.

    Linear layers run over the packed row, so a prompt is computed once per group and nothing is padded;
    only attention unpacks the completions of a group into a padded batch, so that its cost grows with
    G · C · (P + C) and not with the square of the packed length.
    """

    def __init__(self, spans: Iterable[PackedSpan]):
        self.spans = tuple(spans)
        self._paddings: dict[PackedSpan, _Padding] = {}

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (N, heads, D)
        parts = [self._attend_group(kind, span, *rows) for span in self.spans]
        return torch.cat(parts).transpose(0, 1)[None]  # (1, H, N, D)

    def _attend_group(
        self,
        kind: AttentionKind,
        span: PackedSpan,
        query: Float[Tensor, "N H D"],
        key: Float[Tensor, "N K D"],
        value: Float[Tensor, "N K W"],
    ) -> Float[Tensor, "n H W"]:
        boundary = span.start + span.prompt_length
        prompt_query, prompt_key, prompt_value = (
            tensor[span.start : boundary].transpose(0, 1)[None] for tensor in (query, key, value)
        )
        visible = None
        if kind.sliding_window is not None and span.prompt_length > kind.sliding_window:
            visible = causal_visibility(span.prompt_length, 0, kind.sliding_window, query.device)
        prompt_output = masked_attention(kind, prompt_query, prompt_key, prompt_value, visible)
        prompt_output = prompt_output[0].transpose(0, 1)
        longest = max(span.completion_lengths, default=0)
        if longest == 0:
            return prompt_output

        padding = self._padding(span, query.device)
        own_query, own_key, own_value = (
            padding.pad(tensor[boundary : span.stop]).transpose(1, 2)
            for tensor in (query, key, value)
        )
        keys, values = (
            torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)
            for shared, own in ((prompt_key, own_key), (prompt_value, own_value))
        )
        visible = padding.visibility(kind.sliding_window)
        output = masked_attention(kind, own_query, keys, values, visible)  # (G, H, C, D)
        return torch.cat([prompt_output, padding.unpad(output.transpose(1, 2))])

    def _padding(self, span: PackedSpan, device: torch.device) -> "_Padding":
        if span not in self._paddings:
            self._paddings[span] = _Padding(span, device)
        return self._paddings[span]


class _Padding:
    """The completions of a span as a padded batch of G rows of C tokens, and back."""

    def __init__(self, span: PackedSpan, device: torch.device):
        lengths = torch.tensor(span.completion_lengths, device=device)
        self._shape = len(lengths), int(lengths.max())
        self._prompt_length = span.prompt_length
        is_token = torch.arange(self._shape[1], device=device) < lengths[:, None]
        self._places = is_token.flatten().nonzero()[:, 0]  # (n,) of G · C
        self._visible: dict[int | None, Tensor] = {}

    def pad(self, tokens: Float[Tensor, "n heads D"]) -> Float[Tensor, "G C heads D"]:
        """Zero where a completion has no token."""
        num_places = self._shape[0] * self._shape[1]
        padded: Tensor = _Scatter.apply(tokens, self._places, num_places)  # type: ignore[no-untyped-call]
        return padded.view(*self._shape, *tokens.shape[1:])

    def unpad(self, rows: Float[Tensor, "G C heads D"]) -> Float[Tensor, "n heads D"]:
        return _Gather.apply(rows.flatten(0, 1), self._places)  # type: ignore[no-any-return, no-untyped-call]

    def visibility(self, window: int | None) -> Bool[Tensor, "C S"]:
        """Which keys of prompt and completion a completion's tokens see."""
        if window not in self._visible:
            self._visible[window] = causal_visibility(
                self._shape[1], self._prompt_length, window, self._places.device
            )
        return self._visible[window]


class _Scatter(torch.autograd.Function):
    """Rows to distinct places among zeros; as no place occurs twice, its gradient is a plain gather."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, num_places: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros(num_places, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Gather(torch.autograd.Function):
    """Rows at distinct places; its gradient goes back to these and is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_places = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        zeros = gradients[0].new_zeros(ctx.num_places, *gradients[0].shape[1:])
        return zeros.index_copy_(0, places, gradients[0]), None
