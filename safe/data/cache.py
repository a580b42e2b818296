"""The frozen encoder runs once per clip: embeddings on disk, by encoder and audio content."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from safe.data.append_log import file_lock
from safe.data.audio import MIN_SECONDS, Waveform
from safe.data.claims import Claims
from safe.data.decoding import decode
from safe.data.encoding import Encoder, encode_batch
from safe.data.file_hashes import FileHashes
from safe.data.manifests import Clip
from safe.data.mapped_rows import MappedRows
from safe.data.problems import AudioProblem, Problem
from safe.data.vector_store import VectorStore

_FORMAT = 1  # raise it when decoding changes, so that old embeddings are not used any more
_POLL_SECONDS = 0.05


class EmbeddingCache:
    """Embeddings of one encoder for any number of clips, in a folder that is made when needed.

    `folder` may hold the caches of many encoders; each has a folder of its own, named by a hash of
    `identity` and `dim`. An embedding belongs to the content of its audio file, so files may be
    renamed, copied and shared by data sets. Several processes may fill one cache at once, and any
    of them may be killed at any moment.

    Raises DataError when the folder cannot be used.
    """

    def __init__(self, folder: Path | str, identity: str, dim: int = 512) -> None:
        self.identity = identity
        self.dim = dim
        description = {"identity": identity, "dim": dim, "format": _FORMAT}
        text = json.dumps(description, sort_keys=True)
        folder = Path(folder)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _describe(self.folder / "identity.json", text)
            self._store = VectorStore(self.folder, dim)
            self._store.refresh()
        except OSError as error:
            raise DataError(f"cannot use the embedding cache {self.folder}: {error}") from None
        self._files = FileHashes(folder)

    def __len__(self) -> int:
        """Return the number of different sounds that are stored."""
        return len(self._store)

    def fill(
        self,
        clips: Sequence[Clip],
        encoder: Encoder,
        *,
        batch_size: int = 16,
        min_seconds: float = MIN_SECONDS,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Problem]:
        """Encode what is not there yet; return one row per clip that cannot be used.

        `progress` is called with the number of clips that are done and of all clips. Other
        processes that fill the same cache take other clips; this one waits for theirs.

        Raises DataError when the encoder is not the cache's or returns a wrong shape, or when the
        disk is full.
        """
        if encoder.identity != self.identity:
            raise DataError(
                f"the cache is for encoder {self.identity!r}, not for {encoder.identity!r}"
            )
        fill = _Fill(self, encoder, min_seconds, len(clips), progress)
        try:
            self._store.refresh()
            with self._files, Claims(self.folder / "claims") as claims:
                waiting = fill.run(clips, claims, batch_size)
                while waiting:  # others are encoding these
                    time.sleep(_POLL_SECONDS)
                    self._store.refresh()
                    waiting = fill.run(waiting, claims, batch_size)
        except OSError as error:
            raise DataError(f"cannot use the embedding cache {self.folder}: {error}") from None
        order = {(clip.split, clip.id): place for place, clip in enumerate(clips)}
        return sorted(fill.problems, key=lambda row: order[row.split, row.clip])

    def lookup(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Return the embeddings [n, dim] of clips; DataError when one has not been filled in."""
        return self._store.get(self._keys(clips))

    def mapped(self, clips: Sequence[Clip], shape: tuple[int, ...]) -> MappedRows:
        """Return what `lookup` does as [n, *shape], but read from disk only when looked at."""
        return self._store.mapped(self._keys(clips), shape)

    def seconds(self, clips: Sequence[Clip]) -> NDArray[np.float64]:
        """Return the lengths [n] of whole clips in seconds, before cropping."""
        return np.array([self._store.seconds(key) for key in self._keys(clips)], np.float64)

    def hashes(self, clips: Iterable[Clip]) -> dict[tuple[str, str], str]:
        """Return the SHA-256 of each clip's file by (split, clip id), for `assert_no_overlap`.

        Clips without a readable file are left out.
        """
        result = {}
        with self._files:
            for clip in clips:
                try:
                    result[clip.split, clip.id] = self.key(clip)
                except AudioProblem:
                    continue
        return result

    def key(self, clip: Clip) -> str:
        """Return the SHA-256 of the clip's file; raises AudioProblem when there is none."""
        if clip.path is None:
            raise AudioProblem.without_file(clip)
        return self._files.get(clip.path)

    def _keys(self, clips: Sequence[Clip]) -> list[str]:
        self._store.refresh()
        with self._files:
            keys = [self.key(clip) for clip in clips]
        absent = [clip.id for clip, key in zip(clips, keys, strict=True) if key not in self._store]
        if absent:
            raise DataError(
                f"{len(absent)} of {len(clips)} clips are not in the embedding cache "
                f"{self.folder}, as {absent[0]!r}; fill it first, and leave out the clips that "
                "filling reports as problems"
            )
        return keys


class _Fill:
    """One call of `EmbeddingCache.fill`."""

    def __init__(
        self,
        cache: EmbeddingCache,
        encoder: Encoder,
        min_seconds: float,
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.problems: list[Problem] = []
        self._cache = cache
        self._store = cache._store
        self._encoder = encoder
        self._min_seconds = min_seconds
        self._total = total
        self._done = 0
        self._progress = progress

    def run(self, clips: Sequence[Clip], claims: Claims, batch_size: int) -> list[Clip]:
        """Go through clips once; return those that another process is working on."""
        waiting: list[Clip] = []
        batch: dict[str, list[Clip]] = {}
        for clip in clips:
            try:
                key = self._cache.key(clip)
            except AudioProblem as problem:
                self._finish([clip], problem)
                continue
            if key in self._store:
                self._finish([clip], self._too_short(clip, key))
            elif key in batch:
                batch[key].append(clip)
            elif claims.take(key):
                batch[key] = [clip]
            else:
                waiting.append(clip)
            if len(batch) == batch_size:
                self._flush(batch, claims)
        self._flush(batch, claims)
        return waiting

    def _flush(self, batch: dict[str, list[Clip]], claims: Claims) -> None:
        """Encode and store a batch, and empty it."""
        self._store.refresh()  # another process may have finished one before we claimed it
        waves: dict[str, Waveform] = {}
        for key, clips in batch.items():
            if key not in self._store:
                try:
                    waves[key] = self._decode(clips[0], key)
                except AudioProblem as problem:
                    self._finish(clips, problem)
        if waves:
            self._encode(batch, waves)
        for key, clips in batch.items():
            if key in self._store:
                self._finish(clips, self._too_short(clips[0], key))
            claims.release(key)
        batch.clear()

    def _decode(self, clip: Clip, key: str) -> Waveform:
        assert clip.path is not None
        encoder = self._encoder
        wave = decode(
            clip.path,
            encoder.sample_rate,
            encoder.max_seconds,
            crop=encoder.crop_rule,
            min_seconds=self._min_seconds,
        )
        if self._cache.key(clip) != key:
            raise AudioProblem(clip.path, "unreadable", "the file changed while it was being read")
        return wave

    def _encode(self, batch: dict[str, list[Clip]], waves: dict[str, Waveform]) -> None:
        vectors = encode_batch(self._encoder, list(waves.values()), self._cache.dim)
        finite = np.isfinite(vectors).all(axis=1)
        good = [key for key, fine in zip(waves, finite, strict=True) if fine]
        for key in waves.keys() - set(good):
            self._finish(batch[key], AudioProblem(batch[key][0].id, "nonfinite_embedding"))
        if good:
            self._store.append(good, vectors[finite], [waves[key].seconds for key in good])

    def _too_short(self, clip: Clip, key: str) -> AudioProblem | None:
        """Judge a clip that was stored when shorter clips were allowed."""
        seconds = self._store.seconds(key)
        if seconds >= self._min_seconds:
            return None
        detail = f"{seconds:.3f} s, at least {self._min_seconds:g} s are needed"
        return AudioProblem(clip.id, "too_short", detail)

    def _finish(self, clips: Sequence[Clip], problem: AudioProblem | None) -> None:
        for clip in clips:
            if problem:
                self.problems.append(Problem.of(clip, problem.reason, problem.detail))
            self._done += 1
            if self._progress:
                self._progress(self._done, self._total)


def _describe(path: Path, text: str) -> None:
    """Write what the folder is for, once, for people who look into it."""
    if not path.exists():
        with file_lock(path.with_name("lock")):
            temporary = path.with_suffix(".new")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
