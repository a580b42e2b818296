"""Clips and where they come from: an AudioCaps-like folder with a manifest per split."""

import csv
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from configs.csv_cells import plain_cell
from configs.errors import DataError
from safe.data.audio_files import AudioFiles
from safe.data.rows import Row, read_rows

SUFFIXES = (".csv", ".json", ".jsonl")
HEADER = ("audiocap_id", "youtube_id", "start_time", "caption")


@dataclass(frozen=True)
class Embedded:
    """An audio file that is held in a larger file."""

    file: Path
    """The file that holds it."""
    row: int
    """Its row there, from 0."""
    read: Callable[[], bytes]
    """Returns the audio file's bytes."""


@dataclass(frozen=True)
class Clip:
    """One clip with its references."""

    id: str
    """`{youtube_id}_{start_time}`, or the id alone without a start time; unique in its split."""
    split: str
    """Name of the split, as "train"."""
    path: Path | None
    """Audio file, or None when there is none that may be used."""
    captions: tuple[str, ...]
    """One or more reference captions in the order of the manifest."""
    youtube_id: str
    """Id of the recording the clip was cut from."""
    start_time: str
    """Start in the recording in seconds ("30"), or "" for a whole file."""
    outside: bool = False
    """Whether there is a file but it was left out, because it links out of the data folder."""
    recording: str = ""
    """What it was cut from, by a name that other data sets use too; "": the youtube_id."""
    seconds: float | None = None
    """Length in seconds as the manifest states it, where it does."""
    embedded: Embedded | None = field(default=None, compare=False, repr=False)
    """Where the sound is when it has no file of its own; `path` then is only its name."""

    @property
    def origin(self) -> str:
        """Name of the recording: clips of one recording share their sound."""
        return self.recording or self.youtube_id


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was read."""

    path: Path
    """The manifest file."""
    rows: int
    """Number of rows it holds; several rows may describe one clip."""
    clips: list[Clip]
    """Its clips in order of first appearance."""


def find_manifest(root: Path | str, split: str) -> Path:
    """Return the manifest of a split: {root}/{split}.csv, .json or .jsonl.

    Raises DataError when there is no such file, or more than one.
    """
    root = Path(root)
    if not split or Path(split).name != split:
        raise DataError(f"split {split!r} must be a plain name, as train, val or test")
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist or is not a folder")
    found = [root / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in found if path.is_file()]
    if not found:
        looked = ", ".join(f"{split}{suffix}" for suffix in SUFFIXES)
        fix = f"of other data sets `safe-train data prepare {root} OUTPUT` makes them"
        if (root / "prepared.json").is_file():
            fix = "the data set that was prepared has none; take it from another prepared one"
        raise DataError(
            f"no manifest for split {split!r} in {root}; looked for {looked} ({fix}, docs/data.md)"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"split {split!r} has several manifests in {root}: {names}; keep one")
    return found[0]


def load_split(root: Path | str, split: str) -> list[Clip]:
    """Return the clips of a split, in order of first appearance, with all their references.

    Raises DataError when the manifest is missing, ambiguous or has a bad row.
    """
    return read_manifest(root, split).clips


def read_manifest(root: Path | str, split: str) -> Manifest:
    """Read the manifest of a split and find the audio file of each clip."""
    path = find_manifest(root, split)
    rows = list(read_rows(path))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.youtube_id, row.start_time), []).append(row)
    files = AudioFiles(Path(root), split)
    clips = [_clip(group, split, files) for group in groups.values()]
    seen: dict[str, Clip] = {}
    for clip in clips:
        other = seen.setdefault(clip.id, clip)
        if other is not clip:
            raise DataError(
                f"{path.name}: youtube_id {clip.youtube_id!r} at {clip.start_time!r} and "
                f"{other.youtube_id!r} at {other.start_time!r} both give the clip id {clip.id!r}"
            )
    return Manifest(path, len(rows), clips)


def write_manifest(path: Path | str, clips: Iterable[Clip]) -> None:
    """Write clips as an AudioCaps CSV, one row per caption, numbered from 1.

    Reading the file gives the same ids, start times and captions again; formulas have an apostrophe
    in front in the file (see `plain_cell`). Audio files are found by their names, so `Clip.path` is
    not written. The file appears complete or not at all.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise DataError(f"{path}: manifests are written as .csv")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            rows = ((c.youtube_id, c.start_time, text) for c in clips for text in c.captions)
            writer.writerows((number, *map(plain_cell, row)) for number, row in enumerate(rows, 1))
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a manifest is for everyone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _clip(rows: list[Row], split: str, files: AudioFiles) -> Clip:
    first = rows[0]
    for row in rows[1:]:
        if row.audio != first.audio:
            raise DataError(
                f"{row.place}: clip {row.youtube_id!r} has the audio file {row.audio!r}, "
                f"but {first.audio!r} at {first.place}"
            )
    name = f"{first.youtube_id}_{first.start_time}" if first.start_time else first.youtube_id
    if first.audio is not None:
        path, outside = files.named(first.audio)
    else:
        path, outside = files.find(first.youtube_id, name)
    captions = tuple(text for row in rows for text in row.captions)
    return Clip(name, split, path, captions, first.youtube_id, first.start_time, outside)
