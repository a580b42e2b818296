"""Reading CSV, JSON and JSONL files of foreign origin, with the place of every mistake."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import DataError

NO_TEXT = "not UTF-8 text"
CheckHeader = Callable[[list[str], str], None]
"""Raises DataError when a header (column names, place) is not what a reader needs."""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return a file as text, without a byte order mark; raises DataError when it is none."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}") from None
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise DataError(
            f"{path.name}, line {line}: holds a NUL byte; the file is damaged or not UTF-8 text"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name}, line {line}: is not UTF-8 (byte 0x{data[error.start]:02x}); "
            "save the file as UTF-8"
        ) from None


def csv_table(
    path: Path, check_header: CheckHeader | None = None
) -> Iterator[tuple[dict[str, str], str]]:
    """Yield each row of a CSV file as (column to field, place), as "train.csv, line 7".

    Raises DataError for a missing or bad header, a stray quote, or a row of another length.
    """
    # strict: a stray quote is an error instead of a caption that swallows the following rows.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path.name}, line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise csv_error(place, error) from None
        if fields is None:
            break
        if not fields or (len(fields) == 1 and not fields[0].strip()):
            continue  # a blank line
        if header is None:
            header = _unique_names(fields, place)
            if check_header:
                check_header(header, place)
        elif len(fields) != len(header):
            raise DataError(
                f"{place}: has {len(fields)} fields, the header has {len(header)}; "
                "a caption with a comma must be in double quotes"
            )
        else:
            yield dict(zip(header, fields, strict=True)), place
    if header is None and check_header:
        check_header([], f"{path.name}, line 1")


def csv_error(place: str, error: csv.Error) -> DataError:
    """Return the error for what the csv module cannot split into fields."""
    return DataError(
        f"{place}: {error}; a field with a comma, quote or line break must be in double quotes, "
        "with quotes inside it doubled"
    )


def csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV file from its first line; [] when it cannot be read.

    A file that is no text has one column, NO_TEXT.
    """
    text = first_bytes(path).decode("utf-8-sig", "replace")
    try:
        line = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
        if "\0" in line:
            return [NO_TEXT]
        return [name.strip() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def first_bytes(path: Path) -> bytes:
    """Return the first 64 KiB of a file; nothing of a folder, a pipe, or what cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return b""
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def _unique_names(fields: list[str], place: str) -> list[str]:
    header = [field.strip() for field in fields]
    twice = _first_twice(header)
    if twice is not None:
        raise DataError(f"{place}: column {twice!r} stands twice in the header")
    return header


def _first_twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def jsonl_values(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield (value, place) of each line that is not blank."""
    # Only "\n" ends a line: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path.name}, line {number}"
            yield json_value(line, path.name, first_line=number), place


def json_value(text: str, name: str, first_line: int = 1) -> Any:
    """Parse JSON; raises DataError with the line, also for a key that stands twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{name}, line {line}: is not JSON: {error.msg} (column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}, from line {first_line}: is not usable JSON: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"key {_first_twice(name for name, _ in pairs)!r} stands twice")
    return result
