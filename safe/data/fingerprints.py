"""hashes.jsonl of a prepared folder: what recognises each clip elsewhere."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe.data.audio import AudioFacts
from safe.data.check import Progress, inspect_all, known
from safe.data.manifests import Clip
from safe.data.overlap import Known
from safe.data.placing import Placed
from safe.data.prepared_hashes import prepared_rows
from safe.data.sources import read_source


def to_lines(clips: Iterable[Clip], placed: Mapping[tuple[str, str], Placed]) -> str:
    """Return one JSON line per clip, those without sound included."""
    return "".join(
        json.dumps(_row(clip, placed.get((clip.split, clip.id))), ensure_ascii=False) + "\n"
        for clip in clips
    )


def _row(clip: Clip, file: Placed | None) -> dict[str, Any]:
    row: dict[str, Any] = {"split": clip.split, "clip": clip.id, "recording": clip.origin}
    if file is None:
        return {**row, "file": None, "seconds": clip.seconds}
    heard = known(clip, file.facts)
    row |= {"file": file.file, "bytes": file.bytes, "sha256": file.sha256}
    row |= {"sound": heard.sound, "seconds": heard.seconds}
    if not isinstance(file.facts, AudioFacts):
        row["problem"] = file.facts.reason
    return row


def known_clips(folder: Path, progress: Progress | None = None) -> list[Known]:
    """Return the clips of any data set with what recognises them.

    Of a prepared folder the hashes are read; the files of any other are read and hashed.

    Raises:
        DataError: the folder holds no data set.
    """
    source = read_source(folder)
    clips = [clip for manifest in source.manifests.values() for clip in manifest.clips]
    rows = prepared_rows(folder)
    if not rows:
        findings = inspect_all(clips, progress)
        return [known(clip, findings[clip.split, clip.id]) for clip in clips]
    return [_known(clip, rows.get((clip.split, clip.id))) for clip in clips]


def _known(clip: Clip, row: Mapping[str, Any] | None) -> Known:
    if row is None:  # added by hand since
        return Known(clip)
    clip = replace(clip, recording=row.get("recording", ""))
    return Known(clip, row.get("sound"), row.get("seconds"))
