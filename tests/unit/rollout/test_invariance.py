"""Row counts at which a linear layer's rows do not depend on the row count."""

import pytest
import torch
import torch.nn.functional as F

from rft.head import read_head
from rft.rollout.invariance import ROW_MULTIPLE, RowInvariance, row_invariance
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("min_rows", "num_rows", "padded"),
    [(4, 1, 4), (4, 4, 4), (4, 5, 8), (12, 1, 12), (12, 12, 12), (12, 13, 16), (8, 0, 8)],
)
def test_padded(min_rows: int, num_rows: int, padded: int) -> None:
    assert RowInvariance(min_rows, True).padded(num_rows) == padded


@pytest.mark.parametrize("num_slots", [1, 18, 32])
def test_the_promise_holds_on_this_machine(num_slots: int) -> None:
    model = tiny_model()
    head = read_head(model)
    invariance = row_invariance(model, head, num_slots)
    assert invariance.min_rows % ROW_MULTIPLE == 0
    if not invariance.is_bitwise:
        pytest.skip("no row count is safe on this machine")
    largest = invariance.padded(num_slots)
    weights = [head.weight, *(m.weight for m in model.modules() if isinstance(m, torch.nn.Linear))]
    rows_by_width = {
        width: torch.randn(largest, width, generator=torch.Generator().manual_seed(width))
        for width in {weight.shape[1] for weight in weights}
    }
    for weight in weights:
        rows = rows_by_width[weight.shape[1]]
        full = F.linear(rows, weight)
        for count in range(invariance.min_rows, largest, ROW_MULTIPLE):
            assert torch.equal(F.linear(rows[:count], weight), full[:count])


def test_nothing_is_promised_for_half_precision() -> None:
    model = tiny_model().to(torch.bfloat16)
    assert row_invariance(model, read_head(model), 8) == RowInvariance(ROW_MULTIPLE, False)
