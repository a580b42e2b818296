"""The built-in clips: the same everywhere, described by their captions, safe to write twice."""

import hashlib
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from safe.data.manifests import load_split
from safe.data.synthetic import (
    REFERENCES,
    SPLITS,
    SyntheticScene,
    materialize_synthetic,
    render,
    synthetic_scene,
)
from safe.data.synthetic_events import _TEMPLATES, EVENTS, RELATIONS, caption, events_in
from safe.data.synthetic_sounds import SAMPLE_RATE

GOLDEN = [
    ("train", ["365ceecab3a96230", "f251999922b478a9", "497245c84c76f97c", "3d35307eace71ba5"]),
    ("val", ["93cf4c4398320199", "319aa2b80ff99e99", "e1aeaedda6bc234d", "723c4c0923ca9239"]),
    ("test", ["663eb29154df9086", "1cc8880980a83275", "de777bd9f758caf8", "0eac0de96b5f0fcd"]),
]
SIZES = {"train": 5, "val": 2, "test": 2}


def digest(scene: SyntheticScene) -> str:
    words = json.dumps([scene.relation, scene.events, scene.captions])
    return hashlib.sha256(words.encode() + render(scene).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("split", "golden"), GOLDEN)
def test_clips_are_the_same_on_every_machine(split: str, golden: list[str]) -> None:
    # Made by: python -c "from tests.data.test_synthetic import *;
    # print([(s, [digest(synthetic_scene(s, i)) for i in range(4)]) for s in SPLITS])"
    # A change here is a change of everybody's data: raise synthetic.VERSION with it.
    assert [digest(synthetic_scene(split, index)) for index in range(4)] == golden


def test_a_clip_does_not_depend_on_what_was_made_before() -> None:
    later = digest(synthetic_scene("train", 7))
    for index in range(7):
        synthetic_scene("train", index)
    assert digest(synthetic_scene("train", 7)) == later


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("seconds", [1.6, 3.2])
def test_every_event_sounds(name: str, seconds: float) -> None:
    n = int(seconds * SAMPLE_RATE)
    waves = [EVENTS[name].render(np.random.default_rng(seed), n) for seed in (0, 1)]
    for wave in waves:
        assert wave.shape == (n,)
        assert wave.dtype == np.float64
        assert np.isfinite(wave).all()
        # Something is heard in both halves, so that cutting never leaves silence.
        assert all(np.square(half).mean() > 1e-8 for half in np.array_split(wave, 2))
    assert not np.array_equal(*waves), "its parameters must vary"


def test_clips_are_audible_and_not_clipped() -> None:
    for index in range(40):
        samples = render(synthetic_scene("val", index))
        assert samples.shape == (64_000,)
        assert samples.dtype == np.int16
        peak = int(np.abs(samples.astype(np.int32)).max())
        assert 0.02 * 32767 < peak <= 0.95 * 32767 + 1


def test_no_two_clips_are_alike_within_or_across_splits_and_seeds() -> None:
    sounds = [
        render(synthetic_scene(split, index, seed=seed)).tobytes()
        for split in SPLITS
        for seed in (0, 1)
        for index in range(6)
    ]
    assert len(set(sounds)) == len(sounds)


def test_every_event_and_relation_occurs_often_enough_to_learn() -> None:
    scenes = [synthetic_scene("train", index) for index in range(1600)]
    counts = {name: sum(name in scene.events for scene in scenes) for name in EVENTS}
    assert min(counts.values()) >= 50  # expected 91
    for relation in RELATIONS:
        assert sum(scene.relation == relation for scene in scenes) >= 400


@pytest.mark.parametrize("split", SPLITS)
def test_captions_name_exactly_the_events(split: str) -> None:
    for index in range(60):
        scene = synthetic_scene(split, index)
        assert len(set(scene.captions)) == len(scene.captions) == REFERENCES[split]
        assert len(scene.events) == (1 if scene.relation == "single" else 2)
        for text in scene.captions:
            assert events_in(text) == set(scene.events), text
            assert text[0].isupper()


def test_every_phrase_names_its_event_and_no_other() -> None:
    for event in EVENTS.values():
        assert len(event.phrases) >= 3
        for phrase in (text for pair in event.phrases for text in pair):
            assert events_in(phrase) == {event.name}, phrase
    assert events_in(" ".join(text for texts in _TEMPLATES.values() for text in texts)) == set()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sequences_are_told_in_order(data: st.DataObject) -> None:
    first, second = data.draw(st.permutations(list(EVENTS)))[:2]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    text = caption(rng, "sequence", (first, second)).lower()
    before, _, after = text.partition(" then " if " then " in text else "followed by")
    assert (events_in(before), events_in(after)) == ({first}, {second})


def test_sequences_sound_in_order() -> None:
    low, high = {"hum", "engine", "heartbeat", "wind"}, {"cricket", "bird", "laser", "rain"}
    scenes = (synthetic_scene("probe", index) for index in range(2000))
    sequences = [scene for scene in scenes if scene.relation == "sequence"]
    upward = [s for s in sequences if s.events[0] in low and s.events[1] in high]
    assert len(upward) >= 5
    for scene in upward:
        spectra = [np.abs(np.fft.rfft(half)) for half in np.split(render(scene) / 32768, 2)]
        before, after = (part[len(part) // 4 :].sum() / part.sum() for part in spectra)
        assert before < after, scene.events  # share above 2 kHz


def test_unknown_split_and_negative_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown synthetic split 'tset'; known: train, val"):
        synthetic_scene("tset", 0)
    with pytest.raises(DataError, match="0 or more, got index -1, seed 0"):
        synthetic_scene("train", -1)
    with pytest.raises(DataError, match="must be 0 or more"):
        materialize_synthetic(tmp_path / "x", train=-1)


def test_written_clips_are_read_by_the_manifest_reader(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = materialize_synthetic(
        tmp_path / "clips", **SIZES, progress=lambda done, total: seen.append((done, total))
    )
    assert root == tmp_path / "clips"
    assert seen[-1] == (9, 9)
    for split, count in SIZES.items():
        clips = load_split(root, split)
        assert len(clips) == count
        for index, clip in enumerate(clips):
            scene = synthetic_scene(split, index)
            assert clip.captions == scene.captions
            assert clip.path is not None
            samples, rate = soundfile.read(clip.path, dtype="int16")
            assert rate == SAMPLE_RATE
            assert np.array_equal(samples, render(scene))


def test_a_complete_folder_is_reused_and_another_is_refused(tmp_path: Path) -> None:
    root = materialize_synthetic(tmp_path / "clips", **SIZES)
    stamp = (root / "train.csv").stat().st_mtime_ns
    materialize_synthetic(root, **SIZES)
    assert (root / "train.csv").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"holds .*'train': 5.*choose another folder or remove"):
        materialize_synthetic(root, train=6, val=2, test=2)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        materialize_synthetic(foreign, **SIZES)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_an_interrupted_call_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialize_synthetic(tmp_path / "clips", **SIZES, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert (materialize_synthetic(tmp_path / "clips", **SIZES) / "synthetic.json").is_file()


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=materialize_synthetic, args=(tmp_path / "clips",), kwargs=SIZES)
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]
    assert len(load_split(tmp_path / "clips", "train")) == SIZES["train"]
