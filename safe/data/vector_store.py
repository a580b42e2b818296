"""Rows of float32 on disk by key: append-only, memory-mapped, safe to kill and to share."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe.data.append_log import AppendLog, file_lock
from safe.data.mapped_rows import MappedRows

Rows = NDArray[np.float32]


class VectorStore:
    """Vectors of one width under text keys, each with its clip's length in seconds.

    `vectors.f32` holds row after row. Line i of `index.jsonl` belongs to row i and is written only
    when the row is on disk, so a writer that is killed leaves at most rows without a line, which
    the next writer overwrites, or half a line, which it cuts off. Every row has a checksum over
    key and values, tested when it is first read; a row that fails counts as absent.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.dim = dim
        self._data_path = folder / "vectors.f32"
        self._lock = folder / "lock"
        self._index = AppendLog(folder / "index.jsonl")
        self._rows: dict[str, tuple[int, float]] = {}
        self._data: Rows = np.empty((0, dim), np.float32)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, keys: Sequence[str]) -> Rows:
        """Return a copy of the vectors [n, dim]; KeyError for a key that is absent."""
        return np.asarray(self._data[[self._rows[key][0] for key in keys]], dtype=np.float32)

    def mapped(self, keys: Sequence[str], shape: tuple[int, ...]) -> MappedRows:
        """Return the vectors, each as an array of this shape, without reading them yet."""
        return MappedRows(self._data, [self._rows[key][0] for key in keys], shape)

    def seconds(self, key: str) -> float:
        """Return the length that was stored with a key, in seconds."""
        return self._rows[key][1]

    def refresh(self) -> None:
        """Take in what other processes have added."""
        with file_lock(self._lock, shared=True):
            self._read_new()

    def append(self, keys: Sequence[str], vectors: Rows, seconds: Sequence[float]) -> None:
        """Add vectors [n, dim]; when the call returns they are on disk and visible to others."""
        data = np.ascontiguousarray(vectors, dtype="<f4")
        assert data.shape == (len(keys), self.dim) == (len(seconds), self.dim)
        with file_lock(self._lock):
            self._read_new()
            with open(self._data_path, "r+b" if self._data_path.exists() else "w+b") as file:
                file.seek(self._index.lines * self.dim * 4)
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._index.append(
                [
                    {"key": key, "crc": _checksum(key, row), "seconds": length}
                    for key, row, length in zip(keys, data, seconds, strict=True)
                ]
            )
            self._read_new()

    def _read_new(self) -> None:
        lines = self._index.read_new()
        if not lines:
            return
        count = self._data_path.stat().st_size // (self.dim * 4) if self._data_path.exists() else 0
        if count:
            shape = (count, self.dim)
            self._data = np.memmap(self._data_path, dtype="<f4", mode="r", shape=shape)
        for row, value in lines:
            if row < count and self._is_intact(row, value):
                self._rows[value["key"]] = (row, float(value["seconds"]))

    def _is_intact(self, row: int, value: dict[str, Any]) -> bool:
        key = value.get("key")
        return (
            isinstance(key, str)
            and isinstance(value.get("seconds"), float)
            and _checksum(key, self._data[row]) == value.get("crc")
        )


def _checksum(key: str, row: Rows) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(key.encode()))
