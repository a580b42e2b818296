"""A clip's sound, small enough for a page: mono, 16 kHz, at most ten seconds."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 10
RATE, RATE_UNCOMPRESSED = 16_000, 8_000
"""Hz, as MP3 and as WAV."""


def player(path: str) -> str | None:
    """The sound as a ``data:`` address; None when it is gone or cannot be decoded.

    MP3, because every browser plays it and its bytes depend on the samples alone (an Ogg stream
    has a random serial number); WAV at 8 kHz where libsndfile was built without it.

    Args:
        path: of a sound file that soundfile reads.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # not installed, or without libsndfile
        return None
    if not _is_file(path):
        return None
    try:
        with soundfile.SoundFile(path) as file:
            samples, rate = (
                file.read(SECONDS * file.samplerate, dtype="float32", always_2d=True),
                file.samplerate,
            )
        return _encoded(soundfile, samples.mean(axis=1), rate)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError):
        return None


def _is_file(path: str) -> bool:
    """Whether it is a regular file: a pipe or a device would never end."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _encoded(soundfile: Any, samples: np.ndarray, rate: int) -> str | None:
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    if not len(samples):
        return None
    mp3 = "MP3" in soundfile.available_formats()
    target = RATE if mp3 else RATE_UNCOMPRESSED
    samples = resampled(samples, rate, target)
    buffer = io.BytesIO()
    form = ("MP3", "MPEG_LAYER_III") if mp3 else ("WAV", "PCM_16")
    soundfile.write(buffer, np.clip(samples, -1, 1), target, format=form[0], subtype=form[1])
    kind = "audio/mpeg" if mp3 else "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def resampled(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """``samples`` at another rate, by cutting or padding their spectrum.

    Args:
        samples: [S], mono.
        rate: theirs, in Hz.
        target: the new one, in Hz.
    """
    if rate == target:
        return samples
    length = max(1, round(len(samples) * target / rate))
    spectrum = np.fft.rfft(samples)
    bins = length // 2 + 1
    spectrum = np.pad(spectrum[:bins], (0, max(0, bins - len(spectrum))))
    return np.fft.irfft(spectrum, length) * (length / len(samples))
