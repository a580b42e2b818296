"""A JSONL file that several processes append to and that survives being killed at any moment."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.json_files import parse_json


@contextmanager
def file_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock (flock) on a file; the kernel drops it when the process dies.

    A shared lock also works in a folder that may only be read, when the file exists.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        if not shared:
            raise
        descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class AppendLog:
    """Lines of JSON, read incrementally.

    A line counts when its newline is on disk. What a killed writer left behind the last newline
    is cut off by the next writer. Callers hold a `file_lock` around every call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        """Number of complete lines read so far."""
        self._offset = 0

    def read_new(self) -> list[tuple[int, dict[str, Any]]]:
        """Return (line number from 0, value) of the complete lines since the last call.

        Lines that are not a JSON object are counted and left out.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        result = []
        for number, line in enumerate(complete.split(b"\n")[:-1], self.lines):
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                result.append((number, value))
        self.lines += complete.count(b"\n")
        return result

    def append(self, values: Sequence[dict[str, Any]]) -> None:
        """Write lines after the last complete one and wait until they are on disk.

        Everything before must have been read: call `read_new` first, under the same lock.
        """
        data = b"".join(json.dumps(value).encode("ascii") + b"\n" for value in values)
        with open(self.path, "ab") as file:
            file.truncate(self._offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
