"""Reading the JSON files of a run, which may be damaged, or a stranger's.

A pipe or a device in their place would be read for ever, a huge one fill the memory, and a deep one
end in a traceback, here or where its values are walked through.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from configs.errors import FileError

_MOST_BYTES = 64 * 2**20  # a hundred thousand clips' scores are a tenth of that
_MOST_BYTES_OF_LINES = 2**30  # a million steps
_DEEPEST = 50


def require_regular(path: Path) -> None:
    """Raise FileError when `path` is there, but is no regular file: opening a pipe may hang."""
    if path.exists() and not path.is_file():
        raise FileError(path, "it is not a regular file; put the run's own file there")


def open_regular(path: Path, most: int = _MOST_BYTES_OF_LINES) -> BinaryIO:
    """Open a regular file of at most `most` bytes for reading.

    Raises:
        FileNotFoundError: there is none.
        FileError: it is no regular file, too large, or the system refuses.
    """
    try:
        require_regular(path)
        file = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(path, error.strerror) from None
    if (size := os.fstat(file.fileno()).st_size) > most:
        file.close()
        raise FileError(path, f"it has {size:,} bytes; at most {most:,} are read")
    return file


def read_json(path: Path, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Return the value in a JSON file; `parse_constant` makes one of NaN and its like.

    Raises:
        FileNotFoundError: there is none.
        FileError: it cannot be read, holds no JSON, or is nested too deeply.
    """
    try:
        with open_regular(path, _MOST_BYTES) as file:
            return parse_json(file.read(_MOST_BYTES), parse_constant)
    except (FileNotFoundError, FileError):
        raise
    except (OSError, ValueError) as error:
        raise FileError(path, error) from None


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; a last one that was cut off while it was written is left out.

    Raises:
        FileNotFoundError: there is none.
        FileError: it cannot be read.
    """
    with open_regular(path) as file:
        try:
            yield from (line for line in file if line.endswith(b"\n"))
        except OSError as error:
            raise FileError(path, error.strerror) from None


def parse_json(text: bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Return the value in a JSON text, such as one of `whole_lines`.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=parse_constant)
    except RecursionError:
        deep = True
    else:  # counting first, because most texts have too few brackets to be deep
        deep = text.count(b"[") + text.count(b"{") > _DEEPEST and _is_deep(value)
    if deep:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        containers = [v.values() if isinstance(v, dict) else v for v in level if _holds(v)]
        level = [item for container in containers for item in container]
    return bool(level)


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)
