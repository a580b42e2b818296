"""AudioCaps (1.0 and 2.0 alike): a manifest per split, rows with youtube_id, start_time, caption.

Both versions have the same 495 validation and 975 test clips; 2.0 has more training rows, and
captions in lower case, nearly all (github.com/cdjkim/audiocaps).
"""

from dataclasses import replace
from pathlib import Path

from configs.errors import DataError
from safe.data.manifests import SUFFIXES, Manifest, read_manifest
from safe.data.report import AUDIOCAPS_LAYOUT
from safe.data.rows import CSV_COLUMNS
from safe.data.sources.source import ALIASES, Format, Source, in_order, split_of
from safe.data.tables import NO_TEXT, csv_header, first_bytes


def _claims(root: Path) -> list[Path]:
    names = [
        f"{word}{suffix}" for words in ALIASES.values() for word in words for suffix in SUFFIXES
    ]
    return [root / name for name in names if _is_manifest(root / name)]


def _is_manifest(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix == ".csv":
        header = csv_header(path)
        # A header with one column missing is a mistyped one; the reader says which, and what is
        # wrong with a file that is no text.
        mistyped = "youtube_id" in header or set(CSV_COLUMNS[1:]) <= set(header)
        return mistyped or header in ([], [NO_TEXT])
    start = first_bytes(path).removeprefix(b"\xef\xbb\xbf").lstrip()
    # WavCaps' files are objects with a "data" list; an empty file is ours, to complain about.
    return path.suffix == ".jsonl" or not start.startswith(b"{")


def _read(root: Path, claimed: list[Path]) -> Source:
    manifests: dict[str, Manifest] = {}
    for path in claimed:
        split = split_of(path.stem)
        assert split is not None
        manifest = read_manifest(root, path.stem)
        other = manifests.get(split)
        if other is not None:
            raise DataError(
                f"split {split!r} has several manifests in {root}: {other.path.name} and "
                f"{path.name}; keep one"
            )
        clips = [replace(clip, split=split) for clip in manifest.clips]
        manifests[split] = replace(manifest, clips=clips)
    return Source(AUDIOCAPS_LAYOUT, root, in_order(manifests))


AUDIOCAPS = Format(
    AUDIOCAPS_LAYOUT,
    "train, val, test as .csv with youtube_id, start_time, caption (.json, .jsonl: a list of "
    "them), sound in audio/SPLIT, SPLIT or audio",
    _claims,
    _read,
)
