"""Products with fixed matrices, by the fastest kernel of the device.

On a CPU in float32, oneDNN with a weight laid out for its kernels in advance does the same product of few rows in
as little as half the time of the default one, and its rows are bitwise equal from fewer rows on.

N outputs and K inputs of a product.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WORST_ERROR = 1e-5
"""Relative error beyond which a packed product is not believed."""


class Product:
    """x ↦ x Mᵀ + b, for a matrix M of shape (N, K) that changes rarely. Carries no gradient."""

    def __init__(self, matrix: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None):
        """Without packing, `matrix` itself is kept, and written to by `replace`."""
        self.shape: tuple[int, ...] = tuple(matrix.shape)
        self.bias = bias
        self.is_packed: bool = (
            matrix.device.type == "cpu" and matrix.dtype == torch.float32 and packing_works()
        )
        self._matrix: Tensor = _packed(matrix) if self.is_packed else matrix
        self._num_moves = 0

    @torch.no_grad()
    def replace(self, matrix: Float[Tensor, "N K"]) -> None:
        """Take another matrix of the same shape."""
        if self.is_packed:
            self._matrix = _packed(matrix)
            self._num_moves += 1
        else:
            self._matrix.copy_(matrix)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where matrix and bias lie: work recorded with them stays valid as long as these are the same. A packed
        matrix moves at each replacement, and an address that was given up is soon another's: moves are counted."""
        matrix = self._num_moves if self.is_packed else self._matrix.data_ptr()
        return (matrix,) if self.bias is None else (matrix, self.bias.data_ptr())

    def num_rows(self, num_rows: int) -> int:
        """How many it is computed for when so many are given."""
        return padded(num_rows) if self.is_packed else num_rows

    def __call__(self, x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        if not self.is_packed:
            return F.linear(x, self._matrix, self.bias)
        num_rows = x.shape[:-1].numel()
        if num_rows == padded(num_rows):
            return _packed_product(x, self._matrix, self.bias)
        rows = F.pad(x.flatten(0, -2), (0, 0, 0, padded(num_rows) - num_rows))
        product = _packed_product(rows, self._matrix, self.bias)
        return product[:num_rows].view(*x.shape[:-1], -1)


def transposed_product(
    y: Float[Tensor, "B N"], matrices: Sequence[Float[Tensor, "Ni K"]]
) -> Float[Tensor, "B K"]:
    """y M, for fixed matrices of shape (Nᵢ, K) that make up M, one below the other. Carries no gradient.

    It is for the hundreds of rows of a training pass: with 300 to 1,280 torch's own products took 0.88 to 1.11 of
    the time of packed ones (the built-in model's shapes, two cores with AVX2), and no second layout is kept.
    """
    parts = torch.split(y, [len(matrix) for matrix in matrices], dim=-1)
    product = parts[0] @ matrices[0]
    for part, matrix in zip(parts[1:], matrices[1:], strict=True):
        product.addmm_(part, matrix)
    return product


def padded(num_rows: int) -> int:
    """How many rows a packed product of so many is computed for: eight counts between n and 2n.

    For each count oneDNN makes a kernel, in 10 ms and up to a megabyte and a half, and keeps a thousand of
    them: with as many counts as there are lengths they would take more than a gigabyte.
    """
    step = 1 << max(0, num_rows.bit_length() - 4)
    return -(-num_rows // step) * step


@functools.cache
def packing_works() -> bool:
    """Whether this torch has oneDNN's packed product and it computes what it should.

    The operators are those that torch's own compiler emits, but not part of its documented interface.
    """
    generator = torch.Generator().manual_seed(0)
    matrix, x = (torch.randn(n, 40, generator=generator) for n in (24, 5))
    try:
        product = _packed_product(x, _packed(matrix), None)
    except (AttributeError, RuntimeError):
        return False
    expected = x @ matrix.T
    return bool((product - expected).norm() <= WORST_ERROR * expected.norm())


def _packed(matrix: Float[Tensor, "N K"]) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)
    return packed


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product
