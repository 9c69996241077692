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
from rft.rollout.shared_slots import Meeting, shared_attention
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
    prompt_row_multiple: int = ROW_MULTIPLE
    """Rows that go on from one prompt meet its keys together, in multiples of this; 0 = each with a copy."""

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
    # fewer rows go through other kernels, that of a single row above all
    is_safe = _shared_attention_is_invariant(model.config, counts, ROW_MULTIPLE)
    row_multiple = ROW_MULTIPLE if is_safe else 0
    has_invariant_attention = row_multiple > 0 or _attention_is_invariant(model.config, counts)
    if unsafe == counts[-1] or not has_invariant_attention:
        return RowInvariance(ROW_MULTIPLE, False, MOST_PROMPT_ROWS)
    prompt_counts = range(PREFILL_ROW_MULTIPLE, MOST_PROMPT_ROWS + 1, PREFILL_ROW_MULTIPLE)
    together = not any(_largest_unsafe_count(*layer, prompt_counts) for layer in layers)
    most_prompt_rows = MOST_PROMPT_ROWS if together else 0
    return RowInvariance(unsafe + ROW_MULTIPLE, True, most_prompt_rows, row_multiple)


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

    def noise(self, generator: torch.Generator, num_sequences: int, *shape: int) -> Tensor:
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
    generator = torch.Generator().manual_seed(0)
    query = heads.noise(generator, counts[-1], heads.queries_per_key, heads.width)
    keys, values = (heads.noise(generator, counts[-1], CAPACITY, heads.width) for _ in range(2))
    bias = as_bias(torch.arange(CAPACITY) < NUM_SEEN, torch.float32).expand(len(query), 1, -1)

    def attend(num_rows: int, length: int) -> Tensor:
        rows = num_rows * heads.num_kv_heads
        seen = keys[:rows, :length], values[:rows, :length]
        return grouped_attention(query[:rows], *seen, bias[:rows, :, :length], heads.kind)

    full = attend(counts[-1], CAPACITY)
    sizes = [(num_rows, length) for num_rows in (counts[0], counts[-1]) for length in LENGTHS]
    return all(torch.equal(attend(*size), full[: size[0] * heads.num_kv_heads]) for size in sizes)


@torch.inference_mode()
def _shared_attention_is_invariant(
    config: PretrainedConfig, counts: range, row_multiple: int
) -> bool:
    """Whether rows that meet their prompts together are the same wherever they stand, beside more or fewer rows
    of the same prompt, more or fewer prompts, and longer or shorter neighbours: all rows of the examination have
    the same query, prompt and keys."""
    heads, num_rows = _Heads.of(config), counts[-1]
    generator = torch.Generator().manual_seed(0)
    query = heads.noise(generator, 1, heads.queries_per_key, heads.width)
    prompt, own = (
        [heads.noise(generator, 1, CAPACITY, heads.width) for _ in range(2)] for _ in range(2)
    )
    seen = as_bias(torch.arange(CAPACITY) < NUM_SEEN, torch.float32)

    def attend(prompts: Sequence[int], prompt_length: int, length: int) -> Tensor:
        """`prompts`: of each row, which it goes on from. Gives (rows, K R D)."""
        rows, num_prompts = len(prompts), max(prompts) + 1
        prompt_keys, prompt_values = (
            t[:, :prompt_length].repeat(num_prompts, 1, 1) for t in prompt
        )
        own_keys, own_values = (t[:, :length].repeat(rows, 1, 1) for t in own)
        bias = torch.cat([seen[:prompt_length], seen[:length]])
        attended: Tensor = shared_attention(
            query.repeat(rows, 1, 1),
            (prompt_keys, prompt_values),
            (own_keys, own_values),
            Meeting.of(prompts, rows, heads.num_kv_heads, query.device, row_multiple),
            bias.expand(rows * heads.num_kv_heads, 1, -1),
            heads.kind,
        )
        return attended.view(rows, -1)

    alike = [[0] * n for n in range(row_multiple, num_rows + 1, row_multiple)]
    unlike = [[row % n for row in range(num_rows)] for n in (2, 3, num_rows)]
    one_large = [0] * num_rows + [1, 2, 2, 3, 4, 5, 6]
    halves = unlike[0]
    sizes = [(prompts, LENGTH_BUCKET, LENGTH_BUCKET) for prompts in (*alike, *unlike, one_large)]
    sizes += [(halves, length, LENGTH_BUCKET) for length in LENGTHS]
    sizes += [(one_large, length, LENGTH_BUCKET) for length in LENGTHS]
    sizes += [(unlike[-1], length, LENGTH_BUCKET) for length in LENGTHS if length <= CAPACITY // 4]
    sizes += [(halves, LENGTH_BUCKET, length) for length in LENGTHS]
    sizes += [(prompts, CAPACITY, CAPACITY) for prompts in (halves, one_large)]
    first = attend(*sizes[0])[0]
    return all(bool((attend(*size) == first).all()) for size in sizes)


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
