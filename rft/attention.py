"""One attention function for every transformers model, and the packed layout of the training pass.

A model prepared by `use_layouts` is called with `layout=…`; each attention layer then asks the layout to attend.
The layout knows which token sees which: `PackedGroups` here for training, prefill and decode in `rft.rollout`.

Shapes: B rows, H query heads, K key-value heads (H = K · R), Q query tokens, S key tokens, D head width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

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
        value: Float[Tensor, "B K Q D"],
    ) -> Float[Tensor, "B H Q D"]: ...


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
    kind = AttentionKind(layer, scaling, sliding_window, softcap)
    return layout.attend(kind, query, key, value).transpose(1, 2).contiguous(), None


def masked_attention(
    kind: AttentionKind,
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    visible: Bool[Tensor, "Q S"] | None,
) -> Float[Tensor, "B H Q D"]:
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

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = [self._attend_group(kind, span, query, key, value) for span in self.spans]
        return torch.cat(parts, dim=1)[None]  # (1, H, N, D)

    def _attend_group(
        self, kind: AttentionKind, span: PackedSpan, query: Tensor, key: Tensor, value: Tensor
    ) -> Float[Tensor, "H N D"]:
        boundary = span.start + span.prompt_length
        prompt_query, prompt_key, prompt_value = (
            tensor[:, :, span.start : boundary] for tensor in (query, key, value)
        )
        visible = None
        if kind.sliding_window is not None and span.prompt_length > kind.sliding_window:
            visible = causal_visibility(span.prompt_length, 0, kind.sliding_window, query.device)
        prompt_output = masked_attention(kind, prompt_query, prompt_key, prompt_value, visible)[0]
        longest = max(span.completion_lengths, default=0)
        if longest == 0:
            return prompt_output

        lengths = torch.tensor(span.completion_lengths, device=query.device)
        offsets = torch.arange(longest, device=query.device)
        is_token = offsets < lengths[:, None]  # (G, C)
        starts = boundary + lengths.cumsum(0) - lengths
        index = torch.where(is_token, starts[:, None] + offsets, boundary)  # (G, C)
        own_query, own_key, own_value = (
            tensor[0][:, index].transpose(0, 1) for tensor in (query, key, value)
        )
        keys, values = (
            torch.cat([shared.expand(len(lengths), -1, -1, -1), own], dim=2)
            for shared, own in ((prompt_key, own_key), (prompt_value, own_value))
        )
        visible = causal_visibility(longest, span.prompt_length, kind.sliding_window, query.device)
        output = masked_attention(kind, own_query, keys, values, visible)  # (G, H, C, D)
        output = output.permute(0, 2, 1, 3)[is_token].transpose(0, 1)  # (H, sum of lengths, D)
        return torch.cat([prompt_output, output], dim=1)
