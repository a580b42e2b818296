"""Content hashes of audio files, remembered so that a file is read again only when it changed."""

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safe.data.append_log import AppendLog, file_lock
from safe.data.problems import AudioProblem

Stamp = tuple[int, int, int, int]
_SETTLED_NS = 2_000_000_000  # a file changed later than this ago may change again unnoticed
_FLUSH = 1024  # hashes kept in memory before they are written


class FileHashes:
    """SHA-256 of files by path, valid as long as size, inode, mtime and ctime stay the same.

    Use it as a context manager: hashes that are new are written in groups and at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = folder / "files.lock"
        self._log = AppendLog(folder / "files.jsonl")
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._new: dict[str, tuple[Stamp, str]] = {}

    def __enter__(self) -> Self:
        with suppress(OSError), file_lock(self._lock, shared=True):
            self._refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()

    def get(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes; raises AudioProblem when it cannot be read."""
        name = os.path.abspath(path)
        stamp = file_stamp(path)
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise AudioProblem(path, "unreadable", error.strerror or str(error)) from None
        # ctime cannot be set back by a copying tool; a file that is still being written is not kept
        if file_stamp(path) == stamp and time.time_ns() - stamp[3] > _SETTLED_NS:
            self._known[name] = self._new[name] = (stamp, digest)
            if len(self._new) >= _FLUSH:
                self._flush()
        return digest

    def _flush(self) -> None:
        if self._new:
            new, self._new = self._new, {}
            # Only a shortcut: in a folder that we may not write, files are hashed every time.
            with suppress(OSError), file_lock(self._lock):
                self._refresh()
                self._log.append(
                    [{"path": p, "stamp": s, "sha256": digest} for p, (s, digest) in new.items()]
                )

    def _refresh(self) -> None:
        for _, value in self._log.read_new():
            entry = _parse(value)
            if entry:
                self._known[value["path"]] = entry


def file_stamp(path: Path) -> Stamp:
    """Return (size, inode, mtime_ns, ctime_ns); raises AudioProblem when there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        raise AudioProblem(path, "missing") from None
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _parse(value: Mapping[str, Any]) -> tuple[Stamp, str] | None:
    stamp, digest = value.get("stamp"), value.get("sha256")
    if not (isinstance(stamp, list) and len(stamp) == 4 and isinstance(digest, str)):
        return None
    return (stamp[0], stamp[1], stamp[2], stamp[3]), digest
