"""Preparing a data set: complete, resumable, inside its folder, and loud about losses and leaks."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from configs.errors import DataError
from safe.data import placing
from safe.data.check import check_root
from safe.data.manifests import load_split
from safe.data.prepare import prepare
from safe.data.prepare_view import render
from tests.data.test_sources import sound, table

HEADER = ["audiocap_id", "youtube_id", "start_time", "caption"]


def data_set(root: Path, splits: dict[str, list[str]], *, missing: tuple[str, ...] = ()) -> Path:
    """Write AudioCaps rows and sounds: names are ids; the sound of a name is the same anywhere."""
    for split, names in splits.items():
        rows = [["1", name, "0", f"the sound of {name}"] for name in names]
        table(root / f"{split}.csv", HEADER, rows)
        for name in names:
            if name not in missing:
                seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
                length = 0.2 + seed % 997 / 2000
                sound(root / "audio" / split / f"{name}_0.wav", seed, length)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file that a user sees, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".prepare" not in path.parts
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return 6 training clips, one of them lost, and 3 test clips."""
    splits = {"train": ["a", "b", "c", "d", "e", "lost"], "test": ["x", "y", "z"]}
    return data_set(tmp_path / "source", splits, missing=("lost",))


def test_the_layout_with_hashes_and_losses(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = prepare(source, out)
    assert (result.exit_code, result.obstacles, result.leakage) == (0, (), [])
    train = result.splits["train"]
    assert (train.clips, train.present, train.usable) == (6, 5, 5)
    assert train.reasons == {"missing": 1}
    for split in ("train", "test"):
        ours, theirs = load_split(out, split), load_split(source, split)
        assert [(c.id, c.captions) for c in ours] == [(c.id, c.captions) for c in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert (one.path is None) == (other.path is None)
            if one.path and other.path:
                assert one.path.read_bytes() == other.path.read_bytes()
    rows = [json.loads(line) for line in (out / "hashes.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    for row in rows:
        if row["file"]:
            content = (out / row["file"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert row["bytes"] == len(content)
    assert [row["clip"] for row in rows if row["file"] is None] == ["lost_0"]
    report = json.loads((out / "prepared.json").read_text())
    assert report == result.to_dict()
    for name, digest in report["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_a_second_call_reuses_everything_and_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(source, out).reused == 0
    before = tree(out)
    assert prepare(source, out).reused == 8
    assert tree(out) == before
    other = tmp_path / "other"
    prepare(source, other)
    same = {k: v for k, v in before.items() if k != "prepared.json"}  # it names the folder
    assert {k: v for k, v in tree(other).items() if k != "prepared.json"} == same


def test_what_changed_is_done_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    (source / "audio" / "train" / "a_0.wav").unlink()
    sound(source / "audio" / "train" / "a_0.wav", 99)
    (source / "audio" / "train" / "b_0.wav").unlink()
    sound(source / "audio" / "train" / "b_0.flac", 97)  # a .wav from before would hide it
    sound(source / "audio" / "train" / "lost_0.wav", 98)  # found since
    (out / "audio" / "train" / "c_0.wav").unlink()  # removed by somebody
    result = prepare(source, out)
    assert result.reused == 5
    assert result.splits["train"].usable == 6
    names = sorted(path.name for path in (out / "audio" / "train").iterdir())
    assert names == ["a_0.wav", "b_0.flac", "c_0.wav", "d_0.wav", "e_0.wav", "lost_0.wav"]
    changed = out / "audio" / "train" / "a_0.wav"
    assert changed.read_bytes() == (source / "audio" / "train" / "a_0.wav").read_bytes()
    fresh = tmp_path / "fresh"
    prepare(source, fresh)
    assert {k: v for k, v in tree(out).items() if k != "prepared.json"} == {
        k: v for k, v in tree(fresh).items() if k != "prepared.json"
    }


@pytest.mark.parametrize("changes", [
    {"file": "../mine.wav"}, {"file": "audio/train/../../../mine.wav"},
    {"file": "audio/val/a_0.wav"}, {"file": 7}, {"to": []},
    {"facts": {"seconds": 1}}, {"sha256": None, "facts": None},
])  # fmt: skip
def test_a_journal_is_believed_about_its_own_files_only(
    changes: dict[str, object], source: Path, tmp_path: Path
) -> None:
    """What an entry names is removed when its clip has moved; a journal may be a stranger's."""
    out, mine = tmp_path / "out", tmp_path / "mine.wav"
    prepare(source, out)
    before = tree(out)
    mine.write_bytes(b"not to be removed")
    journal = out / ".prepare" / "journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    wrong = next(row for row in rows if (row["split"], row["clip"]) == ("train", "a_0"))
    journal.write_text("".join(json.dumps(row) + "\n" for row in [*rows, wrong | changes]))
    assert prepare(source, out).reused == 8  # the entry from before stands
    journal.write_text("".join(
        json.dumps(wrong | changes if row == wrong else row) + "\n" for row in rows
    ))  # fmt: skip
    assert prepare(source, out).reused == 7
    assert tree(out) == before
    assert mine.read_bytes() == b"not to be removed"


def test_a_sound_that_has_gone_from_the_source_is_not_lost(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    before = {k: v for k, v in tree(out).items() if k != "prepared.json"}
    shutil.rmtree(source / "audio")
    result = prepare(source, out)
    assert (result.reused, result.exit_code) == (8, 0)
    assert result.notes == ["8 sounds are no longer in the source; kept from before"]
    assert {k: v for k, v in tree(out).items() if k != "prepared.json"} == before


def test_a_split_that_is_gone_is_not_trained_on(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    (out / "notes.csv").write_text("mine")
    (source / "test.csv").unlink()
    prepare(source, out)
    assert not (out / "test.csv").exists()
    assert (out / "notes.csv").read_text() == "mine"


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_interrupted_between_files(
    stop: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def progress(done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, progress=progress)
    assert not (out / "prepared.json").exists()
    assert prepare(source, out).reused >= stop
    whole = tmp_path / "whole"
    prepare(source, whole)
    assert {k: v for k, v in tree(out).items() if k != "prepared.json"} == {
        k: v for k, v in tree(whole).items() if k != "prepared.json"
    }


def test_killed_half_way(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(120)]
    source, out = data_set(tmp_path / "source", {"train": names}), tmp_path / "out"
    code = (
        "import time; from safe.data import placing; from safe.data.prepare import prepare\n"
        "real = placing.inspect_clip\n"
        "placing.inspect_clip = lambda clip: (time.sleep(0.02), real(clip))[1]\n"
        f"prepare({str(source)!r}, {str(out)!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    journal, deadline = out / ".prepare" / "journal.jsonl", time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (out / "audio" / "train" / ".partial-1234").touch()  # as of a copy that was killed
    result = prepare(source, out)
    assert 64 <= result.reused < 120, "what the journal had was not lost"
    assert result.splits["train"].usable == 120
    assert not list(out.glob("audio/*/.partial-*"))


def test_a_failing_link_becomes_a_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"
    assert prepare(source, out).exit_code == 0
    assert (out / "audio" / "train" / "a_0.wav").stat().st_nlink == 1
    assert prepare(source, out).reused == 8


def test_nothing_is_half_there_when_the_disk_is_full(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "x")))
    monkeypatch.setattr(placing.shutil, "copyfile", full)
    with pytest.raises(DataError, match="cannot place .*: No space left on device"):
        prepare(source, tmp_path / "out")
    assert list((tmp_path / "out").glob("audio/*/*")) == []


def test_nothing_is_written_outside(source: Path, tmp_path: Path) -> None:
    before = tree(source)
    prepare(source, tmp_path / "out")
    assert tree(source) == before
    for out in (source, source / "out", tmp_path):
        with pytest.raises(DataError, match="lie in one another; choose another OUTPUT"):
            prepare(source, out)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and was not made by `data prepare`"):
        prepare(source, full)
    other = data_set(tmp_path / "other", {"train": ["q"]})
    with pytest.raises(
        DataError, match="was made from another data set .*source.*, not from .*other"
    ):
        prepare(other, tmp_path / "out")
    linked = tmp_path / "linked"
    prepare(source, linked)
    shutil.rmtree(linked / "audio")
    (linked / "audio").symlink_to(tmp_path / "full")
    with pytest.raises(DataError, match="audio is a link; nothing is written outside OUTPUT"):
        prepare(source, linked)
    assert os.listdir(full) == ["thesis.txt"]


@pytest.mark.parametrize("name", ["journal.jsonl", "lock", "running", "source.json"])
def test_links_in_what_it_remembers_are_refused(name: str, source: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.jsonl"
    prepare(source, out)
    content = (out / ".prepare" / name).read_bytes() + b"an unfinished line"
    mine.write_bytes(content)
    (out / ".prepare" / name).unlink()
    (out / ".prepare" / name).symlink_to(mine)
    with pytest.raises(DataError, match="is a link; nothing is written|is not JSON"):
        prepare(source, out)
    assert mine.read_bytes() == content


def test_leakage_between_splits(tmp_path: Path) -> None:
    source = data_set(tmp_path / "source", {"train": ["a", "b", "c"], "test": ["b", "x", "y"]})
    shutil.copy(source / "audio/train/c_0.wav", source / "audio/test/x_0.wav")
    rows = [["1", "b", "0", "one"], ["2", "x", "0", "two"], ["3", "y", "0", "The SOUND of: a!"]]
    table(source / "test.csv", HEADER, rows)
    # as long as a's, with the same words, and another sound: encoded again, say
    seconds = [
        row["seconds"] for row in _hashes(source, tmp_path / "first") if row["clip"] == "a_0"
    ]
    sound(source / "audio" / "test" / "y_0.wav", 5, seconds[0])
    result = prepare(source, tmp_path / "out")
    found = [(twin.by, twin.clip, twin.other) for twin in result.leakage]
    assert found == [("id", "b_0", "b_0"), ("audio", "x_0", "c_0"), ("caption", "y_0", "a_0")]
    assert result.exit_code == 1
    assert result.obstacles == (
        "leakage: 3 of test is also in train (1 by recording, 1 by identical audio, 1 by caption "
        "and length)",
    )


def _hashes(source: Path, out: Path) -> list[dict[str, object]]:
    prepare(source, out)
    return [json.loads(line) for line in (out / "hashes.jsonl").read_text().splitlines()]


def test_the_same_words_at_a_usual_length_are_no_leak(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for split in ("train", "test"):
        rows = [["1", f"{split}{n}", "0", "a man speaks"] for n in range(5)]
        table(root / f"{split}.csv", HEADER, rows)
        for n in range(5):
            sound(root / "audio" / split / f"{split}{n}_0.wav", 10 * len(split) + n, 0.5)
    assert prepare(root, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("prepared", [True, False])
def test_leakage_against_another_data_set(prepared: bool, tmp_path: Path) -> None:
    """WavCaps' AudioSet part holds clips of AudioCaps, under another name and in FLAC."""
    audiocaps = data_set(
        tmp_path / "audiocaps",
        {"train": ["intraining1"], "val": ["inval123456"], "test": ["intest12345", "other123456"]},
    )
    wavcaps = tmp_path / "wavcaps"
    names = ["intest12345", "inval123456", "intraining1", "clean123456"]
    entries = [{"id": f"Y{name}.wav", "caption": "Words.", "duration": 10} for name in names]
    entries.append({"id": "renamed", "caption": "Words.", "duration": 10})
    wavcaps.mkdir()
    (wavcaps / "as_final.json").write_text(json.dumps({"data": entries}))
    for number, name in enumerate(names):
        sound(wavcaps / "waveforms" / f"Y{name}.flac", number)
    shutil.copy(audiocaps / "audio/test/other123456_0.wav", wavcaps / "waveforms" / "renamed.wav")
    folder = audiocaps
    if prepared:
        folder = tmp_path / "prepared"
        prepare(audiocaps, folder)
    result = prepare(wavcaps, tmp_path / "out", against=[folder])
    found = {(twin.by, twin.clip, twin.other_split) for twin in result.leakage}
    assert found == {
        ("id", "intest12345", "test"), ("id", "inval123456", "val"),
        ("audio", "AudioSet_SL-renamed", "test"),
    }  # fmt: skip
    assert [twin.clip for twin in result.twins if not twin.leaks] == ["intraining1"]
    assert result.exit_code == 1
    assert f"train is also in test of {folder}" in " ".join(result.obstacles)
    # from the other side: AudioCaps' test clips are trained on over there
    back = prepare(audiocaps, tmp_path / "back", against=[tmp_path / "out"])
    assert {(twin.split, twin.by) for twin in back.leakage} == {
        ("test", "id"), ("val", "id"), ("test", "audio"),
    }  # fmt: skip
    clean = data_set(tmp_path / "clean", {"train": ["nothing0001"], "test": ["nothing0002"]})
    assert prepare(clean, tmp_path / "c", against=[folder, tmp_path / "out"]).twins == []


@pytest.mark.parametrize("name", ["Yintest12345", "intest12345_30", "intest12345"])
def test_a_youtube_id_is_found_in_the_name_of_a_file(name: str, tmp_path: Path) -> None:
    audiocaps = data_set(tmp_path / "audiocaps", {"test": ["intest12345", "elsewhere_1"]})
    plain = tmp_path / "plain"
    rows = [[f"{name}.wav", "one"], ["elsewhere_2.wav", "two"]]
    table(plain / "train.csv", ["file", "caption"], rows)
    for number, (file, _) in enumerate(rows):
        sound(plain / file, number)
    result = prepare(plain, tmp_path / "out", against=[audiocaps])
    assert [(twin.by, twin.clip) for twin in result.leakage] == [("id", name)]
    back = prepare(audiocaps, tmp_path / "back", against=[plain])
    assert [(twin.by, twin.other) for twin in back.leakage] == [("id", name)]


def test_clotho_and_wavcaps_share_freesound(tmp_path: Path) -> None:
    clotho, wavcaps = tmp_path / "clotho", tmp_path / "wavcaps"
    captions = [f"caption_{n}" for n in range(1, 6)]
    table(
        clotho / "clotho_captions_evaluation.csv", ["file_name", *captions],
        [["Rain on roof.wav", *"abcde"]],
    )  # fmt: skip
    meta = [["Rain on roof.wav", "80399"]]
    table(clotho / "clotho_metadata_evaluation.csv", ["file_name", "sound_id"], meta)
    sound(clotho / "evaluation" / "Rain on roof.wav", 0)
    wavcaps.mkdir()
    entries = [{"id": "80399", "caption": "It rains.", "duration": 17.2}]
    (wavcaps / "fsd_final.json").write_text(json.dumps(entries))
    prepare(clotho, tmp_path / "out")
    result = prepare(wavcaps, tmp_path / "w", against=[tmp_path / "out"])
    assert [(twin.by, twin.other) for twin in result.leakage] == [("id", "Rain on roof")]


def test_check_notices_a_prepared_sound_that_changed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    assert {row.reason for row in check_root(out).problems} == {"missing"}
    (out / "audio" / "train" / "a_0.wav").unlink()
    sound(out / "audio" / "train" / "a_0.wav", 77)
    rows = [row.clip for row in check_root(out).problems if row.reason == "changed"]
    assert rows == ["a_0"]
    (out / "hashes.jsonl").write_text("5\n")
    with pytest.raises(DataError, match="hashes.jsonl, line 1: is not what `data prepare` writes"):
        check_root(out)


def test_another_data_set_that_is_none_is_found_before_any_work(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="does not exist"):
        prepare(source, tmp_path / "out", against=[tmp_path / "nowhere"])
    assert not (tmp_path / "out").exists()


def test_a_damaged_state_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    (out / ".prepare" / "source.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        prepare(source, out)


def test_against_itself_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is the data set itself"):
        prepare(source, tmp_path / "out", against=[source])


def test_nothing_usable(tmp_path: Path) -> None:
    names = {"train": ["a"], "test": ["b"]}
    source = data_set(tmp_path / "source", names, missing=("a", "b"))
    result = prepare(source, tmp_path / "out")
    assert result.exit_code == 1
    assert result.obstacles[0] == "train: none of its 1 clips can be used"


def test_what_is_broken_is_counted_by_reason(source: Path, tmp_path: Path) -> None:
    (source / "audio" / "train" / "a_0.wav").write_bytes(b"no sound")
    (source / "audio" / "train" / "b_0.wav").write_bytes(b"")
    result = prepare(source, tmp_path / "out")
    assert result.splits["train"].reasons == {"empty": 1, "missing": 1, "unreadable": 1}
    assert (result.splits["train"].present, result.splits["train"].usable) == (5, 3)


def test_the_table_says_n_and_the_losses(source: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(render(prepare(source, tmp_path / "out")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"recognised as AudioCaps layout: {source}" in text
    assert "train: 1 of 6 missing: no audio file was found for the clip" in text
    assert "✓ N = 5 train, 3 test clips in" in text
    assert "AudioCaps' 975" not in text


def test_audiocaps_test_clips_are_counted_against_the_published_sizes(tmp_path: Path) -> None:
    known = ["7fmOlUlwoNg", "6BJ455B1aAs", "GOD8Bt5LfDE"]  # the first three of its test split
    source = data_set(tmp_path / "source", {"test": known}, missing=known[2:])
    console = Console(file=io.StringIO(), width=160, color_system=None)
    result = prepare(source, tmp_path / "out")
    assert result.audiocaps_test == 2
    console.print(render(result))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "test: 2 of AudioCaps' 975 test clips: published scores are over 975 or 957" in text


names = st.text(st.sampled_from("abAB -_.[]é'\""), min_size=1, max_size=6).filter(
    lambda name: name == name.strip() and name not in (".", "..")
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(names, min_size=1, max_size=4, unique=True), st.text(min_size=1, max_size=20))
def test_any_name_goes_through(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], text: str
) -> None:
    root = tmp_path_factory.mktemp("any")
    caption = " ".join(text.split()).replace("\0", "").strip() or "x"
    source = data_set(root / "source", {"train": ids})
    table(source / "train.csv", HEADER, [["1", name, "0", caption] for name in ids])
    prepare(source, root / "out")
    ours, theirs = load_split(root / "out", "train"), load_split(source, "train")
    assert [(c.id, c.captions, c.path is None) for c in ours] == [
        (c.id, c.captions, c.path is None) for c in theirs
    ]


def test_the_real_sounds(shared: Path, tmp_path: Path) -> None:
    sounds, root = shared / "data" / "real-sounds", tmp_path / "source"
    (root / "audio").mkdir(parents=True)
    for split in ("val", "test"):  # not the 1,200 training clips, for time
        shutil.copy(sounds / f"{split}.csv", root)
        shutil.copytree(sounds / "audio" / split, root / "audio" / split)
    result = prepare(root, tmp_path / "out", against=[shared / "data" / "audiocaps"])
    assert (result.exit_code, result.twins) == (0, [])
    assert {n: count.usable for n, count in result.splits.items()} == {"val": 100, "test": 150}
