"""The order in which a job draws its rows."""

import numpy as np
from numpy.typing import NDArray


class PromptStream:
    """The rows a job draws, without end: one permutation of all rows after another, or always their own order.

    Shuffled, the row of ordinal o is p[o mod n] in epoch e = o // n, where p is the stable argsort of n raw
    64-bit draws of Philox(SeedSequence([seed, e])): a pure function of seed and ordinal. NumPy
    promises raw draws to stay what they are, shuffles not.
    """

    def __init__(self, num_rows: int, seed: int, cursor: int = 0, is_shuffled: bool = True):
        if num_rows < 1:
            raise ValueError("a stream needs at least one row")
        self._num_rows, self._seed, self._cursor = num_rows, seed, cursor
        self._is_shuffled = is_shuffled
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def cursor(self) -> int:
        """The ordinal of the next prompt."""
        return self._cursor

    def take(self, count: int) -> list[tuple[int, int]]:
        """The next prompts as (ordinal, row)."""
        taken = [
            (ordinal, self._row(ordinal)) for ordinal in range(self._cursor, self._cursor + count)
        ]
        self._cursor += count
        return taken

    def _row(self, ordinal: int) -> int:
        epoch, position = divmod(ordinal, self._num_rows)
        if not self._is_shuffled:
            return position
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self._num_rows, self._seed, epoch)
        return int(self._order[position])


def permutation(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of all rows in one epoch."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.argsort(bits.random_raw(num_rows), kind="stable")
