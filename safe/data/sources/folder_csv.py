"""A folder of sounds with CSV files: one column names the file, one or more hold captions."""

from pathlib import Path

from configs.errors import DataError
from safe.data.manifests import Clip, Manifest
from safe.data.rows import check_id, clean, relative_path
from safe.data.sources.audio_tree import AudioTree
from safe.data.sources.columns import (
    FILE_COLUMNS,
    caption_columns,
    captions_of,
    file_column,
    seconds_of,
)
from safe.data.sources.source import Format, Source, in_order, merge, split_of
from safe.data.tables import csv_header, csv_table

NAME = "folder with CSV"


def _claims(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*.csv")) if _fits(path)]


def _fits(path: Path) -> bool:
    header = csv_header(path)
    columns = file_column(header) and caption_columns(header)
    clotho = "captions_" in path.name and "file_name" in header and "caption_1" in header
    return bool(columns) and "youtube_id" not in header and not clotho


def _read(root: Path, claimed: list[Path]) -> Source:
    tree = AudioTree(root)
    clips: dict[str, list[Clip]] = {}
    files: dict[str, Path] = {}
    rows: dict[str, int] = {}
    notes = []
    for path in claimed:
        named = split_of(path.stem)
        if named is None and "split" not in csv_header(path):
            notes.append(f"{path.name} names no split: all its clips are in train")
        for row, place in csv_table(path, _check_header):
            split = _split(row["split"], place) if "split" in row else named or "train"
            clips.setdefault(split, []).append(_clip(row, place, split, tree))
            rows[split] = rows.get(split, 0) + 1
            files.setdefault(split, path)
    manifests = {
        split: Manifest(files[split], rows[split], merge(found, files[split].name))
        for split, found in clips.items()
    }
    if not manifests:
        raise DataError(f"{' and '.join(path.name for path in claimed)} in {root}: no row")
    return Source(NAME, root, in_order(manifests), tuple(notes))


def _check_header(header: list[str], place: str) -> None:
    if not (file_column(header) and caption_columns(header)):
        # It did by its first line alone: a field of it goes on in the next.
        raise DataError(
            f"{place}: needs a column {', '.join(FILE_COLUMNS[:5])} and one of captions; found: "
            f"{', '.join(header) or 'nothing'}"
        )


def _split(value: str, place: str) -> str:
    name = split_of(value) or clean(value, "split", place)
    return check_id(name, place)


def _clip(row: dict[str, str], place: str, split: str, tree: AudioTree) -> Clip:
    column = file_column(row)
    assert column is not None
    name = relative_path(row[column], place)
    path, outside = tree.find(name, ("audio", split, f"audio/{split}"))
    if path is None and not outside:
        path, outside = tree.stem(name)
    # The folder is part of the id: a/0001.wav and b/0001.wav are different recordings.
    stem = check_id(name.rpartition(".")[0].replace("/", "_") or name.replace("/", "_"), place)
    captions = captions_of(row, caption_columns(row), place)
    seconds = seconds_of(row.get("duration"), place)
    return Clip(stem, split, path, captions, stem, "", outside, "", seconds)


FOLDER_CSV = Format(
    NAME,
    f"a .csv with a column {', '.join(FILE_COLUMNS[:5])} and one of caption, captions, text, "
    "caption_1, ...; splits by the file's name or a column `split`",
    _claims,
    _read,
)
