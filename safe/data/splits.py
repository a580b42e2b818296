"""A split ready for training and scoring: its usable clips and what the encoder heard."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
    embeddings: np.ndarray
    """[n, D] float32 audio embeddings."""
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
