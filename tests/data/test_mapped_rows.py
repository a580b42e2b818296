"""Local features: through the cache onto disk, and read only where they are looked at."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import DataError
from safe.data.cache import EmbeddingCache
from safe.data.manifests import Clip, load_split
from safe.data.mapped_rows import MappedRows
from safe.data.splits import Split

SHAPE = (4, 3)


class Windows:
    """A made-up encoder: four features of three values per clip."""

    identity, sample_rate, max_seconds, crop_rule = "windows+center+local", 16_000, 4.0, "center"

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self.shape = shape

    def encode(self, waveform: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        assert lengths is not None
        count = int(np.prod(self.shape))
        rows = [row[: count * 7].reshape(count, 7).sum(1) for row in waveform]
        return torch.stack(rows).reshape(-1, *self.shape)


@pytest.fixture
def filled(tiny_data: Path, tmp_path: Path) -> tuple[EmbeddingCache, list[Clip]]:
    clips = load_split(tiny_data, "train")
    cache = EmbeddingCache(tmp_path, Windows.identity, 12)
    assert cache.fill(clips, Windows()) == []
    return cache, clips


def test_rows_are_those_of_the_cache(filled: tuple[EmbeddingCache, list[Clip]]) -> None:
    cache, clips = filled
    mapped, whole = cache.mapped(clips, SHAPE), cache.lookup(clips).reshape(-1, *SHAPE)
    assert (len(mapped), mapped.shape, mapped.dtype) == (22, (22, *SHAPE), np.float32)
    assert np.array_equal(np.array(mapped), whole)
    places = np.array([3, 3, 0])
    for chosen in (slice(2, 9), [5, 1], places, slice(None, None, 2)):
        assert isinstance(mapped[chosen], MappedRows)
        assert np.array_equal(np.asarray(mapped[chosen]), whole[chosen])
    assert np.array_equal(np.asarray(mapped[2:9][[1, 0]]), whole[[3, 2]])
    assert np.ascontiguousarray(mapped[[1]], dtype=np.float64).dtype == np.float64
    assert mapped[4].shape == (1, *SHAPE)


def test_choosing_reads_nothing(filled: tuple[EmbeddingCache, list[Clip]]) -> None:
    cache, clips = filled
    mapped = cache.mapped(clips, SHAPE)[np.arange(22)[::-1]][:5]
    assert isinstance(mapped._data, np.memmap)
    with pytest.raises(ValueError, match="can only be copied"):
        mapped.__array__(copy=False)


def test_split_of_local_features(filled: tuple[EmbeddingCache, list[Clip]]) -> None:
    cache, clips = filled
    mapped, whole = cache.mapped(clips, SHAPE), cache.lookup(clips).reshape(-1, *SHAPE)
    names = tuple(clip.id for clip in clips)
    captions, paths = tuple(c.captions for c in clips), tuple(c.path for c in clips)
    split = Split("train", names, captions, names, mapped, cache.seconds(clips), paths)
    np.testing.assert_allclose(split.pooled, whole.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(split.mean, whole.mean(axis=0), rtol=1e-6)
    head = split.head(3)
    assert np.array_equal(np.array(head.embeddings), whole[:3])
    assert head.pooled.shape == (3, 3)


def test_another_number_of_values_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, Windows.identity, 12)
    with pytest.raises(DataError, match=r"returned \[16, 5, 3\] for 16 clips"):
        cache.fill(load_split(tiny_data, "train"), Windows((5, 3)))
