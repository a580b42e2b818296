"""The rows of a manifest (CSV, JSON or JSONL), with the place of every mistake."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.csv_cells import original_cell
from configs.errors import DataError
from safe.data.tables import csv_table, json_value, jsonl_values, read_text

CSV_COLUMNS = ("youtube_id", "start_time", "caption")
_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]*))?")


@dataclass(frozen=True)
class Row:
    """One row of a manifest, checked."""

    youtube_id: str
    """Id of the recording."""
    start_time: str
    """Start in the recording in seconds, as the shortest decimal ("30", "7.5"), or ""."""
    captions: tuple[str, ...]
    """At least one caption, none of them empty."""
    audio: str | None
    """Audio file relative to the root, when the manifest names it."""
    place: str
    """Where the row stands, for messages: "train.csv, line 7"."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a manifest; the suffix says which format it is.

    Raises DataError with file and line for anything that is not a clean row.
    """
    reader = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: a manifest is a .csv, .json or .jsonl file")
    return reader(path)


def normalize_start(value: object, place: str) -> str:
    """Return a start time in seconds as its shortest decimal; None and "" give ""."""
    if value is None or value == "":
        return ""
    text = "" if isinstance(value, bool) else str(value).strip()
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise DataError(
            f"{place}: start_time {value!r} is not a number of seconds; give 30 or 7.5, "
            "or leave it empty for a whole file"
        )
    whole, fraction = match[1].lstrip("0") or "0", (match[2] or "").rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _csv_rows(path: Path) -> Iterator[Row]:
    for entry, place in csv_table(path, _check_header):
        yield _row({name: original_cell(cell) for name, cell in entry.items()}, place)


def _check_header(header: list[str], place: str) -> None:
    if not header:
        file = place.partition(",")[0]
        raise DataError(f"{file}: is empty; the header must be {','.join(CSV_COLUMNS)}")
    missing = [name for name in CSV_COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{place}: column {missing[0]!r} is missing; found: {', '.join(header)}; "
            f"needed: {', '.join(CSV_COLUMNS)}"
        )


def _json_rows(path: Path) -> Iterator[Row]:
    entries = json_value(read_text(path), path.name, first_line=1)
    if not isinstance(entries, list):
        raise DataError(f"{path.name}: must be a list of objects, not {type(entries).__name__}")
    for number, entry in enumerate(entries, 1):
        yield _row(entry, f"{path.name}, entry {number}")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for entry, place in jsonl_values(path):
        yield _row(entry, place)


def _row(entry: object, place: str) -> Row:
    if not isinstance(entry, dict):
        raise DataError(f"{place}: must be an object, not {type(entry).__name__}")
    audio = next((entry[key] for key in ("audio", "path") if key in entry), None)
    if audio is not None:
        audio = relative_path(audio, place)
    name = next((entry[key] for key in ("youtube_id", "id") if key in entry), None)
    if name is None and audio is not None:
        # The folder is part of the id: train/0001.wav and test/0001.wav are different recordings.
        name = audio.rpartition(".")[0].replace("/", "_") or audio
    return Row(
        youtube_id=check_id(name, place),
        start_time=normalize_start(entry.get("start_time"), place),
        captions=_captions(entry, place),
        audio=audio,
        place=place,
    )


def check_id(value: object, place: str) -> str:
    """Return an id as text that can be the name of a file; raises DataError for any other."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place}: needs an id, as youtube_id (or id, audio or path in JSON), got {value!r}"
        )
    value = clean(value, "id", place)
    if "/" in value or "\\" in value or value in (".", ".."):
        raise DataError(f"{place}: id {value!r} must be a plain name without path separators")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise DataError(f"{place}: id {value!r} holds a control character")
    return value


def relative_path(value: object, place: str) -> str:
    """Return a path with "/" that stays inside the data folder; raises DataError for any other."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: the audio path must be text, got {value!r}")
    parts = clean(value, "path", place).replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or parts[0].endswith(":"):
        raise DataError(
            f"{place}: audio path {value!r} must be relative to the data folder and stay inside it"
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _captions(entry: Mapping[str, Any], place: str) -> tuple[str, ...]:
    if "caption" in entry and "captions" in entry:
        raise DataError(f"{place}: has both caption and captions; keep one of them")
    value = entry.get("captions", entry.get("caption"))
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(text, str) and text.strip() for text in values):
        raise DataError(f"{place}: empty or missing caption: {value!r}; give each row some text")
    return tuple(clean(text, "caption", place) for text in values)


def clean(text: str, what: str, place: str) -> str:
    """Return stripped text; raises DataError for a NUL or half a surrogate pair."""
    text = text.strip()
    # JSON escapes can smuggle in what the check of the file's bytes has ruled out.
    if "\0" in text or not _is_utf8(text):
        raise DataError(f"{place}: {what} {text!r} holds a NUL or half a surrogate pair")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
