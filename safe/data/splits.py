"""A split ready for training and scoring: its usable clips and what the encoder heard."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safe.data.mapped_rows import MappedRows

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Split:
    """The usable clips of one split with what the encoder heard in them."""

    name: str
    """Split name, e.g. "test"."""
    clip_ids: tuple[str, ...]
    """Ids, one per row of the arrays."""
    captions: tuple[tuple[str, ...], ...]
    """Captions (references) of each clip."""
    audio_keys: tuple[str, ...]
    """Content hash of each clip's audio; equal for identical recordings."""
    embeddings: np.ndarray | MappedRows
    """[n, D] float32 audio embeddings, or [n, M, D] local features on disk."""
    seconds: np.ndarray
    """[n] clip lengths in seconds."""
    paths: tuple[Path | None, ...]
    """Each clip's sound."""

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def references(self) -> dict[str, list[str]]:
        """Clip id to its references."""
        return {i: list(c) for i, c in zip(self.clip_ids, self.captions, strict=True)}

    @property
    def pooled(self) -> np.ndarray:
        """[n, D] embeddings; the mean of each clip's local features."""
        if len(self.embeddings.shape) == 2:
            return np.asarray(self.embeddings)
        chunks = range(0, len(self), _ROWS_AT_ONCE)
        parts = (np.array(self.embeddings[i : i + _ROWS_AT_ONCE]).mean(axis=1) for i in chunks)
        return np.concatenate([*parts])

    @property
    def mean(self) -> np.ndarray:
        """[D] or [M, D] mean over the clips."""
        if isinstance(self.embeddings, np.ndarray):
            return np.asarray(self.embeddings.mean(axis=0))
        total = np.zeros(self.embeddings.shape[1:])
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = np.array(self.embeddings[start : start + _ROWS_AT_ONCE])
            total += rows.sum(axis=0, dtype=np.float64)
        return (total / len(self)).astype(np.float32)

    def head(self, count: int | None) -> "Split":
        """The first ``count`` clips (all when None)."""
        return Split(
            self.name,
            self.clip_ids[:count],
            self.captions[:count],
            self.audio_keys[:count],
            self.embeddings[:count],
            self.seconds[:count],
            self.paths[:count],
        )
