"""Decoding: mono, rate, crop, and every reason for which a file cannot be used."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from safe.data.audio import MAX_FILE_SECONDS, decode, inspect
from safe.data.problems import AudioProblem

RATE = 8000


def noise(seconds: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).integers(-9000, 9000, (round(seconds * RATE), channels))
    return (samples / 32768).astype(np.float32)


def save(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_stereo_becomes_the_exact_mean(tmp_path: Path) -> None:
    stereo = noise(0.5, channels=2)
    wave = decode(save(tmp_path / "x.wav", stereo), RATE, 10.0)
    expected = ((stereo[:, 0].astype(np.float64) + stereo[:, 1]) / 2).astype(np.float32)
    assert wave.samples.dtype == np.float32
    assert np.array_equal(wave.samples, expected)
    assert wave.seconds == 0.5
    assert wave.sample_rate == RATE


def test_wav_flac_and_float_hold_the_same_samples(tmp_path: Path) -> None:
    sound = noise(0.5)
    paths = [save(tmp_path / name, sound) for name in ("x.wav", "x.flac")]
    paths.append(save(tmp_path / "f.wav", sound, subtype="FLOAT"))
    waves = [decode(path, RATE, 10.0).samples for path in paths]
    assert np.array_equal(waves[0], sound[:, 0])
    assert all(np.array_equal(waves[0], wave) for wave in waves)
    assert len({inspect(path).sha256 for path in paths}) == 1


@pytest.mark.parametrize("name", ["x.ogg", "x.mp3"])
def test_lossy_formats_decode(tmp_path: Path, name: str) -> None:
    time = np.arange(2 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    wave = decode(save(tmp_path / name, tone), RATE, 10.0)
    assert wave.seconds == pytest.approx(2.0, abs=0.15)
    spectrum = np.abs(np.fft.rfft(wave.samples[RATE // 2 : RATE // 2 + RATE]))
    assert spectrum.argmax() == 440


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100, 48_000, 5_512])
def test_resampling_keeps_length_and_pitch(tmp_path: Path, rate: int) -> None:
    time = np.arange(RATE) / RATE
    path = save(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 440 * time))
    wave = decode(path, rate, 10.0)
    assert abs(len(wave.samples) - rate) <= 1
    middle = slice(rate // 4, 3 * rate // 4)  # the ends ring
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(wave.samples)) / rate)
    # Worst case measured 1.1e-4 (16-bit rounding included); linear interpolation gives 6e-3.
    assert np.abs(wave.samples[middle] - expected[middle]).max() < 5e-4


def test_crop_rules(tmp_path: Path) -> None:
    ramp = np.linspace(-0.5, 0.5, 4 * RATE)
    path = save(tmp_path / "x.wav", ramp)
    whole = decode(path, RATE, 4.0).samples
    start = decode(path, RATE, 1.0, crop="start")
    center = decode(path, RATE, 1.0, crop="center")
    assert np.array_equal(start.samples, whole[:RATE])
    assert np.array_equal(center.samples, whole[3 * RATE // 2 : 5 * RATE // 2])
    assert start.seconds == center.seconds == 4.0
    assert len(decode(path, 2 * RATE, 1.0).samples) == 2 * RATE


def test_random_crops_depend_on_seed_and_content_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "x.wav", noise(4.0))
    copy = tmp_path / "other-name.wav"
    copy.write_bytes(path.read_bytes())
    crops = [decode(path, RATE, 1.0, crop="random", seed=seed).samples for seed in range(8)]
    again = [decode(copy, RATE, 1.0, crop="random", seed=seed).samples for seed in range(8)]
    assert all(np.array_equal(one, two) for one, two in zip(crops, again, strict=True))
    assert len({crop.tobytes() for crop in crops}) == 8
    whole = decode(path, RATE, 4.0).samples
    assert all(crop.tobytes() in whole.tobytes() for crop in crops)


def reason(path: Path) -> str:
    """Return the reason for which a file cannot be decoded, after checking that it is told."""
    with pytest.raises(AudioProblem) as caught:
        decode(path, RATE, 10.0)
    assert str(path) in str(caught.value)
    assert caught.value.reason in str(caught.value)
    return caught.value.reason


def test_every_reason(tmp_path: Path) -> None:
    assert reason(tmp_path / "gone.wav") == "missing"
    assert reason(tmp_path) == "missing"
    (tmp_path / "zero.wav").touch()
    assert reason(tmp_path / "zero.wav") == "empty"
    (tmp_path / "text.wav").write_text("not audio, but long enough to look at" * 10)
    assert reason(tmp_path / "text.wav") == "unreadable"
    (tmp_path / "x.raw").write_bytes(b"1234")
    assert reason(tmp_path / "x.raw") == "unreadable"
    assert reason(save(tmp_path / "none.wav", noise(0))) == "empty"
    assert reason(save(tmp_path / "short.wav", noise(0.05))) == "too_short"
    assert reason(save(tmp_path / "zeros.wav", np.zeros(RATE))) == "silent"
    assert reason(save(tmp_path / "dc.wav", np.full(RATE, 0.25))) == "silent"
    hiss = np.random.default_rng(0).integers(-2, 3, RATE) / 32768
    assert reason(save(tmp_path / "hiss.wav", hiss)) == "silent"
    for bad in (np.nan, np.inf):
        sound = noise(1)
        sound[7] = bad
        path = save(tmp_path / "bad.wav", sound, subtype="FLOAT")
        assert reason(path) == "nonfinite"
        assert inspect(path).nonfinite == 1
    assert reason(save(tmp_path / "rate.wav", noise(1), rate=10)) == "unreadable"


def test_opposite_channels_are_silent_as_mono(tmp_path: Path) -> None:
    left = noise(1)
    path = save(tmp_path / "x.wav", np.hstack([left, -left]))
    assert reason(path) == "silent"
    assert inspect(path).silent


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mp3"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str, share: float) -> None:
    data = save(tmp_path / name, noise(3)).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert reason(tmp_path / name) == "truncated"
    with pytest.raises(AudioProblem, match="truncated"):
        inspect(tmp_path / name)


def test_a_streamed_wav_does_not_know_its_length_and_is_fine(tmp_path: Path) -> None:
    path = save(tmp_path / "x.wav", noise(1))
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert decode(path, RATE, 10.0).seconds == 1.0


def test_what_a_file_declares_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "x.flac", noise(1))
    data = bytearray(path.read_bytes())
    # STREAMINFO: the last 36 bits of these 8 bytes are the number of samples.
    field = int.from_bytes(data[18:26]) | ((1 << 36) - 1)
    data[18:26] = field.to_bytes(8)
    path.write_bytes(data)
    assert reason(path) == "too_long"
    with pytest.raises(AudioProblem, match=r"2.39e\+03 h declared, 2 h allowed"):
        inspect(path)
    assert MAX_FILE_SECONDS == 7200


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["x.wav", "x.flac", "x.ogg", "x.mp3"]),
    places=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)), max_size=4),
)
def test_damaged_bytes_decode_or_are_an_audio_problem(
    tmp_path: Path, name: str, places: list[tuple[int, bytes]]
) -> None:
    data = bytearray(save(tmp_path / name, noise(0.5)).read_bytes())
    for place, junk in places:
        data[place : place + len(junk)] = junk
    (tmp_path / name).write_bytes(data)
    try:
        inspect(tmp_path / name)
        wave = decode(tmp_path / name, RATE, 1.0)
    except AudioProblem:
        return
    assert np.isfinite(wave.samples).all()
    assert 0 < len(wave.samples) <= RATE


def test_an_unknown_crop_rule_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="crop rule 'middle' is unknown; allowed: start, center"):
        decode(tmp_path / "x.wav", RATE, 1.0, crop="middle")


def test_facts(tmp_path: Path) -> None:
    sound = np.hstack([noise(1), noise(1, seed=1)])
    sound[:80, 0] = 1.0
    sound[80:160, 1] = -1.0
    facts = inspect(save(tmp_path / "x.wav", sound))
    assert (facts.sample_rate, facts.channels, facts.seconds) == (RATE, 2, 1.0)
    assert facts.peak == 1.0
    assert facts.clipped_share == 160 / (2 * RATE)
    assert not facts.silent
    assert facts.nonfinite == 0
    decoded, _ = soundfile.read(tmp_path / "x.wav", dtype="float32")
    digest = hashlib.sha256(b"8000:2:" + decoded.astype("<f4").tobytes())
    assert facts.sha256 == digest.hexdigest()


def test_facts_do_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.wav", noise(1, channels=2))
    facts = inspect(path)
    monkeypatch.setattr("safe.data.audio._BLOCK", 777)
    assert inspect(path) == facts


def test_real_sounds_decode_to_the_rate_of_an_encoder(shared: Path) -> None:
    folder = shared / "data" / "real-sounds" / "audio" / "test"
    for path in sorted(folder.iterdir())[:5]:
        wave = decode(path, 48_000, 10.0)
        assert len(wave.samples) == round(wave.seconds * 48_000)
        assert 4.9 < wave.seconds < 7.1
        assert 0.01 < np.abs(wave.samples).max() < 1.6
