"""Large amounts: a data set of 50,000 clips, its embedding cache, and a report on a long run."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.speed.commands import Seconds, timed_command
from benchmarks.speed.subjects import published_clap
from safe.data.cache import EmbeddingCache
from safe.data.check import check_root
from safe.data.manifests import HEADER, load_split
from safe.models.audio_encoders import load_audio_encoder

CLIPS = (2_000, 10_000, 50_000)
ROWS, CAPTIONS, REPORT_SECONDS = 100_000, 5_000, 5.0
_SOUNDS, _SECONDS, _RATE = 200, 1.0, 16_000
_HEARD, _AT_ONCE = 32, 8


@dataclass(frozen=True)
class Rate:
    """How many clips a second something gets through."""

    what: str
    clips: int
    seconds: float
    """Wall seconds."""

    @property
    def per_second(self) -> float:
        """Clips per second."""
        return self.clips / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "per_second": self.per_second}

    def __str__(self) -> str:
        return (
            f"  {self.what:<44} {self.clips:>7,} clips  {self.seconds:8.1f} s  "
            f"{self.per_second:9,.1f} clips/s"
        )


def data_rates() -> Iterator[Rate]:
    """Checking and caching by number of clips: 200 sounds of a second, linked under many names."""
    encoder = load_audio_encoder("embedded")
    for clips in CLIPS:
        with tempfile.TemporaryDirectory() as folder:
            root = linked_clips(Path(folder, "data"), clips)
            yield _rate("data check: every file decoded", clips, lambda: check_root(root))  # noqa: B023
            known = load_split(root, "train")
            cache = EmbeddingCache(Path(folder, "cache"), encoder.identity, 512)
            fill = lambda: cache.fill(known, encoder)  # noqa: B023, E731
            yield _rate(f"cache, new: hashed, {_SOUNDS} of them encoded", clips, fill)
            yield _rate("cache, known files", clips, fill)
            yield _rate("embeddings read", clips, lambda: cache.lookup(known))  # noqa: B023


def encoder_rate() -> Iterator[Rate]:
    """Clips of ten seconds that a CLAP of the published size encodes."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = load_audio_encoder(published_clap(Path(folder)))
    waves = torch.randn(_AT_ONCE, encoder.sample_rate * 10) * 0.1
    encoder.encode(waves)
    times = range(_HEARD // _AT_ONCE)
    what = "heard by a CLAP of the published size"
    yield _rate(what, _HEARD, lambda: [encoder.encode(waves) for _ in times])


def _rate(what: str, clips: int, work: Callable[[], object]) -> Rate:
    start = time.perf_counter()
    work()
    return Rate(what, clips, time.perf_counter() - start)


def linked_clips(root: Path, count: int) -> Path:
    """A data set of ``count`` training clips that share a few sounds by hard links."""
    audio = root / "audio" / "train"
    audio.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [",".join(HEADER)]
    for number in range(count):
        file = audio / f"clip{number:07}_0.wav"
        if number < _SOUNDS:
            samples = rng.normal(scale=0.1, size=int(_RATE * _SECONDS)).astype(np.float32)
            soundfile.write(file, samples, _RATE, subtype="PCM_16")
        else:
            os.link(audio / f"clip{number % _SOUNDS:07}_0.wav", file)
        lines.append(f"{number},clip{number:07},0,sound number {number}")
    (root / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def report_command(finished: Path) -> Seconds:
    """``safe-probe report --html`` on a run with many steps and captions."""
    with tempfile.TemporaryDirectory() as folder:
        run = long_run(finished, Path(folder, "run"))
        what = f"safe-probe report --html, {ROWS:,} rows, {CAPTIONS:,} captions"
        return timed_command(what, ["report", str(run), "--html"], REPORT_SECONDS, "cpu")


def long_run(finished: Path, folder: Path) -> Path:
    """A finished run with its rows and captions repeated until there are many."""
    (folder / "captions").mkdir(parents=True)
    for name in ("config.json", "probes.jsonl", "problems.json", "resources.json"):
        if (finished / name).exists():  # a run need not have been probed
            (folder / name).write_bytes((finished / name).read_bytes())
    steps = _lines(finished / "metrics.jsonl")
    first = next(row for row in steps if row["kind"] == "step")
    rows = (
        first | {"step": step, "epoch": step / ROWS * 6, "loss": 2 + 4 / step}
        for step in range(1, ROWS + 1)
    )
    _write(folder / "metrics.jsonl", rows)
    scores = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    values = list(scores["scores"]["per_clip_cider"].values())
    ids = [f"clip{i}" for i in range(CAPTIONS)]
    many = {clip: values[i % len(values)] for i, clip in enumerate(ids)}
    scores["scores"] |= {"per_clip_cider": many, "n_clips": CAPTIONS}
    (folder / "evaluation.json").write_text(json.dumps(scores), encoding="utf-8")
    for name in ("final.jsonl", "references.jsonl"):
        found = _lines(finished / "captions" / name)
        repeated = (found[i % len(found)] | {"clip": clip} for i, clip in enumerate(ids))
        _write(folder / "captions" / name, repeated)
    return folder


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Any) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
