"""The GEMM limit: what a model's matrix products alone would take, each by the fastest kernel.

Every layer has its own weights, run in the model's order, so that caches are as cold as in the model.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Call = tuple[str, int, int]
"""Stage (`prefill` or `decode`), rows of its products, how often."""
Product = Callable[[Tensor], Tensor]
Kernel = Callable[[Tensor], Product]
"""Weight (out, in) → its product with (rows, in)."""
Seconds = Mapping[str, float]
"""Of all products of a name in one pass through the model."""

FUSIONS: Mapping[str, tuple[str, ...]] = {
    "q_proj+k_proj+v_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_proj+up_proj": ("gate_proj", "up_proj"),
}
"""Products of the same input that may be computed as one."""
HEAD = "head"
NUM_SWEEPS = 3


def plain(weight: Tensor) -> Product:
    return lambda rows: nn.functional.linear(rows, weight)


def prepacked(weight: Tensor) -> Product:
    """oneDNN with the weight in its own blocked layout."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda rows: linear(rows, packed, None, "none", [], "")  # type: ignore[no-any-return]


KERNELS: Mapping[str, Kernel] = {"torch linear": plain, "oneDNN prepacked": prepacked}


@dataclass(frozen=True)
class Operation:
    """One product of the model by one kernel."""

    name: str
    width: int
    """Of its input."""
    product: Product


def model_weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """The decoder's linear weights in order by the last part of their names, then the head's.

    Products that can be fused follow as one more, with a weight of its own.
    """
    weights: list[tuple[str, Tensor]] = []
    for layer in model.get_decoder().layers:
        linears = {
            name.rpartition(".")[2]: module.weight.detach()
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        weights += linears.items()
        for fused, parts in FUSIONS.items():
            if all(part in linears for part in parts):
                weights.append((fused, torch.cat([linears[part] for part in parts])))
    return [*weights, (HEAD, model.get_output_embeddings().weight.detach())]


def operations(weights: Sequence[tuple[str, Tensor]], kernel: Kernel) -> list[Operation]:
    return [Operation(name, weight.shape[1], kernel(weight)) for name, weight in weights]


@torch.inference_mode()
def sweep(ops: Sequence[Operation], num_rows: int) -> dict[str, float]:
    """One pass through all products: seconds by name."""
    inputs = {op.width: torch.randn(num_rows, op.width) for op in ops}
    seconds = dict.fromkeys((op.name for op in ops), 0.0)
    for op in ops:
        rows = inputs[op.width]
        began = time.perf_counter()
        op.product(rows)
        seconds[op.name] += time.perf_counter() - began
    return seconds


def measured(ops: Sequence[Operation], num_rows: int, num_sweeps: int = NUM_SWEEPS) -> Seconds:
    """Medians over sweeps, after one that is not counted."""
    sweep(ops, num_rows)
    sweeps = [sweep(ops, num_rows) for _ in range(num_sweeps)]
    return {name: statistics.median(one[name] for one in sweeps) for name in sweeps[0]}


def fastest(by_kernel: Mapping[str, Seconds]) -> Seconds:
    """The least seconds of each product over the kernels; fused ones take the place of their parts where
    they are faster."""
    names = next(iter(by_kernel.values()))
    best = {name: min(seconds[name] for seconds in by_kernel.values()) for name in names}
    for fused, parts in FUSIONS.items():
        if fused not in best:
            continue
        apart = sum(best[part] for part in parts)
        together = best.pop(fused)
        if together < apart:
            best = {name: value for name, value in best.items() if name not in parts}
            best[fused] = together
    return best


def limit_seconds(
    calls: Sequence[Call], by_rows: Mapping[int, Seconds], prefill_head_rows: int
) -> float:
    """Σ over calls: the layers at the call's rows, and the head at as many; a prefill draws from the last
    token of a prompt alone, so its head has `prefill_head_rows`."""
    total = 0.0
    for stage, num_rows, times in calls:
        layers = sum(value for name, value in by_rows[num_rows].items() if name != HEAD)
        head_rows = prefill_head_rows if stage == "prefill" else num_rows
        total += times * (layers + by_rows[head_rows][HEAD])
    return total


def rows_needed(calls: Sequence[Call], prefill_head_rows: int) -> list[int]:
    return sorted({prefill_head_rows, *(num_rows for _, num_rows, _ in calls)})
