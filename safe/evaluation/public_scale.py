"""Where a score stands among published ones, and whether it can be compared with them at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.claims import AUDIOCAPS_TEST_SIZES, PUBLIC_SCALE, PublicScore
from safe.data.audiocaps_test import in_audiocaps_test

_REFERENCES = 5
"""Captions of each test clip."""


@dataclass(frozen=True)
class Placement:
    """A score beside the published ones."""

    comparable: bool
    """Whether it was measured on what published scores were measured on, as far as can be told."""
    clips: int
    """Clips that were scored."""
    audiocaps_clips: int
    """How many of them are in AudioCaps' test split, told by their ids."""
    above: str | None
    """The highest point of the scale that it is above; None when below all or not comparable."""
    below: str | None
    """The lowest point that it is below; None when above all or not comparable."""
    reason: str
    """One sentence."""


def place(cider: float, references: Mapping[str, Sequence[str]]) -> Placement:
    """Put a score on the public scale of AudioCaps' test split, or say why it cannot be.

    Args:
        cider: CIDEr-D x 100.
        references: clip id to its captions, of every clip that was scored.
    """
    clips = len(references)
    found = sum(map(in_audiocaps_test, references))
    sizes = " or ".join(map(str, AUDIOCAPS_TEST_SIZES))
    whole = max(AUDIOCAPS_TEST_SIZES)
    problem = None
    if not found:
        problem = "not AudioCaps' test split: the public scale does not apply"
    elif found < clips:
        problem = (
            f"only {found:,} of {clips:,} clips are of AudioCaps' test split: the public scale "
            "does not apply"
        )
    elif clips not in AUDIOCAPS_TEST_SIZES:
        problem = (
            f"{clips:,} of AudioCaps' {whole} test clips; published scores are over {sizes}: not "
            "comparable to the public scale"
        )
    elif any(len(captions) != _REFERENCES for captions in references.values()):
        problem = f"not every clip has {_REFERENCES} references: not comparable to the public scale"
    if problem:
        return Placement(False, clips, found, None, None, problem)
    above, below = _neighbours(cider)
    parts = [f"above {_named(above)}"] if above else []
    parts += [f"below {_named(below)}"] if below else []
    inside = [p for p in PUBLIC_SCALE if p not in (above, below) and p.low <= cider <= p.high]
    parts += [f"as {_named(point)}" for point in inside]
    place_of = f"AudioCaps test, {clips} clips ({AUDIOCAPS_TEST_SIZES[clips]})"
    return Placement(
        True,
        clips,
        found,
        above.name if above else None,
        below.name if below else None,
        f"{place_of}: {', '.join(parts)}",
    )


def _neighbours(cider: float) -> tuple[PublicScore | None, PublicScore | None]:
    above = [point for point in PUBLIC_SCALE if point.high < cider]
    below = [point for point in PUBLIC_SCALE if point.low > cider]
    return (above[-1] if above else None), (below[0] if below else None)


def _named(point: PublicScore) -> str:
    score = f"{point.low:g}" if point.low == point.high else f"{point.low:g}-{point.high:g}"
    return f"{point.name} ({score})"
