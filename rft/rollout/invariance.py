"""From how many rows on a row's arithmetic stops depending on its neighbours, on this machine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rft.attention import AttentionKind, as_bias
from rft.head import Head
from rft.linear import Product
from rft.rollout.shared_slots import PROMPT_ROW_MULTIPLE, Meeting, shared_attention
from rft.rollout.slots import LENGTH_BUCKET, grouped_attention

EXAMINED_BUCKETS = 32
"""Attention is examined up to this many buckets, the shortest quarter one by one."""

ROW_MULTIPLE = 4
"""Row counts are multiples of this; only those are examined."""


PLAIN_LAYERS = (nn.Linear, Conv1D, nn.Embedding)


PREFILL_ROW_MULTIPLE = 32
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
    """Prompts may share a pass of at most so many rows, a multiple of `PREFILL_ROW_MULTIPLE`; 0 = none."""
    shares_prompts: bool = True
    """Whether rows that go on from one prompt may meet its keys together."""

    def padded(self, num_rows: int) -> int:
        """The smallest allowed row count that holds `num_rows`."""
        return max(self.min_rows, -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE)

    def padded_prompts(self, num_tokens: int) -> int:
        """The row count of a pass over prompts of so many tokens."""
        if num_tokens > self.max_prompt_rows:  # one prompt, which then is always alone
            return max(self.min_rows, num_tokens)
        return max(self.min_rows, -(-num_tokens // PREFILL_ROW_MULTIPLE) * PREFILL_ROW_MULTIPLE)


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
    shares_prompts = _shared_attention_is_invariant(model.config, counts)
    has_invariant_attention = shares_prompts or _attention_is_invariant(model.config, counts)
    if unsafe == counts[-1] or not has_invariant_attention:
        return RowInvariance(ROW_MULTIPLE, False, MOST_PROMPT_ROWS)
    prompt_counts = range(PREFILL_ROW_MULTIPLE, MOST_PROMPT_ROWS + 1, PREFILL_ROW_MULTIPLE)
    together = not any(_largest_unsafe_count(*layer, prompt_counts) for layer in layers)
    most_prompt_rows = MOST_PROMPT_ROWS if together else 0
    return RowInvariance(unsafe + ROW_MULTIPLE, True, most_prompt_rows, shares_prompts)


def _only_plain_matrices(model: PreTrainedModel) -> bool:
    """Whether every matrix is applied to all rows alike; experts see as many rows as the router sends."""
    plain = [m for m in model.modules() if isinstance(m, PLAIN_LAYERS)]
    examined = {id(parameter) for module in plain for parameter in module.parameters()}
    has_router = any("router" in name or "experts" in name for name, _ in model.named_modules())
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    return not has_router and all(id(parameter) in examined for parameter in matrices)


@dataclass(frozen=True, slots=True)
class _Heads:
    """The size of a model's attention."""

    num_kv_heads: int
    queries_per_key: int
    width: int

    @staticmethod
    def of(config: PretrainedConfig) -> "_Heads":
        config = config.get_text_config()
        num_heads = config.num_attention_heads
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        return _Heads(num_kv_heads, num_heads // num_kv_heads, width)

    def noise(self, num_sequences: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(num_sequences)
        return torch.randn(num_sequences * self.num_kv_heads, *shape, generator=generator)

    @property
    def kind(self) -> AttentionKind:
        return AttentionKind(0, self.width**-0.5, None, None)


CAPACITY = EXAMINED_BUCKETS * LENGTH_BUCKET
LENGTHS = (*range(LENGTH_BUCKET, CAPACITY // 4 + 1, LENGTH_BUCKET), CAPACITY // 2, CAPACITY)
NUM_SEEN = LENGTH_BUCKET // 2
"""Keys that rows of the examination see: those of the shortest neighbour."""


@torch.inference_mode()
def _attention_is_invariant(config: PretrainedConfig, counts: range) -> bool:
    """Whether a decoding row's attention is the same beside fewer or shorter neighbours."""
    heads = _Heads.of(config)
    query = heads.noise(counts[-1], heads.queries_per_key, heads.width)
    keys, values = (heads.noise(counts[-1], CAPACITY, heads.width) for _ in range(2))
    bias = as_bias(torch.arange(CAPACITY) < NUM_SEEN, torch.float32).expand(len(query), 1, -1)

    def attend(num_rows: int, length: int) -> Tensor:
        rows = num_rows * heads.num_kv_heads
        seen = keys[:rows, :length], values[:rows, :length]
        return grouped_attention(query[:rows], *seen, bias[:rows, :, :length], heads.kind)

    full = attend(counts[-1], CAPACITY)
    sizes = [(num_rows, length) for num_rows in (counts[0], counts[-1]) for length in LENGTHS]
    return all(torch.equal(attend(*size), full[: size[0] * heads.num_kv_heads]) for size in sizes)


@torch.inference_mode()
def _shared_attention_is_invariant(config: PretrainedConfig, counts: range) -> bool:
    """The same of rows that meet their prompts together: also beside more or fewer rows of the same prompt,
    and more or fewer prompts."""
    heads = _Heads.of(config)
    query = heads.noise(counts[-1], heads.queries_per_key, heads.width)
    prompts, own = (
        tuple(heads.noise(n, CAPACITY, heads.width) for _ in range(2)) for n in (2, counts[-1])
    )
    seen = as_bias(torch.arange(CAPACITY) < NUM_SEEN, torch.float32)

    def attend(num_rows: int, num_prompts: int, prompt_length: int, length: int) -> Tensor:
        """Rows 0…3 go on from the first of the prompts, the others from the last."""
        rows, places = num_rows * heads.num_kv_heads, num_prompts * heads.num_kv_heads
        of_rows = [0 if row < PROMPT_ROW_MULTIPLE else num_prompts - 1 for row in range(num_rows)]
        bias = torch.cat([seen[:prompt_length], seen[:length]]).expand(rows, 1, -1)
        attended = shared_attention(
            query[:rows],
            (prompts[0][:places, :prompt_length], prompts[1][:places, :prompt_length]),
            (own[0][:rows, :length], own[1][:rows, :length]),
            Meeting.of(of_rows, num_rows, heads.num_kv_heads, query.device),
            bias,
            heads.kind,
        )
        return attended[: PROMPT_ROW_MULTIPLE * heads.num_kv_heads]

    short = attend(PROMPT_ROW_MULTIPLE, 1, LENGTH_BUCKET, LENGTH_BUCKET)
    sizes = [(num_rows, 1, LENGTH_BUCKET, LENGTH_BUCKET) for num_rows in counts]
    sizes += [(num_rows, 2, LENGTH_BUCKET, LENGTH_BUCKET) for num_rows in counts[1:]]
    sizes += [(counts[-1], 2, length, LENGTH_BUCKET) for length in LENGTHS]
    sizes += [(counts[-1], 2, LENGTH_BUCKET, length) for length in LENGTHS]
    return all(
        torch.equal(attend(*size), short) for size in [*sizes, (counts[-1], 2, *LENGTHS[-2:])]
    )


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
