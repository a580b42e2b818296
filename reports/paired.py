"""Whether one run's captions score better than another's: a paired bootstrap over common clips."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """CIDEr x 100 of the second minus the first, over the clips that both have."""

    mean: float
    low: float
    """2.5th percentile of the resampled means."""
    high: float
    """97.5th percentile."""
    clips: int

    @property
    def word(self) -> str:
        """``better``, ``worse``, or ``no clear difference`` when the interval holds zero."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no clear difference"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [95% {self.low:+.1f}, {self.high:+.1f}]"

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON-safe values."""
        return asdict(self)


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], seed: int = 0
) -> Difference:
    """Second minus first, with its bootstrap interval; the same seed gives the same numbers.

    Args:
        first: clip id to CIDEr x 100; at least one clip in common with ``second``.
        second: the same of the other run.
        seed: of the resampling.
    """
    import numpy as np

    common = sorted(set(first) & set(second))
    gaps = np.array([float(second[clip]) - float(first[clip]) for clip in common])
    picks = np.random.default_rng(seed).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[picks].mean(axis=1), [2.5, 97.5])
    return Difference(float(gaps.mean()), float(low), float(high), len(gaps))
