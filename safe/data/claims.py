"""Saying "I am working on this one" to other processes."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class Claims:
    """Claims on hexadecimal keys, one locked byte of an empty file each.

    The kernel releases them when the process dies, so a killed worker blocks nobody. They save
    double work and nothing else: threads of one process do not exclude each other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def take(self, key: str) -> bool:
        """Claim a key; False when another process has it."""
        if self._descriptor < 0:  # not before: a full cache may lie in a folder we cannot write
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, key: str) -> None:
        """Give a claim back."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _place(key))


def _place(key: str) -> int:
    return int(key[:15], 16)  # 60 bits: offsets end at 2**63
