"""A Hugging Face data set on disk, as `Dataset.save_to_disk` leaves it: Arrow files and JSON.

Read with pyarrow alone (the extra `arrow`), in a child process: it crashes on some damaged files.
Rows about the same audio become one clip.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import DataError
from safe.child import Child, ChildFailed
from safe.data.audio_files import SUFFIXES, leads_out
from safe.data.manifests import Clip, Embedded, Manifest
from safe.data.rows import check_id, normalize_start, relative_path
from safe.data.sources.audio_tree import AudioTree
from safe.data.sources.columns import caption_columns, captions_of, seconds_of
from safe.data.sources.source import Format, Source, in_order, merge, split_of
from safe.data.tables import json_value, read_text

NAME = "Hugging Face data set on disk"
_MODULE = "safe.data.sources.arrow_worker"
_SECONDS, _SECONDS_PER_MB = 60.0, 0.1
_SPARE_BYTES, _COPIES = 2**30, 3


def _claims(root: Path) -> list[Path]:
    names = ("dataset_dict.json", "state.json")
    return [root / name for name in names if (root / name).is_file()][:1]


def _read(root: Path, claimed: list[Path]) -> Source:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            "a Hugging Face data set on disk needs pyarrow: pip install 'safe-probe[arrow]'"
        )
    with Child(_MODULE) as child:
        return read_in(child, root, claimed)


def read_in(child: Child, root: Path, claimed: list[Path]) -> Source:
    """Return the data set that a claimed JSON file describes; a child reads its Arrow files.

    Raises DataError when something in it cannot be used.
    """
    tree = AudioTree(root)
    if claimed[0].name == "state.json":
        manifest = _manifest(child, root, "train", tree)
        note = "the data set has no splits: all its clips are in train"
        return Source(NAME, root, {"train": manifest}, (note,))
    names = _list(claimed[0], "splits")
    manifests: dict[str, Manifest] = {}
    for name in names:
        folder = check_id(name, claimed[0].name)
        split = split_of(folder) or folder
        if split in manifests:
            raise DataError(f"{claimed[0].name}: two splits of {names} are called {split!r} here")
        manifests[split] = _manifest(child, root / folder, split, tree)
    return Source(NAME, root, in_order(manifests))


def _list(path: Path, key: str) -> list[Any]:
    value = json_value(read_text(path), str(path))
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{path}: needs a list {key!r}; the data set was not saved completely")
    return found


def _manifest(child: Child, folder: Path, split: str, tree: AudioTree) -> Manifest:
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(f"{folder}: has no state.json; the data set was not saved completely")
    entries = _list(state, "_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    files = [folder / check_id(name, str(state)) for name in names]
    for file in files:
        if leads_out(file, os.path.realpath(tree.root)):
            raise DataError(f"{file} is a link that leads out of the data folder; copy the file in")
    clips = [clip for file in files for clip in _clips(child, file, split, tree)]
    return Manifest(state, len(clips), merge(clips, folder.name))


def _clips(child: Child, file: Path, split: str, tree: AudioTree) -> Iterator[Clip]:
    name = f"{file.parent.name}/{file.name}"
    for index, (row, path, place) in enumerate(_rows(child, file)):
        where = f"{name}, row {index + 1}"
        if not isinstance(path, str | None):
            raise DataError(f"{where}: the audio path must be text, got {path!r}")
        held = Embedded(file, index, partial(_held, file, *place)) if place else None
        texts = captions_of(row, caption_columns(row), where)
        yield _clip(row, texts, path, held, f"{file.stem}-{index:06d}", where, split, tree)


def _rows(child: Child, file: Path) -> list[tuple[dict[str, Any], Any, tuple[int, int] | None]]:
    """Return values, path and place of the embedded file of each row."""
    try:
        size = file.stat().st_size
        answer, rows = child.ask(
            {"path": os.path.abspath(file)},
            seconds=_SECONDS + _SECONDS_PER_MB * size / 2**20,
            memory=_SPARE_BYTES + _COPIES * size,
        )
        wrong = answer.get("wrong")
    except OSError as error:
        wrong = error.strerror
    except ChildFailed as failure:
        wrong = str(failure)
    if wrong:
        raise DataError(f"{file}: cannot be read as an Arrow stream: {wrong}")
    found: list[tuple[dict[str, Any], Any, tuple[int, int] | None]] = json.loads(rows)
    return found


def _held(file: Path, start: int, size: int) -> bytes:
    try:
        with open(file, "rb") as data:
            data.seek(start)
            return data.read(size)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def _clip(
    row: dict[str, Any],
    captions: tuple[str, ...],
    file: str | None,
    embedded: Embedded | None,
    number: str,
    place: str,
    split: str,
    tree: AudioTree,
) -> Clip:
    path, outside = None, False
    if embedded is not None:
        # Only the name counts: the path is one on the machine that made the data set.
        path = Path(Path((file or "").replace("\\", "/")).name or number)
        if path.suffix.lower() not in SUFFIXES:
            path = path.with_name(path.name + _suffix(embedded.read()[:4]))
    elif file is not None:
        path, outside = tree.find(relative_path(file, place), (split, "audio"))
    given = next((row[key] for key in ("youtube_id", "id") if row.get(key) is not None), None)
    if given is None:
        given = Path(file).stem if file else number
    recording = check_id(given, place)
    start = normalize_start(row.get("start_time"), place)
    name = f"{recording}_{start}" if start else recording
    seconds = seconds_of(row.get("duration"), place)
    return Clip(name, split, path, captions, recording, start, outside, "", seconds, embedded)


def _suffix(first: bytes) -> str:
    """Return the suffix of an audio file that begins with these four bytes."""
    return {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}.get(first, ".mp3")


HF_DISK = Format(
    NAME,
    "dataset_dict.json or state.json, as save_to_disk writes them (needs the extra `arrow`)",
    _claims,
    _read,
)
