"""How many rows a linear layer needs on this machine before a row stops depending on the row count."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rft.head import Head

ROW_MULTIPLE = 4
"""Row counts are multiples of this; only those are examined."""


@dataclass(frozen=True, slots=True)
class RowInvariance:
    """The row counts the sampler may use."""

    min_rows: int
    is_bitwise: bool
    """Whether rows were bitwise equal for all allowed row counts."""

    def padded(self, num_rows: int) -> int:
        """The smallest allowed row count that holds `num_rows`."""
        return max(self.min_rows, -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE)


def row_invariance(model: PreTrainedModel, head: Head, num_slots: int) -> RowInvariance:
    """Run each distinct matrix of the model at every row count and compare the rows bit by bit.

    Only a float32 model on the CPU is examined; elsewhere kernels choose by shape and nothing is promised.
    """
    weights = _distinct_weights(model, head)
    examined = head.weight.device.type == "cpu" and head.weight.dtype == torch.float32
    if not examined:
        return RowInvariance(ROW_MULTIPLE, is_bitwise=False)
    counts = range(ROW_MULTIPLE, max(num_slots, 16) + ROW_MULTIPLE, ROW_MULTIPLE)
    unsafe = max(_largest_unsafe_count(weight, counts) for weight in weights)
    if unsafe + ROW_MULTIPLE > counts[-1]:
        return RowInvariance(ROW_MULTIPLE, is_bitwise=False)
    return RowInvariance(unsafe + ROW_MULTIPLE, is_bitwise=True)


def _distinct_weights(model: PreTrainedModel, head: Head) -> list[Tensor]:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    by_shape = {tuple(module.weight.shape): module.weight for module in linears}
    by_shape[tuple(head.weight.shape)] = head.weight
    return list(by_shape.values())


@torch.inference_mode()
def _largest_unsafe_count(weight: Tensor, counts: range) -> int:
    """The largest row count whose rows differ from those of the full matrix; 0 when none does."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(counts[-1], weight.shape[1], generator=generator)
    full = F.linear(rows, weight)
    differing = [n for n in counts if not torch.equal(F.linear(rows[:n], weight), full[:n])]
    return max(differing, default=0)
