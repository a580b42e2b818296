"""Which captions are shown, and the sound that goes with them."""

import base64
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from reports.player import RATE, SECONDS, player, resampled
from reports.run import read_run
from reports.samples import EACH, Samples, samples, without_sound

Factory = Callable[..., Path]
Rows = dict[str, Callable[..., Any]]


def clips(groups: tuple[Samples, ...]) -> dict[str, list[str]]:
    return {g.title: [s.clip for s in g.samples] for g in groups}


def scored(run_rows: Rows, scores: dict[str, Any]) -> dict[str, Any]:
    whole = run_rows["scores"]()
    whole["scores"]["per_clip_cider"] = scores
    return dict(whole)


def test_worst_typical_and_best(make_whole_run: Factory, run_rows: Rows) -> None:
    scores = {f"clip-{i:04}": float(i) for i in range(41)}
    run = read_run(make_whole_run(
        evaluation=scored(run_rows, scores), captions=run_rows["captions"](41)
    ))  # fmt: skip
    found = samples(run)
    assert clips(found) == {
        "Worst": ["clip-0000", "clip-0001", "clip-0002"],
        "Typical": ["clip-0020", "clip-0019", "clip-0021"],
        "Best": ["clip-0040", "clip-0039", "clip-0038"],
    }
    worst = found[0].samples[0]
    assert worst.score == 0
    assert worst.caption == "A dog barks near a dog barks 0"
    assert worst.references == ("Something 0 sounds", "A dog")
    assert dict(worst.controls)["another clip's audio"] == "A siren wails"
    assert "own audio" not in dict(worst.controls)
    assert worst.audio is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 9, 10])
def test_no_clip_twice(make_whole_run: Factory, run_rows: Rows, count: int) -> None:
    run = read_run(make_whole_run(captions=run_rows["captions"](count)))
    chosen = [clip for group in clips(samples(run)).values() for clip in group]
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == min(count, 3 * max(1, min(EACH, count // 3)))


def test_scores_that_are_none_are_not_chosen_by(make_whole_run: Factory, run_rows: Rows) -> None:
    bad: dict[str, Any] = {f"clip-{i:04}": math.nan for i in range(40)}
    bad |= {"clip-0001": "3.0", "clip-0002": None, "clip-0003": [1], "clip-0004": 5.0}
    run = read_run(make_whole_run(evaluation=scored(run_rows, bad)))
    assert clips(samples(run)) == {"Worst": ["clip-0001"], "Best": ["clip-0004"]}


def test_first_ones_without_scores(make_run: Factory, run_rows: Rows) -> None:
    run = read_run(make_run(captions=run_rows["captions"](), evaluation={"split": "test"}))
    (only,) = samples(run)
    assert only.title == "First"
    assert len(only.samples) == 2 * EACH
    assert math.isnan(only.samples[0].score)


def test_rows_of_the_wrong_kind(make_run: Factory) -> None:
    rows: list[dict[str, Any]] = [
        {"clip": "a", "own audio": 5}, {"clip": "b"},
        {"clip": "c", "own audio": "A dog", "silence": None},
    ]  # fmt: skip
    references = [{"clip": "c", "captions": "no list", "audio": 7}]
    run = read_run(make_run(captions=rows, references=references, evaluation={"scores": 3}))
    (only,) = samples(run)
    (sample,) = only.samples
    assert (sample.caption, sample.controls, sample.references) == ("A dog", (), ())
    assert sample.audio is None


def decoded(address: str | None) -> tuple[np.ndarray, int]:
    assert address is not None
    kind, _, data = address.partition(";base64,")
    assert kind == "data:audio/mpeg"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    return samples, rate


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """12 seconds of stereo at 44.1 kHz: 440 Hz left, nothing right."""
    time = np.arange(12 * 44_100) / 44_100
    left = 0.8 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], 1), 44_100)
    return tmp_path / "a.wav"


def test_mono_16_khz_ten_seconds(tone: Path) -> None:
    address = player(str(tone))
    found, rate = decoded(address)
    assert rate == RATE
    assert found.ndim == 1
    assert len(found) / rate == pytest.approx(SECONDS, abs=0.2)
    spectrum = np.abs(np.fft.rfft(found[: 5 * rate]))
    assert spectrum.argmax() / 5 == pytest.approx(440, abs=1)
    assert np.abs(found[rate:-rate]).max() == pytest.approx(0.4, abs=0.05)
    assert address is not None and len(address) < 120_000


def test_same_bytes_twice(tone: Path) -> None:
    assert player(str(tone)) == player(str(tone))


def test_wav_where_mp3_cannot_be_written(tone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
    address = player(str(tone))
    assert address is not None
    assert address.startswith("data:audio/wav;base64,")
    assert len(address) < 250_000


@pytest.mark.parametrize("content", [b"", b"not a sound", b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_what_cannot_be_decoded(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert player(str(path)) is None


def test_no_sound_file_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # reading it would wait for ever
    for path in ("", "\0", "x" * 5000, str(tmp_path), str(tmp_path / "pipe.wav"), "/dev/zero"):
        assert player(path) is None, path


def test_silence_nan_and_nothing(tmp_path: Path) -> None:
    for name, values in (("nan", np.full(8000, np.nan)), ("silence", np.zeros(8000))):
        soundfile.write(tmp_path / f"{name}.wav", values, 8000, subtype="FLOAT")
        found, _ = decoded(player(str(tmp_path / f"{name}.wav")))
        assert np.abs(found).max() == 0
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    assert player(str(tmp_path / "none.wav")) is None


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    time = np.arange(rate) / rate
    found = resampled(np.sin(2 * np.pi * 1000 * time), rate, RATE)
    expected = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # whole periods: exact but for rounding


def test_without_sound(make_whole_run: Factory, tone: Path) -> None:
    found = samples(read_run(make_whole_run(audio=str(tone))))
    assert all(s.audio for g in found for s in g.samples)
    assert not any(s.audio for g in without_sound(found) for s in g.samples)
    assert clips(without_sound(found)) == clips(found)
