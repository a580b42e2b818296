"""Captions to look at: the worst, the typical and the best, each with what people wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.player import player
from reports.run import Run

OWN = "own audio"
EACH = 3
"""Samples of each kind."""
MOST_REFERENCES, MOST_CONTROLS = 5, 12


@dataclass(frozen=True)
class Sample:
    """One clip with what was written about it."""

    clip: str
    score: float
    """CIDEr x 100 of the caption; NaN when it was not scored."""
    caption: str
    """From its own audio."""
    references: tuple[str, ...]
    """What people wrote."""
    controls: tuple[tuple[str, str], ...]
    """Condition and the caption under it."""
    audio: str | None
    """Its sound as a ``data:`` address; None when there is no file of it."""


@dataclass(frozen=True)
class Samples:
    """Samples of one kind."""

    title: str
    samples: tuple[Sample, ...]


def samples(run: Run, audio: bool = True) -> tuple[Samples, ...]:
    """Worst, typical (nearest to the median) and best; in order of appearance without scores.

    Args:
        run: its captions, references and per-clip scores.
        audio: whether to embed the clips' sounds.
    """
    rows = [row for row in run.captions.values() if isinstance(row.get(OWN), str)]
    per_clip = run.per_clip_cider
    scores = np.array([per_clip.get(row["clip"], np.nan) for row in rows])
    return tuple(
        Samples(title, tuple(_sample(run, rows[i], scores[i], audio) for i in chosen))
        for title, chosen in _choose(scores)
        if chosen
    )


def _choose(scores: np.ndarray) -> Sequence[tuple[str, list[int]]]:
    """Title to places in ``scores``; no place twice."""
    known = [int(i) for i in np.argsort(scores, kind="stable") if np.isfinite(scores[i])]
    if not known:
        return [("First", list(range(min(2 * EACH, len(scores)))))]
    each = max(1, min(EACH, len(known) // 3))
    worst, best = known[:each], known[each:][::-1][:each]
    rest = [i for i in known if i not in (*worst, *best)]
    middle = float(np.median(scores[known]))
    typical = sorted(rest, key=lambda i: abs(float(scores[i]) - middle))[:each]
    return [("Worst", worst), ("Typical", typical), ("Best", best)]


def _sample(run: Run, row: Mapping[str, str], score: float, audio: bool) -> Sample:
    about = run.references.get(row["clip"], {})
    written, sound = about.get("captions"), about.get("audio")
    return Sample(
        clip=str(row["clip"]),
        score=float(score),
        caption=row[OWN],
        references=tuple(map(str, written[:MOST_REFERENCES])) if isinstance(written, list) else (),
        controls=tuple(
            (str(name), text)
            for name, text in row.items()
            if name not in ("clip", OWN) and isinstance(text, str)
        )[:MOST_CONTROLS],
        audio=player(sound) if audio and isinstance(sound, str) else None,
    )


def without_sound(groups: Sequence[Samples]) -> tuple[Samples, ...]:
    """The same samples without their sounds."""
    return tuple(
        Samples(group.title, tuple(replace(sample, audio=None) for sample in group.samples))
        for group in groups
    )
