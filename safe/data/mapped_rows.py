"""Rows of a file that are read when they are looked at: 49,838 clips x 64 x 768 are 9.8 GB."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedRows:
    """Chosen rows of a memory-mapped array, each of a shape; choosing again reads nothing.

    Where values are needed, ``np.array(rows)`` or any NumPy function reads them.

    Args:
        data: [rows, values] on disk.
        rows: which rows, in this order; a row may occur more than once.
        shape: of one row's values.
    """

    def __init__(
        self,
        data: NDArray[np.float32],
        rows: Sequence[int] | NDArray[np.int64],
        shape: tuple[int, ...],
    ) -> None:
        self._data, self._rows = data, np.asarray(rows, dtype=np.int64)
        self._shape = shape
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...] as the array would have it."""
        return (len(self), *self._shape)

    def __getitem__(self, chosen: Any) -> "MappedRows":
        """Return some of the rows: a slice, a list or an array of places."""
        return MappedRows(self._data, np.atleast_1d(self._rows[chosen]), self._shape)

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> NDArray[np.float32]:
        if copy is False:
            raise ValueError("rows on disk can only be copied")
        values = np.asarray(self._data[self._rows], dtype=dtype or np.float32)
        return values.reshape(self.shape)
