"""Clips of AudioCaps' test split are told by their ids, and others are not taken for them."""

from pathlib import Path

from safe.data.audiocaps_test import in_audiocaps_test
from safe.data.manifests import load_split


def test_exactly_the_test_clips(shared: Path) -> None:
    root = shared / "data" / "audiocaps"
    test = load_split(root, "test")
    assert all(
        in_audiocaps_test(clip.id) and in_audiocaps_test(f"Y{clip.youtube_id}") for clip in test
    )
    others = [clip for split in ("train", "val") for clip in load_split(root, split)]
    # by chance 50,333 x 975 / 2^24 = 2.9 of them
    assert sum(in_audiocaps_test(clip.id) for clip in others) <= 8


def test_names_of_other_data_sets() -> None:
    for name in ("", "a", "synthetic-0-test-00001", "FreeSound-7fmOlUlwoNg", "7fmolulwong_20"):
        assert not in_audiocaps_test(name)
