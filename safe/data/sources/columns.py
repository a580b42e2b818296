"""Which columns of a table name the audio file and hold the captions."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from configs.errors import DataError
from safe.data.rows import clean

FILE_COLUMNS = ("file_name", "filename", "file", "audio", "path", "audio_path", "wav")
_CAPTIONS = ("caption", "captions", "text")
_NUMBERED = re.compile(r"caption_?([0-9]{1,9})")


def file_column(names: Iterable[str]) -> str | None:
    """Return the column that names the audio file."""
    present = set(names)
    return next((name for name in FILE_COLUMNS if name in present), None)


def caption_columns(names: Iterable[str]) -> list[str]:
    """Return the columns with captions: caption_1, caption_2, ..., or caption, captions or text."""
    present = list(names)
    numbered = [(int(found[1]), n) for n in present if (found := _NUMBERED.fullmatch(n))]
    if numbered:
        return [name for _, name in sorted(numbered)]
    return [name for name in _CAPTIONS if name in present][:1]


def captions_of(row: Mapping[str, Any], columns: Iterable[str], place: str) -> tuple[str, ...]:
    """Return the captions of a row; of several columns, some may be empty.

    Raises DataError when all are.
    """
    texts: list[str] = []
    for name in columns:
        value = row.get(name)
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str | None):
                raise DataError(f"{place}: {name} must be text, got {text!r}")
            if text is not None and text.strip():
                texts.append(clean(text, "caption", place))
    if not texts:
        raise DataError(f"{place}: has no caption; give each row some text")
    return tuple(texts)


def seconds_of(value: object, place: str) -> float | None:
    """Return a stated length in seconds; None when there is none."""
    if value is None or value == "":
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{place}: duration {value!r} is not a number of seconds")
    return seconds
