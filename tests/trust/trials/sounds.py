"""Ways in which the sound of one clip is damaged, lies or is not there."""

import io
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
Damage = Callable[[Path, random.Random], None]
"""Makes the file of a clip; it is given a path without suffix."""


def good(seconds: float = 0.5, suffix: str = "wav", seed: int = 0, **how: str) -> bytes:
    """The bytes of a sound file of noise."""
    file, noise = io.BytesIO(), np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    soundfile.write(file, noise.astype(np.float32), RATE, format=suffix.upper(), **how)
    return file.getvalue()


def _samples(samples: np.ndarray, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype=subtype)
    return file.getvalue()


def _floats(value: float, choose: random.Random) -> bytes:
    samples = np.random.default_rng(choose.randrange(2**31)).normal(0, 0.1, 2 * RATE)
    samples[[choose.randrange(len(samples)) for _ in range(choose.randint(1, 9))]] = value
    return _samples(samples.astype(np.float32), "FLOAT")


def _cut(suffix: str) -> Damage:
    def cut(stem: Path, choose: random.Random) -> None:
        whole = good(2, suffix, choose.randrange(2**31))
        end = choose.randrange(1, len(whole) * 99 // 100)
        stem.with_suffix(f".{suffix}").write_bytes(whole[:end])

    return cut


def _content(make: Callable[[random.Random], bytes], suffix: str = "wav") -> Damage:
    def write(stem: Path, choose: random.Random) -> None:
        stem.with_suffix(f".{suffix}").write_bytes(make(choose))

    return write


def _field(offset: int, form: str, values: tuple[int, ...]) -> Damage:
    """A WAV header with another number at a place."""

    def make(choose: random.Random) -> bytes:
        whole, value = bytearray(good()), choose.choice(values)
        struct.pack_into(form, whole, offset, value)
        return bytes(whole)

    return _content(make)


def _flac(samples: int, channels: int) -> Damage:
    """A FLAC header that claims so many samples; the file is a few kilobytes."""

    def make(choose: random.Random) -> bytes:
        whole = bytearray(good(0.5, "flac", choose.randrange(2**31)))
        packed = int.from_bytes(whole[18:26], "big")
        packed = packed & ~(2**36 - 1) & ~(7 << 41) | (channels - 1) << 41
        claimed = samples - choose.randrange(1000)
        whole[18:26] = (packed | claimed).to_bytes(8, "big")
        return bytes(whole)

    return _content(make, "flac")


def _other_container(choose: random.Random) -> bytes:
    """Half of a file of a kind that libsndfile reads at half length without a word."""
    file, noise = io.BytesIO(), np.random.default_rng(choose.randrange(2**31)).normal(0, 0.1, RATE)
    kind = choose.choice(("AIFF", "AU", "CAF", "IRCAM", "NIST", "RF64", "VOC", "W64"))
    soundfile.write(file, noise, RATE, format=kind, subtype="PCM_16")
    whole = file.getvalue()
    return whole[: len(whole) // 2]


def _cover_bomb(choose: random.Random) -> bytes:
    """An MP3 whose ID3 tag claims a picture of up to 256 MB."""
    size = choose.randrange(2**20, 2**28)
    seven = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    frame = b"APIC" + struct.pack(">I", size - 10) + b"\0\0" + b"\0image/png\0\x03\0" + bytes(200)
    return b"ID3\x03\0\0" + seven + frame + good(1, "mp3")


def _other_kind(choose: random.Random) -> bytes:
    kinds = (b"<!DOCTYPE html><html>", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"%PDF-1.7\n", b"ID3",
             b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3", b"version https://git-lfs",
             b"cos\nsystem\n")  # fmt: skip
    return choose.choice(kinds) + choose.randbytes(choose.randrange(300))


def _directory(stem: Path, _choose: random.Random) -> None:
    stem.with_suffix(".wav").mkdir()


def _pipe(stem: Path, _choose: random.Random) -> None:
    os.mkfifo(stem.with_suffix(".wav"))


def _dangling(stem: Path, _choose: random.Random) -> None:
    stem.with_suffix(".wav").symlink_to("nowhere.wav")


def _link_out(stem: Path, choose: random.Random) -> None:
    outside = stem.parents[2] / "outside" / "secret.wav"
    relative = os.path.relpath(outside, stem.parent)
    stem.with_suffix(".wav").symlink_to(choose.choice([str(outside), relative]))


def _nothing(_stem: Path, _choose: random.Random) -> None:
    """The manifest names a clip, and there is no file."""


UNREADABLE = ("unreadable",)
CUT = ("truncated", "unreadable", "empty")
GONE = ("missing", "outside")
SOUNDS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "truncated wav": (_cut("wav"), CUT), "truncated flac": (_cut("flac"), CUT),
    "truncated ogg": (_cut("ogg"), CUT), "truncated mp3": (_cut("mp3"), CUT),
    "length beyond the file": (_field(40, "<I", (2**20, 2**28, 2**31 - 2**17)), CUT),
    "rate of nothing": (_field(24, "<I", (0, 1, 7, 999)), UNREADABLE),
    "rate of gigahertz": (_field(24, "<I", (10**6, 2**31 - 1, 2**32 - 1)), UNREADABLE),
    "no channels": (_field(22, "<H", (0,)), UNREADABLE),
    "many channels": (_field(22, "<H", (65, 255, 1024, 65535)), UNREADABLE),
    "bits of no number": (_field(34, "<H", (0, 99, 65535)), UNREADABLE),
    "unknown codec": (_field(20, "<H", (0x55, 0x161, 0x7777, 0xFFFF)), CUT),
    "silence": (_content(lambda c: _samples(np.zeros(c.randrange(RATE, 4 * RATE)))), ("silent",)),
    "nearly silence": (_content(lambda c: _samples(
        np.random.default_rng(c.randrange(9**9)).integers(-1, 2, RATE) / 2**15)), ("silent",)),
    "direct current": (_content(lambda c: _samples(np.full(RATE, c.uniform(-1, 1)))), ("silent",)),
    "NaN": (_content(lambda c: _floats(np.nan, c)), ("nonfinite",)),
    "infinity": (_content(lambda c: _floats(c.choice([np.inf, -np.inf]), c)), ("nonfinite",)),
    "zero bytes": (_content(lambda _: b""), ("empty",)),
    "only zeros": (_content(lambda c: bytes(c.randrange(1, 9999)), "mp3"), CUT),
    "zeros for a header": (_content(lambda c: bytes(44) + good(seed=c.randrange(999))[44:]), CUT),
    "header alone": (_content(lambda _: _samples(np.zeros(0))), ("empty",)),
    "one sample": (_content(lambda c: _samples(np.full(1, c.random()))), ("too_short",)),
    "under a tenth of a second": (_content(lambda c: good(c.uniform(0.001, 0.09))), ("too_short",)),
    "two hours declared": (_flac(int(2.1 * 3600 * RATE), 1), ("too_long",)),
    "512 GiB declared": (_flac(2**36 - 1, 8), ("too_long", "unreadable")),
    "cover bomb": (_content(_cover_bomb, "mp3"), CUT),
    "another kind of file": (_content(_other_kind), CUT),
    "another kind, as ogg": (_content(_other_kind, "ogg"), CUT),
    "half of another container": (_content(_other_container), UNREADABLE),
    "random bytes": (_content(lambda c: c.randbytes(c.randrange(1, 5000)), "flac"), CUT),
    "a folder": (_directory, GONE), "a pipe": (_pipe, GONE), "a dangling link": (_dangling, GONE),
    "a link out of the root": (_link_out, GONE), "no file": (_nothing, GONE),
}  # fmt: skip
"""What is wrong, how it is made, and the reasons that may be given."""
