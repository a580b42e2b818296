"""Checking a data folder: each fault is found, named, and decides the exit code."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from configs.errors import DataError
from safe.data.audio import decode
from safe.data.check import check_root, usable
from safe.data.check_view import render
from safe.data.manifests import Clip, load_split, write_manifest
from safe.data.overlap import assert_no_overlap, shared_clips
from safe.data.problems import REMARKS, UNUSABLE, AudioProblem, Problem

RATE = 8000


def noise(seed: int, seconds: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))


def make_split(root: Path, split: str, sounds: dict[str, np.ndarray | bytes | None]) -> None:
    """Write a split with one clip per id: samples, raw bytes, or no file at all."""
    folder = root / "audio" / split
    folder.mkdir(parents=True)
    clips = []
    for name, sound in sounds.items():
        clips.append(Clip(f"{name}_0", split, None, (f"sound of {name}",), name, "0"))
        path = folder / f"{name}_0.wav"
        if isinstance(sound, bytes):
            path.write_bytes(sound)
        elif sound is not None:
            soundfile.write(path, sound, RATE, subtype="FLOAT")
    write_manifest(root / f"{split}.csv", clips)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Return a folder in which every fault occurs."""
    root = tmp_path / "[bold]data"
    loud = noise(3)
    loud[:100] = 1.0
    gap = noise(4)
    gap[5] = np.nan
    make_split(
        root,
        "train",
        {
            "good": noise(0),
            "gone": None,
            "junk": b"this is not audio at all, whatever its name says",
            "zero": b"",
            "quiet": np.zeros(RATE),
            "nan": gap,
            "brief": noise(1, seconds=0.01),
            "twin": noise(0),
            "loud": loud,
            "[red]odd": noise(5),
        },
    )
    path = root / "audio" / "train" / "cut_0.wav"
    soundfile.write(path, noise(6), RATE)
    path.write_bytes(path.read_bytes()[:4000])
    (tmp_path / "elsewhere.wav").write_bytes(path.read_bytes())
    (root / "audio" / "train" / "link_0.wav").symlink_to(tmp_path / "elsewhere.wav")
    soundfile.write(root / "audio" / "train" / "good_9.wav", noise(7), 2 * RATE)
    with open(root / "train.csv", "a") as file:
        file.write("11,cut,0,x\n12,link,0,y\n13,good,9,z\n14,good,9,z\n")
    make_split(root, "val", {"loud": noise(8), "renamed": noise(5), "fresh": noise(9)})
    return root


EXPECTED = {
    ("train", "gone_0"): ["missing"],
    ("train", "junk_0"): ["unreadable"],
    ("train", "zero_0"): ["empty"],
    ("train", "quiet_0"): ["silent"],
    ("train", "nan_0"): ["nonfinite"],
    ("train", "brief_0"): ["too_short"],
    ("train", "cut_0"): ["truncated"],
    ("train", "link_0"): ["outside"],
    ("train", "twin_0"): ["duplicate_audio"],
    ("train", "loud_0"): ["clipped"],
    ("train", "good_9"): ["duplicate_id", "duplicate_caption", "wrong_rate"],
    ("val", "loud_0"): ["shared_id"],
    ("val", "renamed_0"): ["shared_audio"],
}


def test_each_fault_is_found(faulty: Path) -> None:
    report = check_root(faulty, sample_rate=RATE)
    found: dict[tuple[str, str], list[str]] = {}
    for row in report.problems:
        found.setdefault((row.split, row.clip), []).append(row.reason)
        assert row.detail
        assert row.unusable == (row.reason in UNUSABLE)
    assert found == EXPECTED
    train, val = report.splits["train"], report.splits["val"]
    assert (train.rows, train.clips, train.captions) == (14, 13, 14)
    assert (train.present, train.usable) == (12, 5)
    assert (val.rows, val.clips, val.present, val.usable) == (3, 3, 3, 3)
    assert train.rates == {RATE: 7, 2 * RATE: 1}
    assert report.shared == {"id": 1, "audio": 1, "caption": 0}
    assert report.exit_code == 1
    assert report.obstacles == (
        "train: 8 of its 13 clips cannot be used, more than 50% (--max-unusable)",
        "no test: a training reads train, val and test; take what is missing from another prepared "
        "data set (docs/data.md, Leakage)",
        "splits share 1 clips by recording id and 1 by identical audio",
    )
    assert len(check_root(faulty, max_unusable=0.7).obstacles) == 2
    assert len(check_root(faulty, splits=["train", "val"], max_unusable=0.7).obstacles) == 1


def test_json_has_everything(faulty: Path) -> None:
    report = check_root(faulty)
    value = json.loads(json.dumps(report.to_dict()))
    assert value == report.to_dict()
    assert value["splits"]["train"]["sample_rates"] == {"8000": 7, "16000": 1}
    assert value["splits"]["train"]["seconds"]["min"] == 0.01
    assert value["splits"]["train"]["reasons"]["missing"] == 1
    assert "wrong_rate" not in value["splits"]["train"]["reasons"]
    assert value["problems"][0] == {
        "split": "train",
        "clip": "gone_0",
        "file": "",
        "reason": "missing",
        "detail": UNUSABLE["missing"],
        "unusable": True,
    }
    assert sum(value["splits"]["train"]["reasons"].values()) == sum(
        row["split"] == "train" for row in value["problems"]
    )


def test_tables_show_ids_as_they_are(faulty: Path) -> None:
    console = Console(file=io.StringIO(), width=130, color_system=None)
    console.print(render(check_root(faulty)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]data" in text
    assert "also in train as [red]odd_0" in text
    assert "✗ splits share 1 clips by recording id and 1 by identical audio" in text
    for reason in ("missing", "truncated", "shared_audio"):
        assert (UNUSABLE | REMARKS)[reason] in " ".join(text.split())


def test_a_clean_folder_exits_with_zero(tmp_path: Path) -> None:
    make_split(tmp_path, "train", {"a": noise(0), "b": noise(1), "gone": None})
    make_split(tmp_path, "val", {"v": noise(3)})
    make_split(tmp_path, "test", {"c": noise(2)})
    calls: list[tuple[int, int]] = []
    report = check_root(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert report.exit_code == 0
    assert list(report.splits) == ["train", "val", "test"]
    assert calls == [(done, 5) for done in range(1, 6)]
    console = Console(file=io.StringIO(), width=130, color_system=None)
    console.print(render(report))
    assert "✓ can be trained on and scored" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_split_without_a_usable_clip_is_an_obstacle(tmp_path: Path) -> None:
    make_split(tmp_path, "train", {"a": noise(0)})
    make_split(tmp_path, "val", {"b": None, "c": None})
    make_split(tmp_path, "test", {})
    report = check_root(tmp_path)
    assert report.exit_code == 1
    assert report.obstacles == (
        "val: none of its 2 clips can be used",
        "test: none of its 0 clips can be used",
    )
    assert report.to_dict()["splits"]["val"]["seconds"] is None
    assert check_root(tmp_path, splits=["train"]).exit_code == 0


def test_least_length_is_a_choice(tmp_path: Path) -> None:
    make_split(tmp_path, "train", {"a": noise(0), "b": noise(1, seconds=2)})
    report = check_root(tmp_path, min_seconds=1.0)
    assert [row.detail for row in report.problems] == ["0.500 s, at least 1 s are needed"]


def test_silence_in_two_splits_is_not_the_same_recording(tmp_path: Path) -> None:
    make_split(tmp_path, "train", {"a": np.zeros(RATE), "b": noise(1)})
    make_split(tmp_path, "val", {"c": np.zeros(RATE), "d": noise(2)})
    assert check_root(tmp_path, splits=["train", "val"]).exit_code == 0


def test_a_folder_that_was_prepared_from_training_clips_alone(tmp_path: Path) -> None:
    make_split(tmp_path, "train", {"a": noise(0)})
    report = check_root(tmp_path)
    assert report.exit_code == 1 and report.obstacles[0].startswith(
        "no val and no test: a training"
    )
    with pytest.raises(
        DataError, match="looked for val.csv, .* data prepare .* OUTPUT` makes them"
    ):
        load_split(tmp_path, "val")
    (tmp_path / "prepared.json").touch()
    with pytest.raises(DataError, match="prepared has none; take it from another .*docs/data.md"):
        load_split(tmp_path, "val")


def test_folders_without_manifests(tmp_path: Path) -> None:
    supported = r"that can be read; found: nothing\. Supported: \(1\) AudioCaps layout"
    with pytest.raises(DataError, match=supported):
        check_root(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        check_root(tmp_path / "nowhere")
    make_split(tmp_path, "val", {"a": noise(0)})
    with pytest.raises(DataError, match="no manifest for split 'train'"):
        check_root(tmp_path, splits=["train", "val"])


def test_usable_agrees_with_what_decodes(faulty: Path) -> None:
    clips = load_split(faulty, "train")
    good, bad = usable(clips)
    assert len(good) + len(bad) == len(clips)
    reasons = {row.clip: row.reason for row in bad}
    assert reasons == {
        clip: reasons[0]
        for (split, clip), reasons in EXPECTED.items()
        if split == "train" and reasons[0] in UNUSABLE
    }
    for clip in clips:
        if clip.path is None:
            continue
        if clip in good:
            decode(clip.path, RATE, 10.0)
        else:
            with pytest.raises(AudioProblem) as caught:
                decode(clip.path, RATE, 10.0)
            assert caught.value.reason == reasons[clip.id]


def clip(name: str, split: str, start: str = "0") -> Clip:
    return Clip(f"{name}_{start}", split, None, ("text",), name, start)


def test_overlap_is_refused() -> None:
    train = [clip(f"v{number}", "train") for number in range(10)]
    test = [clip("other", "test"), *(clip(f"v{number}", "test", "30") for number in range(7))]
    assert_no_overlap(train, test[:1])
    message = (
        r"7 clips are in both 'train' and 'test' \(7 by recording id, 0 by identical audio\): "
        r"v0_30, v1_30, v2_30, v3_30, v4_30, \.\.\.; remove them from one of the two manifests"
    )
    with pytest.raises(DataError, match=message):
        assert_no_overlap(train, test)
    hashes = {("train", "v3_0"): "x", ("test", "other_0"): "x"}
    with pytest.raises(DataError, match=r"1 clips .*0 by recording id, 1 .*: v3_0 = other_0;"):
        assert_no_overlap(train, test[:1], hashes)
    assert [one.by for one in shared_clips(train, test[:2], hashes)] == ["audio", "id"]


def test_problem_rows() -> None:
    one = replace(clip("a", "val"), path=Path("a.wav"))
    row = Problem.of(one, "clipped", "loud")
    assert row == Problem("val", "a_0", "a.wav", "clipped", "loud")
    assert not row.unusable


def test_the_real_sounds_have_no_problem(shared: Path) -> None:
    root = shared / "data" / "real-sounds"
    report = check_root(root, splits=["val", "test"], sample_rate=32_000)
    assert report.problems == ()
    assert report.exit_code == 0
    assert [split.usable for split in report.splits.values()] == [100, 150]
    for split in report.splits.values():
        assert split.rates == {32_000: split.clips}
        assert set(Counter(split.seconds)) == {5.0, 7.0}


def test_the_real_audiocaps_splits_share_no_recording(shared: Path) -> None:
    root = shared / "data" / "audiocaps"
    train, val, test = (load_split(root, split) for split in ("train", "val", "test"))
    assert_no_overlap(train, val)
    assert_no_overlap(train, test)
    assert_no_overlap(val, test)
