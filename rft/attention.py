"""One attention function for every transformers model, and the packed layout of the training pass.

A model prepared by `use_layouts` is called with `layout=…`; each attention layer then asks the layout to attend.
The layout knows which token sees which: `PackedGroups` here for training, prefill and decode in `rft.rollout`.

Shapes: B rows, H query heads, K key-value heads (H = K · R), Q query tokens, S key tokens, D head width,
W that of the values, which is D in most families.
"""

from collections.abc import Iterable, Sequence
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
    bias: Float[Tensor, "#B 1 Q S"] | Float[Tensor, "Q S"] | None,
) -> Float[Tensor, "B H Q W"]:
    """Softmax attention, `bias` (0 where a key is seen, −inf elsewhere) added to the scores; None means plain
    causal over Q = S tokens."""
    grouped = query.shape[1] != key.shape[1]
    is_exact = query.dtype == torch.float32
    if grouped and (kind.softcap is not None or (query.is_cuda and (bias is not None or is_exact))):
        # with a mask, and in float32, CUDA has no kernel for shared keys but one that keeps all the scores
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        grouped = False
    if kind.softcap is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias,
            is_causal=bias is None,
            scale=kind.scaling,
            enable_gqa=grouped,
        )
    if bias is None:
        bias = as_bias(causal_visibility(query.shape[2], 0, None, query.device), query.dtype)
    scores = (query * kind.scaling) @ key.transpose(-1, -2)  # (B, H, Q, S)
    scores = kind.softcap * torch.tanh(scores / kind.softcap)
    return (scores + bias).softmax(-1) @ value


def as_bias(visible: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """0 where True, −inf where False."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, float("-inf"))


def causal_attention(
    kind: AttentionKind,
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S W"],
) -> Float[Tensor, "B H Q W"]:
    """Softmax attention of the last Q of S tokens, each to itself and those before it."""
    num_before = key.shape[2] - query.shape[2]
    bias = causal_bias(query, num_before, kind.sliding_window)
    return masked_attention(kind, query, key, value, bias)


def causal_bias(
    query: Float[Tensor, "B H Q D"], num_before: int, window: int | None
) -> Float[Tensor, "Q S"] | None:
    """Of queries behind so many keys, each seeing itself and those before it; None where plain causal order is
    that."""
    num_tokens = query.shape[2]
    if num_before == 0 and (window is None or num_tokens <= window):
        return None
    visible = causal_visibility(num_tokens, num_before, window, query.device)
    return as_bias(visible, query.dtype)


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
    """Without what the row's prompts have in common."""
    completion_lengths: tuple[int, ...]
    """Input tokens of each completion (its last token is predicted, never an input); may be 0."""

    @property
    def stop(self) -> int:
        return self.start + self.prompt_length + sum(self.completion_lengths)


_Rows = tuple[Tensor, ...]
"""Query (n, H, D), key (n, K, D) and value (n, K, W) of some tokens of a row."""


class PackedGroups:
    """Whole groups in one row: a completion sees its group's prompt and itself, nothing else.

    Linear layers run over the packed row, so a prompt is computed once per group, what all prompts begin with
    once per row, and nothing is padded; only attention unpacks completions into a padded batch, so that its
    cost grows with G · C · (P + C) and not with the square of the packed length.
    """

    def __init__(
        self,
        spans: Iterable[PackedSpan],
        prefix_length: int = 0,
        num_spare: int = 0,
        *,
        are_apart: bool = False,
    ):
        """`prefix_length`: tokens at the start of the row that every prompt in it begins with; `num_spare`: at
        its end, that nobody sees. `are_apart`: each group attends by itself, so that not even its last digits
        depend on the others; else those of like lengths attend together."""
        self.spans = tuple(spans)
        self.prefix_length = prefix_length
        self._num_spare = num_spare
        together = [[span] for span in self.spans]
        if not are_apart:
            together = _alike(self.spans, prefix_length)
        self._blocks = [_Block(some, prefix_length) for some in together]

    def attend(self, kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # splits: the gradient of each slice by itself would be as long as the row
        sizes = [self.prefix_length, *(block.num_tokens for block in self._blocks), self._num_spare]
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (N, heads, D)
        prefix, *pieces, spare = zip(*(torch.split(tensor, sizes) for tensor in rows), strict=True)
        outputs = [_attend_prefix(kind, prefix)] if self.prefix_length else []
        for block, piece in zip(self._blocks, pieces, strict=True):
            outputs.append(block.attend(kind, prefix, piece))
        outputs.append(spare[0].new_zeros(*spare[0].shape[:2], value.shape[-1]))
        return torch.cat(outputs).transpose(0, 1)[None]  # (1, H, N, D)


def _attend_prefix(kind: AttentionKind, prefix: _Rows) -> Float[Tensor, "n H W"]:
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in prefix)
    return causal_attention(kind, query, key, value)[0].transpose(0, 1)


MOST_PADDING = 1.5
"""Places per token up to which groups attend together."""

MOST_PAIRS = 1 << 22
"""Of a token and one it may see, up to which groups attend together or behind a prefix: each has a place in a
mask, which plain causal order does without."""


def _alike(spans: Iterable[PackedSpan], prefix_length: int) -> list[list[PackedSpan]]:
    """Neighbours together as long as little of what they are padded to is padding."""
    together: list[list[PackedSpan]] = []
    for span in spans:
        if together and _is_worth_padding([*together[-1], span], prefix_length):
            together[-1].append(span)
        else:
            together.append([span])
    return together


def _is_worth_padding(spans: Sequence[PackedSpan], prefix_length: int) -> bool:
    prompt, completions, longest = _padded_sizes(spans)
    before, num_own = prefix_length + prompt, completions * longest
    num_places = len(spans) * (prompt + num_own)
    num_pairs = len(spans) * (prompt * before + num_own * (before + longest))
    num_tokens = sum(span.stop - span.start for span in spans)
    return num_places <= MOST_PADDING * num_tokens and num_pairs <= MOST_PAIRS


def _padded_sizes(spans: Sequence[PackedSpan]) -> tuple[int, int, int]:
    """P, G, C: prompt tokens, completions, and tokens of a completion that hold all the groups."""
    return (
        max(span.prompt_length for span in spans),
        max(len(span.completion_lengths) for span in spans),
        max((length for span in spans for length in span.completion_lengths), default=0),
    )


class _Block:
    """Consecutive spans as a padded batch of g groups: P prompt tokens, then G completions of C tokens."""

    def __init__(self, spans: Sequence[PackedSpan], prefix_length: int):
        self.num_tokens: int = spans[-1].stop - spans[0].start
        self._num_groups = len(spans)
        self._sizes = _padded_sizes(spans)
        self._prefix_length = prefix_length
        self._prompt_lengths = [span.prompt_length for span in spans]
        prompt, completions, longest = self._sizes
        per_group = prompt + completions * longest
        places: list[int] = []
        for group, span in enumerate(spans):
            first = group * per_group
            places += range(first, first + span.prompt_length)
            for index, length in enumerate(span.completion_lengths):
                begin = first + prompt + index * longest
                places += range(begin, begin + length)
        self._places = torch.tensor(places)
        """Where each token of the row goes."""
        self._tokens = torch.zeros(len(spans) * per_group, dtype=torch.long)
        """Which token each place holds: where there is none, the first, seen by nobody."""
        self._tokens[self._places] = torch.arange(len(places))
        self._biases: dict[tuple[str, int | None], Tensor] = {}
        """Made once for all layers: each keeps its mask until the backward pass."""

    def attend(self, kind: AttentionKind, prefix: _Rows, own: _Rows) -> Float[Tensor, "n H W"]:
        prompt, completions, longest = self._sizes
        self._places = places = self._places.to(own[0].device)
        self._tokens = tokens = self._tokens.to(own[0].device)
        query, key, value = (
            _Arrange.apply(tensor, tokens, places)  # type: ignore[no-untyped-call]
            .view(self._num_groups, -1, *tensor.shape[1:])
            .split([prompt, completions * longest], dim=1)
            for tensor in own
        )
        seen_keys, seen_values = key[0], value[0]
        if self._prefix_length:
            seen_keys, seen_values = (
                torch.cat([shared.expand(self._num_groups, -1, -1, -1), padded], dim=1)
                for shared, padded in ((prefix[1], key[0]), (prefix[2], value[0]))
            )
        prompt_query, prompt_keys, prompt_values = (
            tensor.transpose(1, 2) for tensor in (query[0], seen_keys, seen_values)
        )
        bias = self._prompt_bias(kind.sliding_window, prompt_query)
        attended = masked_attention(kind, prompt_query, prompt_keys, prompt_values, bias)
        outputs = [attended.transpose(1, 2)]
        if longest:
            own_query, own_keys, own_values = (
                tensor[1].unflatten(1, (completions, longest)) for tensor in (query, key, value)
            )
            keys, values = (
                torch.cat([shared.unsqueeze(1).expand(-1, completions, -1, -1, -1), padded], dim=2)
                for shared, padded in ((seen_keys, own_keys), (seen_values, own_values))
            )
            own_query, keys, values = (
                tensor.flatten(0, 1).transpose(1, 2) for tensor in (own_query, keys, values)
            )
            bias = self._completion_bias(kind.sliding_window, own_query)
            attended = masked_attention(kind, own_query, keys, values, bias)
            attended = attended.transpose(1, 2)  # (g G, C, H, W)
            outputs.append(attended.reshape(self._num_groups, -1, *attended.shape[2:]))
        return _Gather.apply(torch.cat(outputs, dim=1).flatten(0, 1), places)  # type: ignore[no-any-return, no-untyped-call]

    def _prompt_bias(self, window: int | None, like: Tensor) -> Float[Tensor, "P S"] | None:
        """Of the prompts' own tokens; padding stands behind them, where causal order hides it."""
        prompt, _, _ = self._sizes
        if not self._prefix_length and (window is None or prompt <= window):
            return None
        if ("prompt", window) not in self._biases:
            visible = causal_visibility(prompt, self._prefix_length, window, like.device)
            self._biases["prompt", window] = as_bias(visible, like.dtype)
        return self._biases["prompt", window]

    def _completion_bias(self, window: int | None, like: Tensor) -> Float[Tensor, "gG 1 C S"]:
        """Of the completions' tokens: which keys of prefix, prompt and completion they see."""
        if ("completion", window) not in self._biases:
            prompt, completions, longest = self._sizes
            starts = self._prefix_length + torch.tensor(self._prompt_lengths)[:, None]  # (g, 1)
            before = torch.arange(self._prefix_length + prompt)[None]
            own = starts + torch.arange(longest)[None]  # positions (g, C)
            positions = torch.cat([before.expand(len(starts), -1), own], dim=1)  # (g, S)
            is_token = torch.cat([before < starts, torch.ones_like(own, dtype=torch.bool)], dim=1)
            visible = is_token[:, None] & (positions[:, None] <= own[:, :, None])  # (g, C, S)
            if window is not None:
                visible &= positions[:, None] > own[:, :, None] - window
            if len(visible) > 1:
                visible = visible.repeat_interleave(completions, dim=0)
            bias = as_bias(visible[:, None].to(like.device), like.dtype)
            self._biases["completion", window] = bias
        return self._biases["completion", window]


class _Arrange(torch.autograd.Function):
    """Rows at the places of a padded batch. As each has one place, and what stands elsewhere is seen by nobody,
    the gradient is a plain gather too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, tokens)

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
