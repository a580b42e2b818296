"""Built-in clips: four seconds of one or two named events, captioned, the same on every machine.

A clip is a function of three numbers (seed, split, index), so any of them can be made again alone.
`materialize_synthetic` writes them to disk in the layout of AudioCaps, where they are read by
the same code as real recordings.
"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from configs.errors import DataError
from safe.data.synthetic_events import EVENTS, RELATIONS, caption
from safe.data.synthetic_sounds import SAMPLE_RATE, Generator, Wave

CLIP_SECONDS = 4.0
"""Length of every clip in seconds."""
SPLITS = ("train", "val", "test", "pretrain", "probe")
"""Each split draws from random streams of its own. The last two are the ones on which
scripts/build_embedded.py trains and measures the embedded encoder; they are never written out."""
REFERENCES = {"train": 1, "val": 5, "test": 5, "pretrain": 1, "probe": 1}
"""Captions per clip."""
VERSION = 1
"""Changes whenever the same numbers give other samples or captions."""

_PEAK = 0.95
_FADE_SECONDS = 0.01
_SPEC_FILE = "synthetic.json"


TRAIN_CLIPS, SCORED_CLIPS = 1280, 100
"""Built-in training clips, and clips each in val and test."""


@dataclass(frozen=True)
class SyntheticScene:
    """What a clip contains and what is said about it."""

    id: str
    """Unique over all splits and seeds; the `youtube_id` column of the manifest."""
    relation: str
    """One of RELATIONS."""
    events: tuple[str, ...]
    """Names of the one or two events; in order of time when the relation is "sequence"."""
    captions: tuple[str, ...]
    """Different ways to say it, REFERENCES[split] many."""
    stream: np.random.SeedSequence
    """Where the clip's random numbers come from; words and sounds take separate children."""


def synthetic_scene(split: str, index: int, *, seed: int = 0) -> SyntheticScene:
    """Decide on clip number `index` of a split, from nothing but these three values.

    Args:
        split: one of SPLITS.
        index: 0 or more; there is no last one.
        seed: 0 or more; another seed gives clips that share nothing.

    Raises:
        DataError: unknown split, negative index or negative seed.
    """
    if split not in SPLITS:
        raise DataError(f"unknown synthetic split {split!r}; known: {', '.join(SPLITS)}")
    if index < 0 or seed < 0:
        raise DataError(f"index and seed must be 0 or more, got index {index}, seed {seed}")
    stream = np.random.SeedSequence([VERSION, seed, SPLITS.index(split), index])
    rng = np.random.Generator(np.random.PCG64(stream))
    relation = str(rng.choice(RELATIONS, p=(0.4, 0.3, 0.3)))
    count = 1 if relation == "single" else 2
    events = tuple(str(name) for name in rng.choice(list(EVENTS), size=count, replace=False))
    return SyntheticScene(
        id=f"synthetic-{seed}-{split}-{index:05d}",
        relation=relation,
        events=events,
        captions=_captions(rng, relation, events, REFERENCES[split]),
        stream=stream,
    )


def render(scene: SyntheticScene) -> NDArray[np.int16]:
    """Return the sound of a clip: PCM [64000] at 16 kHz, mono."""
    sound_stream = np.random.SeedSequence(scene.stream.entropy, spawn_key=(0,))
    rng = np.random.Generator(np.random.PCG64(sound_stream))
    return _mix(rng, scene.relation, scene.events)


def _captions(
    rng: Generator, relation: str, events: tuple[str, ...], count: int
) -> tuple[str, ...]:
    """Draw until `count` different sentences are there; each relation has at least a dozen."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[caption(rng, relation, events)] = None
    return tuple(found)


def _mix(rng: Generator, relation: str, events: tuple[str, ...]) -> NDArray[np.int16]:
    total = int(CLIP_SECONDS * SAMPLE_RATE)
    floor_db = rng.uniform(-66, -50)
    mix = 10 ** (floor_db / 20) * rng.standard_normal(total)
    for name, (start, stop) in zip(events, _spans(rng, relation), strict=True):
        first, last = int(start * SAMPLE_RATE), int(stop * SAMPLE_RATE)
        wave = EVENTS[name].render(rng, last - first)
        mix[first:last] += _level(wave, rng.uniform(-24, -14))
    mix *= min(1.0, _PEAK / float(np.abs(mix).max()))
    return np.round(mix * 32767).astype(np.int16)


def _spans(rng: Generator, relation: str) -> list[tuple[float, float]]:
    """Start and end of each event in seconds."""
    if relation == "single":
        start = rng.uniform(0.0, 0.7)
        return [(start, start + rng.uniform(2.4, 3.2))]
    if relation == "sequence":
        change = rng.uniform(1.8, 2.2)
        return [
            (rng.uniform(0.0, 0.2), change - rng.uniform(0.0, 0.1)),
            (change + rng.uniform(0.0, 0.1), CLIP_SECONDS - rng.uniform(0.0, 0.2)),
        ]
    return [(rng.uniform(0.0, 0.4), CLIP_SECONDS - rng.uniform(0.0, 0.4)) for _ in range(2)]


def _level(wave: Wave, level_db: float) -> Wave:
    """Scale so that the loudest 50 ms have this RMS (dB below full scale), and fade both ends.

    The loudest moment and not the mean, or sparse sounds (knocks) would drown steady ones.
    """
    frame = SAMPLE_RATE // 20
    power = np.square(wave[: len(wave) // frame * frame]).reshape(-1, frame).mean(axis=1)
    wave = wave * (10 ** (level_db / 20) / np.sqrt(power.max()))
    fade = int(_FADE_SECONDS * SAMPLE_RATE)
    ramp = np.linspace(0, 1, fade)
    wave[:fade] *= ramp
    wave[-fade:] *= ramp[::-1]
    return wave


def materialize_synthetic(
    folder: str | Path,
    *,
    train: int = TRAIN_CLIPS,
    val: int = SCORED_CLIPS,
    test: int = SCORED_CLIPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the clips to `folder` in the layout of AudioCaps, or reuse what is there.

    The folder holds `{split}.csv` (audiocap_id, youtube_id, start_time, caption; one row per
    caption) and `audio/{split}/{youtube_id}_0.flac` (16 bit, 16 kHz, mono). Everything is
    written beside it and moved into place by one rename, so an interrupted call leaves nothing
    half done and two processes may call it at once.

    Args:
        folder: where to write; its parents are made.
        train: number of clips with one caption.
        val: number of clips with five captions; `test` likewise, from other random streams.
        test: see `val`.
        seed: of all clips.
        progress: called with (clips done, clips in all) now and then.

    Returns:
        The folder.

    Raises:
        DataError: the folder exists and holds something else, or a size is negative.
    """
    folder = Path(folder)
    sizes = {"train": train, "val": val, "test": test}
    if min(sizes.values()) < 0:
        raise DataError(f"numbers of synthetic clips must be 0 or more, got {sizes}")
    spec = {"version": VERSION, "seed": seed, **sizes}
    if _complete(folder, spec):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_all(temporary, sizes, seed, progress)
        (temporary / _SPEC_FILE).write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            os.rename(temporary, folder)
        except OSError:
            if not _complete(folder, spec):  # else another process was faster, with the same clips
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _complete(folder: Path, spec: dict[str, int]) -> bool:
    """Tell whether the clips of `spec` are there; False when there is nothing at all."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        there = json.loads((folder / _SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = "something else"
    if there != spec:
        raise DataError(
            f"{folder} holds {there}, not the synthetic clips {spec}; "
            "choose another folder or remove this one"
        )
    return True


def _write_all(
    root: Path, sizes: dict[str, int], seed: int, progress: Callable[[int, int], None] | None
) -> None:
    done, total, row_number = 0, sum(sizes.values()), 0
    for split, count in sizes.items():
        audio = root / "audio" / split
        audio.mkdir(parents=True)
        with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
            for index in range(count):
                scene = synthetic_scene(split, index, seed=seed)
                file_name = audio / f"{scene.id}_0.flac"
                soundfile.write(file_name, render(scene), SAMPLE_RATE, subtype="PCM_16")
                for text in scene.captions:
                    table.writerow([row_number, scene.id, 0, text])
                    row_number += 1
                done += 1
                if progress is not None and (done % 20 == 0 or done == total):
                    progress(done, total)
