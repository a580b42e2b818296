"""Which clips were cut from the same recording, found by listening; and test clips kept unheard.

A manifest does not say which recordings a clip was mixed from, but the sound does: a recording that
stands in two clips gives their cross-correlation one sharp peak, whatever else was mixed in. With
phase transform (every frequency weighed alike: Knapp and Carter 1976) peaks of unrelated clips of
`real-sounds` are 5 to 12 standard deviations high, those of shared recordings 25 to 300.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.csv_cells import plain_cell
from safe.data.audio import decode
from safe.data.manifests import HEADER, Clip, load_split
from safe.training.durable import write_atomically

THRESHOLD = 12.0
"""Height in standard deviations from which on a peak counts: rather one clip too many left out."""
HELD_OUT = 40
"""Test clips whose recordings are kept out of training."""
_RATE, _SECONDS, _AT_ONCE = 8_000, 10.0, 48

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HoldOut:
    """Test clips that no training clip shares a recording with, once some of those are left out."""

    unheard: tuple[str, ...]
    """Ids of test clips."""
    left_out: tuple[str, ...]
    """Ids of training clips that share a recording with one of them."""


def peaks(first: Sequence[Tensor], second: Sequence[Tensor], progress: Progress) -> NDArray:
    """[n, m] height of the highest cross-correlation peak of each pair, in standard deviations.

    Args:
        first: n mono waveforms of one rate, each [S] with a length of its own.
        second: m of them.
        progress: called with (waveforms of ``first`` done, n).
    """
    longest = max(len(wave) for wave in (*first, *second))
    size = 1 << (2 * longest - 1).bit_length()
    ours, theirs = _whitened(first, size), _whitened(second, size)
    found = np.zeros((len(first), len(second)), np.float32)
    for row, wave in enumerate(ours):
        for start in range(0, len(second), _AT_ONCE):
            part = theirs[start : start + _AT_ONCE]
            correlation = torch.fft.irfft(wave * part.conj(), size)
            spread = correlation.square().mean(-1).sqrt()
            high = correlation.abs().amax(-1) / spread.clamp(min=1e-30)
            found[row, start : start + _AT_ONCE] = high.numpy()
        progress(row + 1, len(first))
    return found


def _whitened(waves: Sequence[Tensor], size: int) -> Tensor:
    """[n, size / 2 + 1] spectra of magnitude 1; what is next to silent stays so."""
    spectra = torch.empty(len(waves), size // 2 + 1, dtype=torch.complex64)
    for row, wave in enumerate(waves):
        spectrum = torch.fft.rfft(wave, size)
        magnitude = spectrum.abs()
        spectra[row] = spectrum / (magnitude + 1e-9 * magnitude.amax() + 1e-30)
    return spectra


def choose(shared: NDArray[np.bool_], count: int) -> tuple[list[int], NDArray[np.bool_]]:
    """Test clips to keep unheard, each time the one that costs the fewest further training clips.

    A test clip that shares with none is not chosen: perhaps its recordings were not recognised.

    Args:
        shared: [tests, trains] whether they share a recording.
        count: test clips wanted.

    Returns:
        Their rows, and [trains] which training clips must be left out.
    """
    chosen: list[int] = []
    left_out = np.zeros(shared.shape[1], bool)
    known = shared.any(1)
    while len(chosen) < min(count, int(known.sum())):
        cost = np.where(known, (shared & ~left_out).sum(1), shared.shape[1] + 1)
        cost[chosen] = shared.shape[1] + 1
        best = int(cost.argmin())
        chosen.append(best)
        left_out |= shared[best]
    return sorted(chosen), left_out


def layout(root: Path, folder: Path, progress: Progress) -> tuple[HoldOut, Path]:
    """The data of ``root`` without the training clips that are left out, made once in ``folder``.

    Returns:
        The choice, and the folder to train on; the same ones when it is called again.
    """
    chosen = folder / "unheard.json"
    _place(root / "audio", folder / "audio")
    if chosen.exists():
        found = json.loads(chosen.read_text(encoding="utf-8"))
        return HoldOut(**{key: tuple(value) for key, value in found.items()}), folder
    split = hold_out(root, progress)
    for name in ("train", "val", "test"):
        clips = [clip for clip in load_split(root, name) if clip.id not in split.left_out]
        _write_manifest(folder / f"{name}.csv", clips)
    write_atomically(chosen, json.dumps(asdict(split), indent=2) + "\n")
    return split, folder


def digest(root: Path) -> str:
    """SHA-256 of names and contents of all manifests and sounds of ``root``."""
    total = hashlib.sha256()
    sounds = (file for file in (root / "audio").rglob("*") if file.is_file())
    for file in sorted([*root.glob("*.csv"), *sounds]):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _place(source: Path, target: Path) -> None:
    """Put a folder of sounds into a data folder, unless it is there."""
    if not target.exists():
        partial = target.with_name("audio.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, copy_function=_link_or_copy)
        partial.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or somebody else's file
        shutil.copyfile(source, target)


def hold_out(root: Path, progress: Progress) -> HoldOut:
    """Choose test clips of the data in ``root`` to keep unheard (see :func:`choose`)."""
    train, test = (load_split(root, name) for name in ("train", "test"))
    shared = peaks(_waves(test), _waves(train), progress) >= THRESHOLD
    chosen, left_out = choose(shared, HELD_OUT)
    return HoldOut(
        tuple(test[row].id for row in chosen),
        tuple(clip.id for clip, out in zip(train, left_out, strict=True) if out),
    )


def _waves(clips: Sequence[Clip]) -> list[Tensor]:
    return [torch.from_numpy(decode(str(clip.path), _RATE, _SECONDS).samples) for clip in clips]


def _write_manifest(file: Path, clips: Sequence[Clip]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for clip in clips:
            for number, text in enumerate(clip.captions):
                row = f"{clip.id}-{number}", clip.youtube_id, clip.start_time, text
                writer.writerow([plain_cell(cell) for cell in row])
