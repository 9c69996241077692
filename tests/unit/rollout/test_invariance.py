"""Row counts at which a linear layer's rows do not depend on the row count."""

import pytest
import torch
from torch import Tensor

from rft.head import read_head
from rft.linear import Product
from rft.rollout import invariance, shared_slots
from rft.rollout.invariance import (
    MOST_PROMPT_ROWS,
    PREFILL_ROW_MULTIPLE,
    ROW_MULTIPLE,
    RowInvariance,
    row_invariance,
)
from rft.rollout.shared_slots import Meeting
from tests.tiny import tiny_model, tiny_policy


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
    layers = [(m, m.in_features) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    for layer, width in [*layers, (head.product, head.weight.shape[1])]:
        rows = torch.randn(largest, width, generator=torch.Generator().manual_seed(width))
        with torch.no_grad():
            full = layer(rows)
            for count in range(invariance.min_rows, largest, ROW_MULTIPLE):
                assert torch.equal(layer(rows[:count]), full[:count])


def test_prompts_share_a_pass_where_row_counts_do_not_matter() -> None:
    policy = tiny_policy()
    products = policy.merged.products
    invariance = row_invariance(policy.merged.model, policy.head, 8, products)
    assert invariance.max_prompt_rows == MOST_PROMPT_ROWS
    for product in products:
        rows = torch.randn(MOST_PROMPT_ROWS, product.shape[1])
        full = product(rows)
        for count in range(PREFILL_ROW_MULTIPLE, MOST_PROMPT_ROWS, PREFILL_ROW_MULTIPLE):
            assert torch.equal(product(rows[:count]), full[:count])


@pytest.mark.parametrize(
    ("max_prompt_rows", "num_tokens", "rows"),
    [(512, 1, 32), (512, 33, 64), (512, 512, 512), (512, 513, 513), (0, 1, 4), (0, 46, 46)],
)
def test_rows_of_a_pass_over_prompts(max_prompt_rows: int, num_tokens: int, rows: int) -> None:
    assert RowInvariance(4, True, max_prompt_rows).padded_prompts(num_tokens) == rows


def test_a_matrix_whose_rows_depend_on_their_number_keeps_prompts_apart() -> None:
    class Moody(Product):
        """Other kernels take over beyond 100 rows."""

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :8] * (1 + 1e-6 * (len(x) > 100))

    policy = tiny_policy()
    products = [*policy.merged.products, Moody(torch.zeros(8, 64))]
    invariance = row_invariance(policy.merged.model, policy.head, 8, products)
    assert invariance == RowInvariance(invariance.min_rows, True, 0, invariance.prompt_row_multiple)


def test_nothing_is_promised_for_half_precision() -> None:
    model = tiny_model().to(torch.bfloat16)
    invariance = row_invariance(model, read_head(model), 8)
    assert invariance == RowInvariance(ROW_MULTIPLE, False, MOST_PROMPT_ROWS)


def test_where_no_number_of_rows_beside_a_prompt_is_safe_each_has_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the last digits of a row depend on where it stands among those of its prompt."""
    policy = tiny_policy()
    products = policy.merged.products
    alone = row_invariance(policy.merged.model, policy.head, 16, products).prompt_row_multiple
    attend, spoilt = shared_slots.shared_attention, 0

    def moody(query: Tensor, of_prompts: object, own: object, meeting: Meeting, *others: object):  # type: ignore[no-untyped-def]
        """A tail kernel takes the last rows of a number that is not whole."""
        output = attend(query, of_prompts, own, meeting, *others)
        if any(count % spoilt for count in meeting.num_beside):
            output[-1] *= 1 + 1e-6
        return output

    monkeypatch.setattr(invariance, "shared_attention", moody)
    found = []
    for multiple in (1, 2, 4, 8):
        spoilt = multiple
        found.append(row_invariance(policy.merged.model, policy.head, 16, products))
    multiples = [one.prompt_row_multiple for one in found]
    assert multiples == [4, 4, 4, 0] or alone == 0
    assert all(one.is_bitwise for one in found)
