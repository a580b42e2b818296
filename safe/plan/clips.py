"""How many captions a run will train on, as far as that can be known before it starts."""

from pathlib import Path
from typing import NamedTuple

from configs.schema import SYNTHETIC, DataConfig

AUDIOCAPS_TRAIN = 49_838
"""Rows of AudioCaps' train.csv, one caption each. Source: AudioCaps (2019), version 1."""


class Examples(NamedTuple):
    """The training examples of a run: one per clip and caption."""

    captions: int
    source: str
    """Where the number comes from, in words."""


def count_examples(data: DataConfig) -> Examples:
    """Count the captions to train on.

    Raises:
        DataError: the folder is there but its manifest cannot be read.
    """
    if data.root == SYNTHETIC:
        from safe.data.synthetic import REFERENCES, TRAIN_CLIPS

        return Examples(TRAIN_CLIPS * REFERENCES["train"], "the built-in clips")
    if not Path(data.root).is_dir():
        return Examples(AUDIOCAPS_TRAIN, f"AudioCaps; no folder {data.root}")
    from safe.data.manifests import load_split

    clips = load_split(data.root, data.train_split)
    heard = [clip for clip in clips if clip.path is not None]
    if not heard:
        captions = sum(len(clip.captions) for clip in clips)
        return Examples(captions, f"manifest; none of its {len(clips):,} clips has an audio file")
    captions = sum(len(clip.captions) for clip in heard)
    return Examples(captions, f"{len(heard):,} of {len(clips):,} clips have an audio file")
