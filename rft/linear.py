"""Products with fixed matrices, by the fastest kernel of the device.

On a CPU in float32, oneDNN with a weight laid out for its kernels in advance does the same product in half
the time of the default one, and its rows are bitwise equal from fewer rows on.
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WORST_ERROR = 1e-5
"""Relative error beyond which a packed product is not believed."""

MOST_ROWS = 512
"""Of one product; more are computed in blocks of like size."""


class Product:
    """x ↦ x Mᵀ + b, for a matrix M of shape (N, K) that changes rarely. Carries no gradient."""

    def __init__(self, matrix: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None):
        """Without packing, `matrix` itself is kept, and written to by `replace`."""
        self.shape: tuple[int, ...] = tuple(matrix.shape)
        self.bias = bias
        is_float32 = matrix.device.type == "cpu" and matrix.dtype == torch.float32
        self.is_packed: bool = is_float32 and packing_works()
        self._matrix: Tensor = _packed(matrix) if self.is_packed else matrix

    @torch.no_grad()
    def replace(self, matrix: Float[Tensor, "N K"]) -> None:
        """Take another matrix of the same shape."""
        if self.is_packed:
            self._matrix = _packed(matrix)
        else:
            self._matrix.copy_(matrix)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where matrix and bias lie: work recorded with them stays valid as long as these are the same."""
        matrix = id(self._matrix) if self.is_packed else self._matrix.data_ptr()
        return (matrix,) if self.bias is None else (matrix, self.bias.data_ptr())

    def __call__(self, x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        if not self.is_packed:
            return F.linear(x, self._matrix, self.bias)
        num_rows = x.shape[:-1].numel()
        if num_rows == padded(num_rows):
            return _packed_product(x, self._matrix, self.bias)
        if num_rows < MOST_ROWS:
            return self._padded_product(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        product = x.new_empty(num_rows, self.shape[0])
        num_blocks = -(-num_rows // MOST_ROWS)
        blocks = (torch.chunk(rows, num_blocks) for rows in (product, x.flatten(0, -2)))
        for found, rows in zip(*blocks, strict=True):
            found.copy_(self._padded_product(rows))
        return product.view(*x.shape[:-1], -1)

    def _padded_product(self, rows: Float[Tensor, "R K"]) -> Float[Tensor, "R N"]:
        num_spare = padded(len(rows)) - len(rows)
        spared = F.pad(rows, (0, 0, 0, num_spare)) if num_spare else rows
        return _packed_product(spared, self._matrix, self.bias)[: len(rows)]


def padded(num_rows: int) -> int:
    """How many of at most `MOST_ROWS` rows a packed product is computed for: eight counts between n and 2n.

    For each count oneDNN makes a kernel, up to a megabyte, and keeps a thousand of them: with as many counts
    as there are lengths they would take half a gigabyte, and as much again in what they cut the heap into.
    """
    step = 1 << max(0, min(num_rows, MOST_ROWS).bit_length() - 4)
    return min(-(-num_rows // step) * step, MOST_ROWS)


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
