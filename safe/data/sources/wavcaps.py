"""WavCaps and JSON files like it: {"data": [{"id", "caption", "duration"}]}, or the list alone.

Its parts are AudioSet's strongly labelled clips (ids as "Yb0RFKhbpFJA.wav", the YouTube id between
"Y" and the suffix: the overlap with AudioCaps), Freesound, BBC and SoundBible
(github.com/XinhaoMei/WavCaps).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from safe.data.audio_files import SUFFIXES
from safe.data.manifests import Clip, Manifest
from safe.data.rows import check_id, relative_path
from safe.data.sources.audio_tree import AudioTree
from safe.data.sources.columns import FILE_COLUMNS, caption_columns, captions_of, seconds_of
from safe.data.sources.source import Format, Source, in_order, merge, split_of
from safe.data.tables import first_bytes, json_value, read_text

NAME = "WavCaps"
_PARTS = {
    "as": "AudioSet_SL", "fsd": "FreeSound", "bbc": "BBC_Sound_Effects", "sb": "SoundBible",
}  # fmt: skip
_START = re.compile(r'\s*(\{[^\[\]]*"data"\s*:\s*)?\[\s*\{.*?"caption', re.DOTALL)
_YOUTUBE = re.compile(r"Y([\w-]{11})")


def _claims(root: Path) -> list[Path]:
    files = [path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}.json")]
    return sorted(path for path in files if _looks_like_it(path, root))


def _looks_like_it(path: Path, root: Path) -> bool:
    start = first_bytes(path).decode("utf-8-sig", "ignore")
    found = _START.match(start)
    # A list named train.json, val.json or test.json is in AudioCaps layout.
    return bool(found and (found[1] or path.parent != root or split_of(path.stem) is None))


def _read(root: Path, claimed: list[Path]) -> Source:
    tree = AudioTree(root)
    clips: dict[str, list[Clip]] = {}
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    files: dict[str, list[Path]] = {}
    total = 0
    for path in claimed:
        split = split_of(path.stem) or "train"
        files.setdefault(split, []).append(path)
        for entry, place in _entries(path):
            clip = _clip(entry, place, split, _part(path), tree)
            total += 1
            key = (split, clip.id, clip.captions)
            if key not in seen:  # fsd_final_2s.json repeats what is in fsd_final.json
                seen.add(key)
                clips.setdefault(split, []).append(clip)
    manifests = {
        split: Manifest(paths[0], len(clips.get(split, [])), merge(clips.get(split, []), NAME))
        for split, paths in files.items()
    }
    repeated = total - len(seen)
    notes = (f"{repeated} entries repeat an earlier one, id and caption",) if repeated else ()
    return Source(NAME, root, in_order(manifests), notes)


def _entries(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    value = json_value(read_text(path), path.name)
    entries = value.get("data") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise DataError(f"{path.name}: data must be a list of objects")
    for number, entry in enumerate(entries, 1):
        place = f"{path.name}, entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{place}: must be an object, not {type(entry).__name__}")
        yield entry, place


def _part(path: Path) -> str:
    """Return which part of WavCaps a file lists, "" for other files."""
    return _PARTS.get(path.stem.lower().split("_")[0], "") if "_final" in path.stem else ""


def _clip(entry: Mapping[str, Any], place: str, split: str, part: str, tree: AudioTree) -> Clip:
    stem = _file_stem(entry, place)
    path, outside = tree.stem(stem, part)
    youtube = _YOUTUBE.fullmatch(stem)
    name, recording = stem, ""
    if youtube:
        name = youtube[1]
    elif part:
        name = f"{part}-{stem}"  # SoundBible and Freesound both count from 1
        recording = f"{part.lower()}:{stem}"
    captions = captions_of(entry, caption_columns(entry), place)
    seconds = seconds_of(entry.get("duration"), place)
    return Clip(name, split, path, captions, name, "", outside, recording, seconds)


def _file_stem(entry: Mapping[str, Any], place: str) -> str:
    """Return the name of the audio file but for its suffix, from the id or from a path."""
    name = entry.get("id")
    if name is None:
        name = next((entry[key] for key in reversed(FILE_COLUMNS) if key in entry), None)
        if name is not None:
            name = relative_path(name, place).rpartition("/")[2]
    stem = check_id(name, place)
    suffix = next((suffix for suffix in SUFFIXES if stem.lower().endswith(suffix)), "")
    return check_id(stem[: len(stem) - len(suffix)], place)


WAVCAPS = Format(
    NAME,
    '.json files (here or in json_files/...) with {"data": [{"id", "caption", "duration"}, ...]}, '
    "sound anywhere below as ID.flac",
    _claims,
    _read,
)
