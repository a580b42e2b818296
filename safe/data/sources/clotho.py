"""Clotho: clotho_captions_SPLIT.csv with file_name and caption_1 to caption_5.

The metadata files that come with it say which Freesound recording a clip was cut from, which is
how clips of WavCaps are recognised (zenodo.org/records/4783391).
"""

import csv
import io
import re
from pathlib import Path

from configs.errors import DataError
from safe.data.manifests import Clip, Manifest
from safe.data.rows import check_id, relative_path
from safe.data.sources.audio_tree import AudioTree
from safe.data.sources.columns import caption_columns, captions_of
from safe.data.sources.source import Format, Source, in_order, merge, split_of
from safe.data.tables import csv_error, csv_header, csv_table, read_text

NAME = "Clotho"
_FILE = re.compile(r".*captions_(development|validation|evaluation)\.csv", re.IGNORECASE)


def _claims(root: Path) -> list[Path]:
    files = sorted([*root.glob("*.csv"), *root.glob("*/*.csv")])
    return [path for path in files if _FILE.fullmatch(path.name) and _fits(csv_header(path))]


def _fits(header: list[str]) -> bool:
    return "file_name" in header and bool(caption_columns(header))


def _read(root: Path, claimed: list[Path]) -> Source:
    tree = AudioTree(root)
    manifests: dict[str, Manifest] = {}
    for path in claimed:
        found = _FILE.fullmatch(path.name)
        assert found is not None
        word = found[1].lower()
        split = split_of(word)
        assert split is not None
        sounds = _freesound_ids(path, word)
        rows = list(csv_table(path, _check_header))
        beside = (path.parent.relative_to(root) / word).as_posix()
        folders = (
            word, f"audio/{word}", f"clotho_audio_{word}", f"clotho_audio_files/{word}", beside,
        )  # fmt: skip
        clips = []
        for row, place in rows:
            name = relative_path(row["file_name"], place)
            audio, outside = tree.find(name, folders)
            stem = check_id(name.rpartition(".")[0] or name, place)
            captions = captions_of(row, caption_columns(row), place)
            origin = sounds.get(name, "")
            clips.append(Clip(stem, split, audio, captions, stem, "", outside, origin))
        manifests[split] = Manifest(path, len(rows), merge(clips, path.name))
    return Source(NAME, root, in_order(manifests))


def _check_header(header: list[str], place: str) -> None:
    if not _fits(header):  # it did by its first line alone: a field of it goes on in the next
        raise DataError(
            f"{place}: needs a column file_name and captions (caption_1, ...); found: "
            f"{', '.join(header) or 'nothing'}"
        )


def _freesound_ids(captions: Path, word: str) -> dict[str, str]:
    """Return the recording of each file, where the metadata file is there."""
    path = next(captions.parent.glob(f"*metadata_{word}.csv"), None)
    if path is None:
        return {}
    # Latin-1 and not strict, as it is published: what is odd in it costs no clip.
    reader = csv.DictReader(io.StringIO(read_text(path, "latin-1"), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise csv_error(f"{path.name}, line {reader.line_num + 1}", error) from None
    return {
        row["file_name"].strip(): f"freesound:{row['sound_id'].strip()}"
        for row in rows
        if (row.get("sound_id") or "").strip().isdecimal() and row.get("file_name")
    }


CLOTHO = Format(
    NAME,
    "clotho_captions_development.csv (validation, evaluation) with file_name, caption_1, ..., "
    "sound in development (validation, evaluation)",
    _claims,
    _read,
)
