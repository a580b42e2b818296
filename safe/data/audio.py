"""Decoding audio files: mono float32 at a given rate, cropped by a stated rule."""

import hashlib
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from configs.errors import DataError
from safe.data.problems import AudioProblem

CROP_RULES = ("start", "center", "random")
MIN_SECONDS = 0.1
MAX_FILE_SECONDS = 2 * 3600.0
SILENCE = 1e-4
"""Half the peak-to-peak range below which a clip is silent: -80 dBFS, three 16-bit steps."""
FULL_SCALE = 1 - 2.0**-15
"""The largest positive 16-bit sample; an absolute value at or above it counts as clipped."""
_BLOCK = 1 << 18  # frames per read when a whole file is inspected
_OGG_PAGE = 65_307  # bytes of the largest page
_WHOLE = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""Kinds of file, as libsndfile calls them, that are found out when they are cut."""
_STREAMED = 0x7FFF0000  # a WAV written to a pipe declares this many bytes or more: unknown length


@dataclass(frozen=True)
class Waveform:
    """A decoded clip."""

    samples: NDArray[np.float32]
    """[S] mono samples, nominally in [-1, 1], at `sample_rate`."""
    seconds: float
    """Length of the whole file in seconds, before cropping."""
    sample_rate: int
    """Samples per second of `samples`, in Hz."""


@dataclass(frozen=True)
class AudioFacts:
    """What a whole audio file is like."""

    sample_rate: int
    """Samples per second in the file, in Hz."""
    channels: int
    """Number of channels."""
    seconds: float
    """Length in seconds."""
    peak: float
    """Largest absolute sample of any channel (1.0 is full scale), non-finite frames left out."""
    clipped_share: float
    """Share of the samples at or above full scale, 0 to 1."""
    silent: bool
    """Whether the mean of the channels stays within SILENCE of a constant."""
    nonfinite: int
    """Number of NaN or infinite samples."""
    sha256: str
    """Hash of rate, channels and decoded samples: equal sound in WAV and FLAC hashes equally."""


def decode(
    path: Path | str,
    sample_rate: int,
    max_seconds: float,
    *,
    crop: str = "center",
    seed: int = 0,
    min_seconds: float = MIN_SECONDS,
) -> Waveform:
    """Read a file as mono at `sample_rate` Hz (soxr HQ), at most `max_seconds` long.

    A longer file is cropped before resampling: at its start, in its centre, or at a random place
    that depends on `seed` and on the file's content alone. Channels are averaged.

    Raises AudioProblem (missing, unreadable, truncated, empty, too_short, too_long, silent,
    nonfinite); silence and non-finite samples are looked for in the part that is used.
    """
    if crop not in CROP_RULES:
        raise DataError(f"crop rule {crop!r} is unknown; allowed: {', '.join(CROP_RULES)}")
    with _open(path) as file:
        seconds = file.frames / file.samplerate
        if seconds < min_seconds:
            detail = f"{seconds:.3f} s, at least {min_seconds:g} s are needed"
            raise AudioProblem(path, "too_short", detail)
        window = min(file.frames, math.ceil(max_seconds * file.samplerate))
        start = _crop_start(crop, file.frames - window, seed, path)
        file.seek(start)
        frames = file.read(window, dtype="float32", always_2d=True)
        _check_complete(path, len(frames), window)
        source_rate = file.samplerate
    # Averaged in float64: two full-scale channels must not overflow, and halves stay exact.
    mono = frames.mean(axis=1, dtype=np.float64).astype(np.float32)
    if not np.isfinite(mono).all():
        raise AudioProblem(path, "nonfinite", f"{(~np.isfinite(mono)).sum()} NaN or infinite")
    if np.ptp(mono) / 2 < SILENCE:
        raise AudioProblem(path, "silent")
    if source_rate != sample_rate:
        mono = soxr.resample(mono, source_rate, sample_rate, quality="HQ")
    samples = np.ascontiguousarray(mono[: round(max_seconds * sample_rate)], dtype=np.float32)
    if not len(samples):
        raise AudioProblem(path, "too_short", f"no sample is left at {sample_rate} Hz")
    return Waveform(samples, seconds, sample_rate)


def inspect(path: Path | str) -> AudioFacts:
    """Read a whole file, block by block, and say what it is like.

    Raises AudioProblem (missing, unreadable, truncated, empty, too_long).
    """
    with _open(path) as file:
        digest = hashlib.sha256(f"{file.samplerate}:{file.channels}:".encode())
        low, high, peak, nonfinite, clipped, frames = math.inf, -math.inf, 0.0, 0, 0, 0
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            digest.update(block.astype("<f4").tobytes())
            frames += len(block)
            finite = np.isfinite(block)
            if not finite.all():
                nonfinite += int(block.size - finite.sum())
                block = block[finite.all(axis=1)]
            if len(block):
                mono = block.mean(axis=1, dtype=np.float64)  # what `decode` gives
                low, high = min(low, float(mono.min())), max(high, float(mono.max()))
                loudest = float(np.abs(block).max())
                peak = max(peak, loudest)
                if loudest >= FULL_SCALE:
                    clipped += int((np.abs(block) >= FULL_SCALE).sum())
        _check_complete(path, frames, file.frames)
        return AudioFacts(
            sample_rate=file.samplerate,
            channels=file.channels,
            seconds=frames / file.samplerate,
            peak=peak,
            clipped_share=clipped / (frames * file.channels),
            silent=(high - low) / 2 < SILENCE,
            nonfinite=nonfinite,
            sha256=digest.hexdigest(),
        )


@contextmanager
def _open(path: Path | str) -> Iterator[soundfile.SoundFile]:
    """Open a file and check what its header declares before anything is allocated."""
    if not os.path.isfile(path):
        raise AudioProblem(path, "missing")
    try:
        if os.path.getsize(path) == 0:
            raise AudioProblem(path, "empty", "the file has 0 bytes")
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise AudioProblem(path, "unreadable", _text(error)) from None
    with file:
        if file.format not in _WHOLE:
            detail = (
                f"a {file.format} file, of which nobody can tell whether it was cut; convert it "
                f"to one of {', '.join(_WHOLE)}"
            )
            raise AudioProblem(path, "unreadable", detail)
        if file.frames <= 0:
            raise AudioProblem(path, "empty")
        seconds = file.frames / file.samplerate
        if seconds > MAX_FILE_SECONDS:
            detail = f"{seconds / 3600:.3g} h declared, {MAX_FILE_SECONDS / 3600:g} h allowed"
            raise AudioProblem(path, "too_long", detail)
        if file.channels > 64 or not 1000 <= file.samplerate <= 768_000:
            detail = f"declares {file.channels} channels at {file.samplerate} Hz"
            raise AudioProblem(path, "unreadable", detail)
        _check_wav_size(path, file)
        if file.format == "OGG":
            _check_ogg_end(path)
        try:
            yield file
        except soundfile.SoundFileError as error:
            detail = f"decoding stops with an error: {_text(error)}"
            raise AudioProblem(path, "truncated", detail) from None


def _check_wav_size(path: Path | str, file: soundfile.SoundFile) -> None:
    # libsndfile silently shortens a cut WAV; only its log says what the header declared.
    match = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if match and int(match[2]) < int(match[1]) < _STREAMED:
        detail = f"the header declares {match[1]} bytes of samples, the file holds {match[2]}"
        raise AudioProblem(path, "truncated", detail)


def _check_ogg_end(path: Path | str) -> None:
    # libsndfile takes the last whole page for the end; a whole file says that it is (RFC 3533).
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2 * _OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 0
    size = 27 + segments + sum(page[27 : 27 + segments])
    if len(page) < max(28, size) or not page[5] & 4:
        raise AudioProblem(path, "truncated", "the last page is not marked as the end, or cut")


def _check_complete(path: Path | str, found: int, declared: int) -> None:
    if found < declared:
        raise AudioProblem(path, "truncated", f"{found} of {declared} frames decode")


def _crop_start(crop: str, spare: int, seed: int, path: Path | str) -> int:
    """Return the first frame of the part that is used; `spare` frames are left out in all."""
    if crop == "start" or spare == 0:
        return 0
    if crop == "center":
        return spare // 2
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    place = int.from_bytes(hashlib.sha256(f"{seed}:{content}".encode()).digest()[:8])
    return place % (spare + 1)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
