"""A Hugging Face data set on disk, as `Dataset.save_to_disk` leaves it: Arrow files and JSON.

Read with pyarrow alone (the extra `arrow`); rows about the same audio become one clip.
"""

import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import DataError
from safe.data.audio_files import SUFFIXES
from safe.data.manifests import Clip, Embedded, Manifest
from safe.data.rows import check_id, normalize_start, relative_path
from safe.data.sources.audio_tree import AudioTree
from safe.data.sources.columns import caption_columns, captions_of, file_column, seconds_of
from safe.data.sources.source import Format, Source, in_order, merge, split_of
from safe.data.tables import json_value, read_text

NAME = "Hugging Face data set on disk"
_OTHERS = ("youtube_id", "id", "start_time", "duration")


def _claims(root: Path) -> list[Path]:
    names = ("dataset_dict.json", "state.json")
    return [root / name for name in names if (root / name).is_file()][:1]


def _read(root: Path, claimed: list[Path]) -> Source:
    arrow = _pyarrow()
    tree = AudioTree(root)
    if claimed[0].name == "state.json":
        manifest = _manifest(root, "train", arrow, tree)
        note = "the data set has no splits: all its clips are in train"
        return Source(NAME, root, {"train": manifest}, (note,))
    names = _list(claimed[0], "splits")
    manifests: dict[str, Manifest] = {}
    for name in names:
        folder = check_id(name, claimed[0].name)
        split = split_of(folder) or folder
        if split in manifests:
            raise DataError(f"{claimed[0].name}: two splits of {names} are called {split!r} here")
        manifests[split] = _manifest(root / folder, split, arrow, tree)
    return Source(NAME, root, in_order(manifests))


def _list(path: Path, key: str) -> list[Any]:
    value = json_value(read_text(path), str(path))
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{path}: needs a list {key!r}; the data set was not saved completely")
    return found


def _pyarrow() -> Any:
    try:
        arrow = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.ipc")
    except ImportError as error:
        raise DataError(
            "a Hugging Face data set on disk needs pyarrow: pip install 'safe-probe[arrow]' "
            f"({error})"
        ) from None
    return arrow


def _manifest(folder: Path, split: str, arrow: Any, tree: AudioTree) -> Manifest:
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(f"{folder}: has no state.json; the data set was not saved completely")
    entries = _list(state, "_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    files = [folder / check_id(name, str(state)) for name in names]
    clips = [clip for file in files for clip in _clips(file, split, arrow, tree)]
    return Manifest(state, len(clips), merge(clips, folder.name))


def _clips(file: Path, split: str, arrow: Any, tree: AudioTree) -> Iterator[Clip]:
    name = f"{file.parent.name}/{file.name}"
    try:
        with arrow.memory_map(str(file)) as data:
            table = arrow.ipc.open_stream(data).read_all()
    except (OSError, arrow.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read as an Arrow stream: {error}") from None
    columns = table.column_names
    audio, captions = file_column(columns), caption_columns(columns)
    if not captions or audio is None:
        raise DataError(
            f"{name}: needs a column audio (or file_name, path) and a caption; found: "
            f"{', '.join(columns)}"
        )
    wanted = [name for name in (*_OTHERS, *captions) if name in columns]
    rows = table.select(wanted).to_pylist()
    sounds = _sounds(table.column(audio), file)
    for index, (row, (path, held)) in enumerate(zip(rows, sounds, strict=True)):
        place = f"{name}, row {index + 1}"
        texts = captions_of(row, captions, place)
        yield _clip(row, texts, path, held, f"{file.stem}-{index:06d}", place, split, tree)


def _sounds(column: Any, file: Path) -> Iterator[tuple[str | None, Embedded | None]]:
    """Yield path and embedded file of each row; the bytes stay on disk until they are asked for."""
    row = 0
    for chunk in column.chunks:
        if not str(chunk.type).startswith("struct"):
            yield from ((path, None) for path in chunk.to_pylist())
            continue
        values = chunk.field("bytes")
        for index, path in enumerate(chunk.field("path").to_pylist()):
            read = partial(_held, values, index)
            yield path, Embedded(file, row, read) if values[index].is_valid else None
            row += 1


def _held(values: Any, index: int) -> bytes:
    content: bytes = values[index].as_py()
    return content


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
        path = Path((file or "").replace("\\", "/").rpartition("/")[2] or number)
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
