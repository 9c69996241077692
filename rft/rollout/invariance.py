"""From how many rows on a row's arithmetic stops depending on its neighbours, on this machine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rft.attention import AttentionKind
from rft.head import Head
from rft.linear import Product
from rft.rollout.slots import LENGTH_BUCKET, grouped_attention

EXAMINED_BUCKETS = 32
"""Attention is examined up to this many buckets, the shortest quarter one by one."""

ROW_MULTIPLE = 4
"""Row counts are multiples of this; only those are examined."""


PLAIN_LAYERS = (nn.Linear, Conv1D, nn.Embedding)


PROMPT_ROW_MULTIPLE = 32
"""Row counts of passes over prompts are multiples of this."""

MOST_PROMPT_ROWS = 512
"""Where matrix products are as fast as they get."""


@dataclass(frozen=True, slots=True)
class RowInvariance:
    """The row counts the sampler may use."""

    min_rows: int
    is_bitwise: bool
    """Whether rows were bitwise equal for all allowed row counts."""
    max_prompt_rows: int = 0
    """Prompts may share a pass of at most so many rows, a multiple of `PROMPT_ROW_MULTIPLE`; 0 = none."""

    def padded(self, num_rows: int) -> int:
        """The smallest allowed row count that holds `num_rows`."""
        return max(self.min_rows, -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE)

    def padded_prompts(self, num_tokens: int) -> int:
        """The row count of a pass over prompts of so many tokens."""
        if num_tokens > self.max_prompt_rows:  # one prompt, which then is always alone
            return max(self.min_rows, num_tokens)
        return max(self.min_rows, -(-num_tokens // PROMPT_ROW_MULTIPLE) * PROMPT_ROW_MULTIPLE)


def row_invariance(
    model: PreTrainedModel, head: Head, num_slots: int, products: Sequence[Product] = ()
) -> RowInvariance:
    """Run each distinct matrix of the model, and `products`, at every row count, and attention at several row
    counts and lengths, and compare the rows bit by bit.

    Only a float32 model on the CPU is examined; elsewhere kernels choose by shape and nothing is promised.
    """
    examined = head.weight.device.type == "cpu" and head.weight.dtype == torch.float32
    if not examined or not _only_plain_matrices(model):
        return RowInvariance(ROW_MULTIPLE, False, MOST_PROMPT_ROWS)
    counts = range(ROW_MULTIPLE, max(num_slots, 16) + ROW_MULTIPLE, ROW_MULTIPLE)
    layers = list(_distinct_layers(model, products))
    decoding: list[Layer] = [*layers, (head.product, head.product.shape[1])]
    unsafe = max(_largest_unsafe_count(layer, width, counts) for layer, width in decoding)
    if unsafe == counts[-1] or not _attention_is_invariant(model.config, counts):
        return RowInvariance(ROW_MULTIPLE, False, MOST_PROMPT_ROWS)
    prompt_counts = range(PROMPT_ROW_MULTIPLE, MOST_PROMPT_ROWS + 1, PROMPT_ROW_MULTIPLE)
    shared = not any(_largest_unsafe_count(*layer, prompt_counts) for layer in layers)
    return RowInvariance(unsafe + ROW_MULTIPLE, True, MOST_PROMPT_ROWS if shared else 0)


def _only_plain_matrices(model: PreTrainedModel) -> bool:
    """Whether every matrix is applied to all rows alike; experts see as many rows as the router sends."""
    plain = [m for m in model.modules() if isinstance(m, PLAIN_LAYERS)]
    examined = {id(parameter) for module in plain for parameter in module.parameters()}
    has_router = any("router" in name or "experts" in name for name, _ in model.named_modules())
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    return not has_router and all(id(parameter) in examined for parameter in matrices)


@torch.inference_mode()
def _attention_is_invariant(config: PretrainedConfig, counts: range) -> bool:
    """Whether a decoding row's attention is the same beside fewer or shorter neighbours."""
    config = config.get_text_config()
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(counts[-1] * num_kv_heads, *shape, generator=generator)

    capacity = EXAMINED_BUCKETS * LENGTH_BUCKET
    query = noise(num_heads // num_kv_heads, width)
    keys, values = noise(capacity, width), noise(capacity, width)
    seen = torch.arange(capacity) < LENGTH_BUCKET // 2
    bias = torch.zeros(len(query), 1, capacity).masked_fill(~seen, float("-inf"))
    kind = AttentionKind(0, width**-0.5, None, None)

    def attend(rows: int, length: int) -> Tensor:
        rows *= num_kv_heads
        seen_keys, seen_values = (tensor[:rows, :length] for tensor in (keys, values))
        return grouped_attention(
            query[:rows], seen_keys, seen_values, bias[:rows, :, :length], kind
        )

    full = attend(counts[-1], capacity)
    lengths = [*range(LENGTH_BUCKET, capacity // 4 + 1, LENGTH_BUCKET), capacity // 2, capacity]
    sizes = [(rows, length) for rows in (counts[0], counts[-1]) for length in lengths]
    return all(torch.equal(attend(*size), full[: size[0] * num_kv_heads]) for size in sizes)


Layer = tuple[Callable[[Tensor], Tensor], int]
"""A linear layer and its number of inputs."""


def _distinct_layers(model: PreTrainedModel, products: Sequence[Product]) -> Iterator[Layer]:
    """One linear layer of each shape, and its number of inputs."""
    found: dict[tuple[object, ...], Layer] = {}
    for product in products:
        found[Product, product.shape] = product, product.shape[1]
    for module in model.get_decoder().modules():
        if isinstance(module, nn.Linear):
            found[nn.Linear, tuple(module.weight.shape)] = module, module.in_features
        elif isinstance(module, Conv1D):
            found[Conv1D, tuple(module.weight.shape)] = module, module.weight.shape[0]
    yield from found.values()


@torch.inference_mode()
def _largest_unsafe_count(layer: Callable[[Tensor], Tensor], width: int, counts: range) -> int:
    """The largest row count whose rows differ from those of the full product; 0 when none does."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(counts[-1], width, generator=generator)
    full = layer(rows)
    differing = [n for n in counts if not torch.equal(layer(rows[:n]), full[:n])]
    return max(differing, default=0)
