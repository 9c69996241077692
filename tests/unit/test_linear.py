"""Packed products: what they compute, and that they are used."""

import pytest
import torch
import torch.nn.functional as F

from rft.linear import Product, packing_works, padded, transposed_product


def test_this_torch_packs() -> None:
    assert packing_works()
    assert Product(torch.randn(8, 4)).is_packed


@pytest.mark.parametrize("shape", [(5, 6), (64, 64), (130, 66), (1000, 3)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_that_of_the_plain_kernel(shape: tuple[int, int], has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[0], generator=generator, dtype=torch.float64) if has_bias else None
    x = torch.randn(2, 3, shape[1], generator=generator, dtype=torch.float64)
    product = Product(matrix.float(), None if bias is None else bias.float())
    expected = F.linear(x, matrix, bias)
    found = product(x.float()).double()
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_a_transposed_view_is_a_matrix_like_any() -> None:
    matrix, x = torch.randn(7, 5), torch.randn(4, 7)
    assert torch.allclose(Product(matrix.T)(x), x @ matrix, atol=1e-5)


def test_another_matrix_takes_its_place_without_touching_the_first() -> None:
    first, second, x = torch.randn(3, 4), torch.randn(3, 4), torch.randn(2, 4)
    kept = first.clone()
    product = Product(first)
    product.replace(second)
    assert torch.allclose(product(x), x @ second.T, atol=1e-6)
    assert torch.equal(first, kept)


def test_other_number_formats_take_the_plain_kernel() -> None:
    matrix, x = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(2, 4, dtype=torch.bfloat16)
    product = Product(matrix.clone())
    assert not product.is_packed
    assert torch.equal(product(x), F.linear(x, matrix))
    product.replace(-matrix)
    assert torch.equal(product(x), F.linear(x, -matrix))


@pytest.mark.parametrize("num_rows", [31, 32, 33, 130, 257, 1700])
def test_spare_rows_change_no_row(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, x = torch.randn(24, 40, generator=generator), torch.randn(num_rows, 40)
    product = Product(matrix)
    found = product(x[None])
    assert found.shape == (1, num_rows, 24) and found.is_contiguous()
    assert (found[0] - x @ matrix.T).norm() < 1e-5 * found.norm()
    spare = torch.full((padded(num_rows) - num_rows, 40), 7.0)
    assert torch.equal(product(torch.cat([x, spare]))[:num_rows], found[0])


def test_few_row_counts_are_computed_for() -> None:
    counts = {padded(n) for n in range(1, 4097)}
    assert len(counts) == 16 + 8 * 8
    assert all(n <= padded(n) <= n * 9 / 8 for n in range(1, 4097))
    assert all(padded(n) == n for n in [*range(17), *counts])


def test_the_transposed_product_is_of_all_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n, 40, generator=generator) for n in (24, 8, 16)]
    kept = [matrix.clone() for matrix in matrices]
    y = torch.randn(31, 48, generator=generator)
    found = transposed_product(y, matrices)
    expected = y.double() @ torch.cat(matrices).double()
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert all(torch.equal(a, b) for a, b in zip(matrices, kept, strict=True))
