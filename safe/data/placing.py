"""Putting audio files where the AudioCaps layout has them, once, and remembering what was put."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import DataError
from safe.data.append_log import AppendLog, file_lock
from safe.data.audio import AudioFacts
from safe.data.check import inspect_clip
from safe.data.file_hashes import file_stamp
from safe.data.manifests import Clip, Embedded
from safe.data.problems import AudioProblem

PARTIAL = ".partial-"
_FLUSH = 64  # files between two writes of the journal


@dataclass(frozen=True)
class Placed:
    """An audio file that lies where it belongs."""

    file: str
    """Its name relative to the output folder."""
    bytes: int
    """Its size."""
    sha256: str
    """SHA-256 of the file."""
    facts: AudioFacts | AudioProblem
    """What the whole file sounds like, or why it cannot be used."""


class Placer:
    """Links or copies clips into {output}/audio/{split}; a second call finds them done.

    A hard link takes no room and cannot lead anywhere else; where there can be none (another file
    system, somebody else's file) the file is copied. Every file appears complete, under its final
    name, and `journal.jsonl` says what it was made from, so that an interrupted call goes on.
    A sound that has gone from the source since stays where it was put.
    """

    def __init__(self, output: Path, journal: Path) -> None:
        self.output = output
        self._lock = journal.parent / "lock"
        self._log = AppendLog(journal)
        self._done: dict[tuple[str, str], dict[str, Any]] = {}
        with file_lock(self._lock):
            for _, entry in self._log.read_new():
                if _is_ours(entry):
                    self._done[entry["split"], entry["clip"]] = entry
        self.reused = 0
        """Number of clips that an earlier call had placed."""
        self.kept = 0
        """How many of those have no file in the source any more."""

    def place(
        self, clips: Sequence[Clip], progress: Callable[[int, int], None] | None = None
    ) -> dict[tuple[str, str], Placed]:
        """Place every clip that has a file; returns what lies where by (split, clip id)."""
        gone = [clip for clip in clips if clip.path is None and self._stands(clip)]
        clips = [clip for clip in clips if clip.path is not None]
        for split in {clip.split for clip in clips}:
            (self.output / "audio" / split).mkdir(parents=True, exist_ok=True)
        result = {(c.split, c.id): _placed(self._done[c.split, c.id]) for c in gone}
        self.kept = len(gone)
        self.reused = len(gone)
        new: list[dict[str, Any]] = []
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            for done, (clip, entry) in enumerate(
                zip(clips, pool.map(self._place, clips), strict=True), 1
            ):
                key = clip.split, clip.id
                if entry is not self._done.get(key):
                    new.append(entry)
                else:
                    self.reused += 1
                result[key] = _placed(entry)
                if len(new) >= _FLUSH:
                    self._write(new)
                if progress:
                    progress(done, len(clips))
        finally:
            pool.shutdown(cancel_futures=True)
            self._write(new)
        return result

    def _stands(self, clip: Clip) -> bool:
        """Whether what an earlier call placed for a clip is still there, untouched."""
        known = self._done.get((clip.split, clip.id))
        try:
            return known is not None and _stamp(self.output / known["file"]) == known["to"]
        except AudioProblem:
            return False  # it was removed since

    def _place(self, clip: Clip) -> dict[str, Any]:
        assert clip.path is not None
        origin = _origin(clip.embedded, clip.path)
        name = f"audio/{clip.split}/{clip.id}{clip.path.suffix.lower()}"
        target = self.output / name
        known = self._done.get((clip.split, clip.id))
        same = known is not None and known["file"] == name and known["from"] == origin
        if known is not None and same and self._stands(clip):
            return known
        _put(clip, target)
        if known is not None and known["file"] != name:  # or a .wav would hide its .flac
            (self.output / known["file"]).unlink(missing_ok=True)
        with open(target, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts = inspect_clip(Clip(clip.id, clip.split, target, (), clip.youtube_id, ""))
        return {
            "split": clip.split,
            "clip": clip.id,
            "from": origin,
            "file": name,
            "to": _stamp(target),
            "sha256": digest,
            "facts": _facts_to_json(facts),
        }

    def _write(self, new: list[dict[str, Any]]) -> None:
        if new:
            with file_lock(self._lock):
                self._log.read_new()
                self._log.append(new)
            self._done |= {(entry["split"], entry["clip"]): entry for entry in new}
            new.clear()


def _is_ours(entry: dict[str, Any]) -> bool:
    """Whether an entry is whole, and its file lies where a Placer puts that clip.

    A journal may have come with a stranger's folder, and a file that it names is removed when its
    clip is placed anew.
    """
    try:
        place, file = f"audio/{entry['split']}/{entry['clip']}", _placed(entry).file
        return file.startswith(place) and "/" not in file[len(place) :] and "from" in entry
    except (KeyError, TypeError, IndexError, AttributeError):
        return False


def _origin(embedded: Embedded | None, path: Path) -> list[int]:
    """Return what identifies the content a clip is made from."""
    if embedded is None:
        return _stamp(path)
    return [*_stamp(embedded.file), embedded.row]


def _stamp(path: Path) -> list[int]:
    """Return size, inode and mtime; not ctime, which changes with every link made or removed."""
    return list(file_stamp(path)[:3])


def _put(clip: Clip, target: Path) -> None:
    """Make the target complete or not at all."""
    assert clip.path is not None
    partial = target.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    try:
        if clip.embedded is not None:
            partial.write_bytes(clip.embedded.read())
        else:
            source = os.path.realpath(clip.path)
            if target.exists() and os.path.samefile(source, target):
                return
            try:
                os.link(source, partial)
            except OSError:
                shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"cannot place {clip.path} at {target}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def _facts_to_json(facts: AudioFacts | AudioProblem) -> dict[str, Any]:
    if isinstance(facts, AudioProblem):
        return {"reason": facts.reason, "detail": facts.detail}
    return asdict(facts)


def _placed(entry: dict[str, Any]) -> Placed:
    values, name = entry["facts"], entry["file"]
    facts: AudioFacts | AudioProblem
    if "reason" in values:
        facts = AudioProblem(name, values["reason"], values["detail"])
    else:
        facts = AudioFacts(**values)
    return Placed(name, entry["to"][0], entry["sha256"], facts)
